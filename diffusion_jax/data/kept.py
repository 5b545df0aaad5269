"""A cache of arrays in files beside the data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.catalog import data_root


def cached(
    kind: str,
    identity: str,
    make: Callable[[], Mapping[str, Any]],
    data_dir: str | os.PathLike | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of ``make``, read from their file where there is one.

    Args:
        kind: folder of the file.
        identity: everything that the arrays depend on; its hash is the file's name.
        make: () -> name -> array.
        data_dir: folder of prepared sets (see ``catalog.data_root``).
    """
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = data_root(data_dir) / kind / f"{name}.npz"
    arrays = _read(path)
    if arrays is None:
        arrays = {key: np.asarray(value) for key, value in make().items()}
        _write(path, arrays)
    return arrays


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, KeyError, EOFError):  # absent or incomplete: it is computed
        return None


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
