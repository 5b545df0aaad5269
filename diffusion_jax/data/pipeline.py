"""From a data set to batches for the device: resize, crop, flip, scale, shard, prefetch.

The batch at step t is a pure function of (spec, t); see ``order``.  So the state of the pipeline
is the step alone, a run resumes anywhere at once, and the concatenated parts of K processes are
the batch of a single process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from diffusion_jax.data import images, order
from diffusion_jax.data.balance import groups_of, members
from diffusion_jax.data.buckets import by_bucket
from diffusion_jax.data.faults import Faults, forgiving, watched
from diffusion_jax.data.fetch import FETCHES, fitter, stack
from diffusion_jax.data.sources import Source, open_source
from diffusion_jax.data.spec import DataSpec, check, check_against

ENDLESS = 2**40  # batches in a repeated data set


def make_dataset(spec: DataSpec, faults: Faults | None = None) -> grain.MapDataset:
    """Batches as a grain data set: ``dataset[t]`` is this process's part of the batch at step t.

    A batch is ``{"image": float32 [b, h, w, c] in [-1, 1], "label": int32 [b]}``, ``image`` being
    float32 [b, 2] for toy2d and scaled latents [b, h, w, z] for latents; unlabelled sets have no
    ``label``.  With ``spec.buckets`` the size of images differs between batches.

    Args:
        spec: see ``DataSpec``.
        faults: counts broken records and allows some; None allows none.

    Raises:
        DataMissing: if the set is not prepared.
        ValueError: for an invalid spec, naming its field.
    """
    check(spec)
    source = open_source(spec.name, spec.split, spec.data_dir)
    source = forgiving(source, Faults() if faults is None else faults)
    check_against(spec, source.info)
    if spec.buckets:
        leader = open_source(spec.beside, spec.split, spec.data_dir) if spec.beside else None
        groups = _groups(source if leader is None else leader, spec)
        batch_at, epoch = by_bucket(source, spec, leader, groups)
    else:
        batch_at, epoch = _in_order(source, spec)

    def told(step: int) -> dict[str, np.ndarray]:
        batch = batch_at(step)
        if not spec.captions:
            batch.pop("caption", None)
        return batch

    return grain.MapDataset.range(ENDLESS if spec.repeat else epoch).map(told)


def _in_order(source: Source, spec: DataSpec) -> tuple[Callable[[int], dict[str, Any]], int]:
    """(step -> this process's part of the batch, batches in an epoch), all of one shape."""
    fetch = FETCHES[source.info.kind](source, spec)
    groups = _groups(source, spec)
    n = source.info.num_examples if groups is None else len(groups)

    def batch_at(step: int) -> dict[str, Any]:
        where = order.positions(step, spec.batch_size, spec.process_index, spec.process_count)
        if not spec.repeat:
            where = where[where < n]
        which = order.examples(where, n, spec.seed, spec.shuffle)
        if groups is not None:
            which = members(groups, which, where, spec.seed)
        return fetch(which, where)

    return batch_at, n // spec.batch_size if spec.drop_remainder else -(-n // spec.batch_size)


def _groups(source: Source, spec: DataSpec) -> list[np.ndarray] | None:
    """Groups of variants of one thing; None without balancing."""
    return groups_of(_captions(source), spec.balance) if spec.balance else None


class Batches:
    """An endless or finite iterator of batches with its step; see ``batches``."""

    def __init__(
        self,
        dataset: grain.MapDataset,
        start_step: int,
        threads: int,
        ahead: int,
        timeout: float,
        faults: Faults,
    ):
        self._dataset, self._timeout, self._faults = dataset, timeout, faults
        self._options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        self.set_state({"step": start_step})

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """``{"step": t}``: the next batch is that of step t."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Go to a step at once, whatever the number of processes before."""
        self._step = int(state["step"])
        rest = self._dataset[self._step :]
        made = iter(rest.to_iter_dataset(self._options))
        self._iterator = watched(made, self._timeout, "the data set")

    @property
    def broken_records(self) -> int:
        """Number of records replaced so far, in this process."""
        return len(self._faults.broken)


def batches(
    dataset: grain.MapDataset,
    start_step: int = 0,
    threads: int = 1,
    ahead: int = 4,
    timeout: float = 0.0,
    faults: Faults | None = None,
) -> Batches:
    """Iterate over ``make_dataset``'s batches from a step on, prefetched by threads.

    Args:
        dataset: from ``make_dataset``.
        start_step: step of the first batch.
        threads: number of background threads.
        ahead: number of batches to prefetch.
        timeout: seconds to wait for a batch; 0 for no limit.
        faults: the same as for ``make_dataset``, for ``broken_records``.

    Raises:
        DataStalled: from the iterator, after ``timeout``.
    """
    return Batches(dataset, start_step, threads, ahead, timeout, faults or Faults())


def load_images(
    name: str,
    split: str = "test",
    limit: int | None = None,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The first ``limit`` images of a split, centre-cropped, in its fixed order, as one array.

    Returns:
        (images uint8 [n, h, w, c], labels int32 [n] or None); images float32 [n, 2] for toy2d.

    Raises:
        DataMissing, ValueError: as ``make_dataset``.
    """
    spec = DataSpec(name, split, 1, image_size, channels, data_dir=data_dir)
    check(spec)
    source = open_source(name, split, data_dir)
    check_against(spec, source.info)
    if source.info.kind == "latents":
        raise ValueError(
            f"data set {name} holds latents, not images; name the set that they were encoded from"
        )
    n = min(limit or source.info.num_examples, source.info.num_examples)
    examples = source.read(np.arange(n))
    if len(source.info.shape) == 3:
        fit = fitter(source, spec)
        for example in examples:
            image = fit(example["image"])
            example["image"] = images.cropped(image, image_size, 0.5) if image_size else image
    batch = stack(examples)
    return batch["image"], batch.get("label")


def load_captions(
    name: str,
    split: str = "test",
    limit: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> list[str]:
    """The captions of the images that ``load_images`` returns.

    Raises:
        ValueError: if the set has none.
    """
    return _captions(open_source(name, split, data_dir), limit)


def _captions(source: Source, limit: int | None = None) -> list[str]:
    if not source.info.captions:
        raise ValueError(
            f"data set {source.info.name} has no captions; noto_emoji has, and a folder with "
            "NAME.txt beside its images."
        )
    n = min(limit or source.info.num_examples, source.info.num_examples)
    return [example["caption"] for example in source.read(np.arange(n))]
