"""Read one checkpoint from disk and verify its checksums."""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from diffusion_jax.train.checksum import checksums, unsealed
from diffusion_jax.train.sharding import path_name

# Read as a file: Orbax's own reader opens every tree, with log messages, for the same contents.
_METADATA = "_CHECKPOINT_METADATA"


class _Differs(ValueError):
    """The checkpoint is undamaged but of a different model."""


def attempt(path: Path, wanted: Mapping[str, Any], last: bool) -> dict[str, Any] | None:
    """Load and verify one checkpoint; None, with a warning, if it is damaged on any process."""
    reason, loaded = "", None
    with quiet():
        try:
            loaded = _load(path, wanted)
        except _Differs:
            raise
        except Exception as error:  # Orbax has no exception for damage, often a bare Exception
            reason = root_cause(error)
        if reason:
            gc.collect()
    if jax.process_count() > 1:
        good = multihost_utils.process_allgather(np.asarray(loaded is not None))
        loaded = loaded if np.all(good) else None
        reason = reason or "unreadable by another process"
    if loaded is None:
        then = "no older one is left" if last else "trying the one before"
        warnings.warn(f"checkpoint {path} is damaged ({reason}); {then}", stacklevel=3)
    return loaded


def root_cause(error: BaseException) -> str:
    """The first cause of an error, in one line: Orbax wraps it in guesses about handlers."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:160]


def _load(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The wanted trees (None: numpy arrays in the saved structure), checksums verified."""
    leaves = unsealed(json.loads((path / _METADATA).read_text())["custom_metadata"])["leaves"]
    abstract = {n: _as_numpy(path, n) if tree is None else tree for n, tree in wanted.items()}
    _check_same(
        path, leaves, abstract, requested={n for n, tree in wanted.items() if tree is not None}
    )
    loaded = ocp.load_checkpointables(str(path), abstract)
    named = jax.tree_util.tree_leaves_with_path({name: loaded[name] for name in abstract})
    names = [path_name(p) for p, _ in named]
    for name, checksum in zip(names, checksums([leaf for _, leaf in named]), strict=True):
        if checksum != leaves[name][1]:
            raise ValueError(f"the checksum of {name} is wrong")
    return loaded


def _as_numpy(path: Path, name: str) -> Any:
    saved = ocp.metadata(str(path), checkpointable_name=name).metadata
    return jax.tree.map(lambda m: np.empty(m.shape, m.dtype), saved)


def _check_same(
    path: Path, leaves: Mapping[str, list], abstract: Mapping[str, Any], requested: set[str]
) -> None:
    """Trees to restore may be of a different model; those read in their saved structure not."""
    named = jax.tree_util.tree_leaves_with_path(dict(abstract))
    wanted = {path_name(p): kind_of(leaf) for p, leaf in named}
    held = {k: v[0] for k, v in leaves.items() if k.split("/")[0] in abstract}
    for name in [*held, *(k for k in wanted if k not in held)]:
        if held.get(name) != wanted.get(name):
            if name.split("/")[0] not in requested:
                raise ValueError(f"its own descriptions of {name} differ")
            raise _Differs(
                f"checkpoint {path} is of another model or optimiser: {name} is "
                f"{held.get(name, 'absent')} there and {wanted.get(name, 'absent')} here; "
                "give a new --workdir, or the config it was trained with"
            )


def kind_of(leaf: Any) -> str:
    """Dtype and shape, as written in the metadata."""
    return f"{leaf.dtype}{list(leaf.shape)}"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Orbax's messages after a failure.

    A failed load or save leaves coroutines and an event loop behind, which fill stderr with
    hundreds of tracebacks when they are collected; so collect garbage in here after a failure.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
