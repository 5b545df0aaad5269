"""Checkpoints: written atomically, verified by checksums, restored from the newest good one.

``<workdir>/checkpoints/<step>/`` holds three trees, each loadable alone: ``params``, ``ema`` and
``state`` (step, optimiser, carry).  Its metadata holds the config, the position of the data, and
for each leaf its shape, dtype and checksum.  Orbax itself restores a flipped byte silently and
does not fall back from a damaged step to an earlier one; both are done here and in ``loading``.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jaxtyping import Array
from orbax.checkpoint import v1 as ocp

from diffusion_jax.train.checksum import checksums, sealed
from diffusion_jax.train.loading import attempt, kind_of, quiet, root_cause
from diffusion_jax.train.sharding import path_name
from diffusion_jax.train.state import TrainState

CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"

_keep = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run, to write and to resume from; a context manager.

    Args:
        workdir: the run's folder.
        keep: number of newest checkpoints to keep, >= 1.
        keep_every: interval in steps of checkpoints that are never deleted; 0 for none.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 3, keep_every: int = 0):
        if keep < 1 or keep_every < 0:
            raise ValueError(
                f"config.train.keep = {keep} must be at least 1, "
                f"and keep_every = {keep_every} at least 0"
            )
        self._directory = _directory(workdir)
        self._keep, self._keep_every = keep, keep_every
        self._orbax = self._opened()
        self._newest = max(steps(workdir), default=-1)
        self._coming: int | None = None
        self._failures = 0

    def _opened(self) -> Any:
        kept: list[Any] = [_keep.LatestN(self._keep)]
        if self._keep_every:
            kept.append(_keep.EveryNSteps(self._keep_every))
        policy: Any = _keep.AnyPreservationPolicy(kept)
        with quiet():  # it reads every checkpoint, and logs a damaged one at length
            return ocp.training.Checkpointer(
                str(self._directory),
                preservation_policy=policy,
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._orbax.close()
        except Exception as failure:
            if not any(error):  # otherwise the error being raised is enough
                raise NotSaved(self._sentence(failure)) from None

    def save(self, state: TrainState, config: Mapping[str, Any]) -> None:
        """Write a state in the background, unless its step is saved already.

        Returns once the arrays are copied to the host, so the state may be donated next.  A
        failed save leaves earlier checkpoints intact and is a warning, as the next may succeed.

        Args:
            state: state of any sharding.
            config: the resolved config, of JSON's types.

        Raises:
            NotSaved: for the third failure in a row; with several processes, which cannot agree on
                a warning, for the first.
        """
        step = int(state.step)
        if step <= self._newest:
            return
        self._settle(last=False)
        items = _items(state)
        record = {"config": dict(config), "data": {"step": step}, "leaves": _described(items)}
        self._coming = self._newest = step
        try:
            start = self._orbax.save_checkpointables_async
            start(step, items, force=True, custom_metadata=sealed(record))
        except Exception as error:
            self._failed(error, last=False)

    def wait(self) -> None:
        """Wait until everything that was saved is on disk.

        Raises:
            NotSaved: if the last save failed.
        """
        self._settle(last=True)

    def _settle(self, last: bool) -> None:
        try:
            if self._coming is not None:
                self._orbax.wait()
                self._coming, self._failures = None, 0
        except Exception as error:
            self._failed(error, last)

    def _failed(self, error: Exception, last: bool) -> None:
        """Restart Orbax, which remembers a failure, and warn or raise."""
        sentence = self._sentence(error)
        with quiet():
            with suppress(Exception):
                self._orbax.close()
            del error
            gc.collect()
        self._failures += 1
        self._coming = None
        if last or self._failures >= 3 or jax.process_count() > 1:
            raise NotSaved(sentence) from None
        self._orbax = self._opened()
        self._newest = max(steps(self._directory.parent), default=-1)
        warnings.warn(f"{sentence}; the run goes on, and tries again at the next", stacklevel=4)

    def _sentence(self, error: Exception) -> str:
        lost = self._newest if self._coming is None else self._coming
        undamaged = [step for step in steps(self._directory.parent) if step != lost]
        newest = (
            f"the newest undamaged one is of step {undamaged[-1]}"
            if undamaged
            else "there is none yet"
        )
        return (
            f"the checkpoint of step {lost} in {self._directory} could not be written "
            f"({root_cause(error)}); {newest}; make room on its disk, and the same command goes on"
        )

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest undamaged checkpoint; None if there is none at all.

        One that cannot be read, or whose checksums are wrong, is skipped with a warning, and moved
        to ``<workdir>/damaged`` once an older one was restored.

        Args:
            abstract: shapes, dtypes and shardings to restore to; the devices may differ from those
                that saved it.

        Raises:
            ValueError: for a checkpoint of different parameters, naming the first difference; or if
                no checkpoint can be read.
        """
        found = steps(self._directory.parent)[::-1]
        wanted = _items(abstract)
        for i, step in enumerate(found):
            loaded = attempt(self._directory / str(step), wanted, last=step == found[-1])
            if loaded is None:
                continue
            for bad in found[:i]:
                _set_aside(self._directory / str(bad))
            with quiet():
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
    """``restore_params_at`` without the step."""
    return restore_params_at(workdir, which, step)[0]


def restore_params_at(
    workdir: str | os.PathLike, which: str = "ema", step: int | None = None
) -> tuple[Any, int]:
    """Parameters alone, for sampling: needs no optimiser, recipe or mesh, and writes nothing.

    Args:
        workdir: the run's folder; the run may be in training.
        which: "ema" or "params".
        step: the checkpoint's step; None for the newest undamaged one.

    Returns:
        Nested dicts and lists of numpy arrays (a tuple comes back as a list), and their
        step, which need not be the newest.  For "ema", the state of the average, which for averages
        of a single profile is the parameters.

    Raises:
        ValueError: if there is no such checkpoint, or none that is undamaged.
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
        loaded = attempt(_directory(workdir) / str(one), {which: None}, last=one == tried[-1])
        if loaded is not None:
            return loaded[which], one
    raise ValueError(f"no checkpoint tried in {_directory(workdir)} ({tried}) can be read")


class NotSaved(ValueError):
    """A checkpoint that could not be written."""


def _directory(workdir: str | os.PathLike) -> Path:
    return Path(workdir).absolute() / CHECKPOINTS


def _items(state: TrainState) -> dict[str, Any]:
    rest = {"step": state.step, "opt_state": state.opt_state, "carry": state.carry}
    return {"params": state.params, "ema": state.ema, "state": rest}


def _described(items: Mapping[str, Any]) -> dict[str, list]:
    """Path -> [dtype and shape, checksum], for every leaf."""
    sums = checksums(items)
    leaves = jax.tree_util.tree_leaves_with_path(items)
    return {
        path_name(path): [kind_of(leaf), c] for (path, leaf), c in zip(leaves, sums, strict=True)
    }


def _set_aside(path: Path) -> None:
    """Move a damaged step away from Orbax, which otherwise takes it for the newest."""
    if jax.process_index() == 0:
        parent = path.parent.parent / DAMAGED
        parent.mkdir(exist_ok=True)
        free = next(p for i in range(1000) if not (p := parent / f"{path.name}.{i}").exists())
        path.rename(free)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"set aside {path.name}")


def _true_like(step: Array) -> Array:
    """True, on the devices of ``step``."""
    return jax.jit(lambda: jnp.ones((), bool), out_shardings=step.sharding)()
