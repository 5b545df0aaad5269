"""Snapshots of power-function averages, and post-hoc averages of any width from them.

``<workdir>/snapshots/<step>.npz`` holds each average of ``core.ema.power``, an array per leaf named
"0.05/net/hidden/kernel" by its width and path, and ``structure.json`` with the tree of those names.
A file is written atomically; the CRC-32 of its format detects damage.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.core.power_ema import Combination, Profile, combine
from diffusion_jax.files import whole
from diffusion_jax.train.sharding import path_name

SNAPSHOTS = "snapshots"
_STRUCTURE = "structure.json"


def save(workdir: str | os.PathLike, step: int, averages: dict[str, Any]) -> None:
    """Write the averages of a step; every process calls this, and the first one writes.

    Args:
        workdir: the run's folder.
        step: optimiser steps done.
        averages: the state of ``core.ema.power``, of any sharding: width -> tree.
    """
    named = [(path_name(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(averages)]
    if jax.process_index():
        for _, leaf in named:
            _on_host(leaf)
        return
    names = jax.tree_util.tree_map_with_path(lambda path, leaf: path_name(path), averages)
    with whole(_path(workdir, step)) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(_STRUCTURE, json.dumps(names))
        for name, leaf in named:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _on_host(leaf))


def steps(workdir: str | os.PathLike) -> list[int]:
    """The steps of a run that have a snapshot, in order."""
    found = _folder(workdir).glob("*.npz")
    return sorted(int(path.stem) for path in found if path.stem.isdigit())


def widths(workdir: str | os.PathLike, step: int) -> list[float]:
    """The widths σ_rel that a snapshot holds, in order."""
    return sorted(float(name) for name in _structure(_path(workdir, step)))


def plan(
    workdir: str | os.PathLike, sigma_rel: float, step: int | None = None
) -> tuple[list[Profile], Combination]:
    """The combination of stored profiles for a wanted one, and its error, from file names alone.

    Args:
        workdir: the run's folder; the run may be in training.
        sigma_rel: width of the wanted average.
        step: the step at which it ends, which must have a snapshot: the profile is cut off there,
            as no other stored profile is; None for the newest.

    Returns:
        (the stored profiles up to that step; their weights and the error of the profile).

    Raises:
        ValueError: for a run without snapshots, a step without one, or an impossible width.
    """
    found = steps(workdir)
    if not found:
        raise ValueError(
            f"{workdir} has no snapshots; train with config.ema='power()' and "
            "config.train.snapshot_every above 0"
        )
    step = found[-1] if step is None else step
    if step not in found:
        nearest = [s for s in found if s < step][-1:] + [s for s in found if s > step][:1]
        raise ValueError(f"{workdir} has no snapshot of step {step}; the nearest are {nearest}")
    stored = [Profile(one, w) for one in found if one <= step for w in widths(workdir, one)]
    return stored, combine(stored, Profile(step, sigma_rel))


def reconstruct(workdir: str | os.PathLike, sigma_rel: float, step: int | None = None) -> Any:
    """The average of any width, by the combination of ``plan``; one snapshot in memory at a time.

    Args:
        workdir, sigma_rel, step: see ``plan``.

    Returns:
        The averaged parameters: nested dicts and lists of numpy arrays, summed in float64 and
        returned in the dtype stored.  Leaves that are not floating point are the newest ones.

    Raises:
        ValueError: as ``plan``, and for a damaged snapshot, naming it.
    """
    stored, (weights, _) = plan(workdir, sigma_rel, step)
    total: dict[str, np.ndarray] = {}
    kinds: dict[str, np.dtype] = {}
    for profile, weight in zip(stored, weights, strict=True):
        for name, leaf in _load(_path(workdir, profile.step), repr(profile.sigma_rel)):
            kinds[name] = leaf.dtype
            if not np.issubdtype(leaf.dtype, np.floating):
                total[name] = leaf
            elif name in total:
                total[name] += weight * leaf
            else:
                total[name] = weight * leaf.astype(np.float64)
    names = _structure(_path(workdir, stored[-1].step))[repr(stored[-1].sigma_rel)]
    leaf = lambda name: np.asarray(total[name], kinds[name])
    return jax.tree.map(lambda name: leaf(_leaf_name(name)), names)


def _load(path: Path, width: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name without the width, array) of each leaf of one average."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in jax.tree.leaves(json.loads(archive.read(_STRUCTURE))[width]):
                with archive.open(f"{name}.npy") as member:
                    yield _leaf_name(name), np.lib.format.read_array(member)
    except (zipfile.BadZipFile, KeyError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _structure(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(_STRUCTURE))
    except (zipfile.BadZipFile, KeyError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"snapshot {path} is damaged ({error}); move it away to go on without it")


def _leaf_name(name: str) -> str:
    return name.split("/", 1)[1]


def _on_host(leaf: Any) -> np.ndarray:
    """The whole array; one sharded over processes is gathered, which all must take part in."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _folder(workdir: str | os.PathLike) -> Path:
    return Path(workdir) / SNAPSHOTS


def _path(workdir: str | os.PathLike, step: int) -> Path:
    return _folder(workdir) / f"{step:08d}.npz"
