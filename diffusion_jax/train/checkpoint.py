"""Checkpoints that are whole, verified and recent; the only file that knows Orbax.

``<workdir>/checkpoints/<step>/`` holds three trees, each loadable alone: ``params``, ``ema`` and
``state`` (step, optimiser, carry).  Its metadata holds the config, the position of the data, and
for each leaf its shape, dtype and checksum.  Orbax itself restores a flipped byte without a word
and does not fall back from a damaged step to an earlier one; both are done here.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array
from orbax.checkpoint import v1 as ocp

from diffusion_jax.train.checksum import checksums
from diffusion_jax.train.sharding import path_name
from diffusion_jax.train.state import TrainState

CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"
# Read as a file: Orbax's own reader opens every tree, loudly, to give what stands in here.
_METADATA = "_CHECKPOINT_METADATA"

_keep = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run, to write and to resume from; a context manager.

    Args:
        workdir: the run's folder.
        keep: how many of the newest to keep, >= 1.
        keep_every: keep those of every so many steps for good; 0 for none.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 3, keep_every: int = 0):
        if keep < 1 or keep_every < 0:
            raise ValueError(
                f"config.train.keep = {keep} must be at least 1, "
                f"and keep_every = {keep_every} at least 0"
            )
        self._directory = _directory(workdir)
        kept: list[Any] = [_keep.LatestN(keep)]
        if keep_every:
            kept.append(_keep.EveryNSteps(keep_every))
        policy: Any = _keep.AnyPreservationPolicy(kept)
        self._orbax = ocp.training.Checkpointer(
            str(self._directory),
            preservation_policy=policy,
            cleanup_tmp_directories=True,
        )
        self._newest = max(steps(workdir), default=-1)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: Any) -> None:
        self._orbax.close()

    def save(self, state: TrainState, config: Mapping[str, Any]) -> None:
        """Write a state in the background; one that is already saved is left as it is.

        Returns once the arrays are copied to the host, so the state may be donated next.

        Args:
            state: of any sharding.
            config: the resolved config, of JSON's types.
        """
        step = int(state.step)
        if step <= self._newest:
            return
        items = _items(state)
        metadata = {"config": dict(config), "data": {"step": step}, "leaves": _described(items)}
        self._orbax.save_checkpointables_async(step, items, force=True, custom_metadata=metadata)
        self._newest = step

    def wait(self) -> None:
        """Until all that was saved is on the disk."""
        self._orbax.wait()

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest checkpoint that is whole; None if there is none at all.

        One that cannot be read, or whose checksums are wrong, is passed over with a warning, and
        moved to ``<workdir>/damaged`` once an older one proved good.

        Args:
            abstract: shapes, dtypes and shardings to restore to; the devices may be others than
                those that saved.

        Raises:
            ValueError: for a checkpoint of other parameters, naming the first that differs; or if
                no checkpoint can be read.
        """
        found = steps(self._directory.parent)[::-1]
        wanted = _items(abstract)
        for i, step in enumerate(found):
            loaded = _attempt(self._directory / str(step), wanted, last=step == found[-1])
            if loaded is None:
                continue
            for bad in found[:i]:
                _set_aside(self._directory / str(bad))
            self._orbax.reload()
            self._newest = step
            whole = {"params": loaded["params"], "ema": loaded["ema"], **loaded["state"]}
            return TrainState(finite=_true_like(whole["step"]), **whole)
        if found:
            raise ValueError(
                f"none of the {len(found)} checkpoints in {self._directory} can be read; "
                "restore one from a copy, or take a new --workdir"
            )
        return None


def steps(workdir: str | os.PathLike) -> list[int]:
    """The steps of a run that have a finished checkpoint, in order."""
    directory = _directory(workdir)
    names = [p.name for p in directory.iterdir() if p.is_dir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def restore_params(workdir: str | os.PathLike, which: str = "ema", step: int | None = None) -> Any:
    """Parameters alone, for sampling: no optimiser, recipe or mesh is needed, nor any write.

    Args:
        workdir: the run's folder; it may be in training.
        which: "ema" or "params".
        step: of the checkpoint; None for the newest that is whole.

    Returns:
        Nested dicts and lists of numpy arrays (a tuple comes back as a list).  For "ema", the
        state of the average, which for the averages of one profile is the parameters.

    Raises:
        ValueError: if there is no such checkpoint, or none that is whole.
    """
    if which not in ("ema", "params"):
        raise ValueError(f"config.sampler.params = {which!r}; known are ema, params")
    found = steps(workdir)
    if not found or (step is not None and step not in found):
        there = f"its steps are {found}" if found else "train first"
        of_step = "" if step is None else f" of step {step}"
        raise ValueError(f"{workdir} has no checkpoint{of_step}; {there}")
    tried = found[::-1] if step is None else [step]
    for one in tried:
        loaded = _attempt(_directory(workdir) / str(one), {which: None}, last=one == tried[-1])
        if loaded is not None:
            return loaded[which]
    raise ValueError(f"no checkpoint tried in {_directory(workdir)} ({tried}) can be read")


class _Differs(ValueError):
    """The checkpoint is whole but of something else."""


def _directory(workdir: str | os.PathLike) -> Path:
    return Path(workdir).absolute() / CHECKPOINTS


def _items(state: TrainState) -> dict[str, Any]:
    rest = {"step": state.step, "opt_state": state.opt_state, "carry": state.carry}
    return {"params": state.params, "ema": state.ema, "state": rest}


def _described(items: Mapping[str, Any]) -> dict[str, list]:
    """Path -> [dtype and shape, checksum], for every leaf."""
    sums = checksums(items)
    leaves = jax.tree_util.tree_leaves_with_path(items)
    return {path_name(path): [_kind(leaf), c] for (path, leaf), c in zip(leaves, sums, strict=True)}


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _attempt(path: Path, wanted: Mapping[str, Any], last: bool) -> dict[str, Any] | None:
    """Load and verify one checkpoint; None, with a warning, if it is damaged on any process."""
    reason, loaded = "", None
    with _quiet():
        try:
            loaded = _load(path, wanted)
        except _Differs:
            raise
        except Exception as error:  # Orbax has no type for damage, often a bare Exception
            reason = _root(error)
    if jax.process_count() > 1:
        good = multihost_utils.process_allgather(np.asarray(loaded is not None))
        loaded = loaded if np.all(good) else None
        reason = reason or "unreadable by another process"
    if loaded is None:
        then = "no older one is left" if last else "trying the one before"
        warnings.warn(f"checkpoint {path} is damaged ({reason}); {then}", stacklevel=3)
    return loaded


def _root(error: BaseException) -> str:
    """What began it, in a line: Orbax wraps it in guesses about handlers."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:160]


def _load(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The wanted trees (None: as numpy, in the structure saved), their checksums verified."""
    leaves = json.loads((path / _METADATA).read_text())["custom_metadata"]["leaves"]
    abstract = {n: _as_numpy(path, n) if tree is None else tree for n, tree in wanted.items()}
    _check_same(path, leaves, abstract)
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


def _check_same(path: Path, leaves: Mapping[str, list], abstract: Mapping[str, Any]) -> None:
    named = jax.tree_util.tree_leaves_with_path(dict(abstract))
    wanted = {path_name(p): _kind(leaf) for p, leaf in named}
    held = {k: v[0] for k, v in leaves.items() if k.split("/")[0] in abstract}
    for name in [*held, *(k for k in wanted if k not in held)]:
        if held.get(name) != wanted.get(name):
            raise _Differs(
                f"checkpoint {path} is of another model or optimiser: {name} is "
                f"{held.get(name, 'absent')} there and {wanted.get(name, 'absent')} here; "
                "give a new --workdir, or the config it was trained with"
            )


def _set_aside(path: Path) -> None:
    """Move a damaged step out of Orbax's sight, which else takes it for the newest."""
    if jax.process_index() == 0:
        parent = path.parent.parent / DAMAGED
        parent.mkdir(exist_ok=True)
        free = next(p for i in range(1000) if not (p := parent / f"{path.name}.{i}").exists())
        path.rename(free)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"set aside {path.name}")


def _true_like(step: Array) -> Array:
    """True, on the devices where ``step`` is."""
    return jax.jit(lambda: jnp.ones((), bool), out_shardings=step.sharding)()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's last words to itself.

    A load that fails leaves coroutines and an event loop behind, which fill stderr with hundreds of
    tracebacks when they are collected; so collect them here, where nothing prints.
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
            gc.collect()
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
