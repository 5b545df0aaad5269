"""From a data set to batches for the device: sized, cropped, flipped, scaled, sharded, prefetched.

The batch at step t is a pure function of (spec, t); see ``order``.  So the state of the pipeline
is the step alone, a run resumes anywhere at once, and the parts that K processes make are the one
batch that a single process makes, dealt out like cards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import numpy as np

from diffusion_jax.data import images, order
from diffusion_jax.data.pixels import to_unit
from diffusion_jax.data.sources import Source, open_source

FLIP, PLACE = 0, 1  # streams of random choices
ENDLESS = 2**40  # batches in a repeated data set


class DataSpec(NamedTuple):
    """What to train or evaluate on.

    Attributes:
        name: of the data set (see ``catalog``).
        split: of it, possibly a slice: ``train``, ``test[:500]``.
        batch_size: over all processes together.
        image_size: (height, width) to bring images to; None if all have one size already.
        channels: 1 or 3; None for the set's own.
        flip: mirror each image left to right with probability 1/2, anew each epoch.
        crop: ``center``, ``random`` or ``stretch`` (see ``images.CROPS``).
        seed: of the order and of the random choices.
        shuffle: another order in each epoch; else the set's own.
        repeat: go on for ever; else stop after one epoch.
        drop_remainder: without ``repeat``, leave out a last batch that is not full.
        captions: put ``caption``, an object array of str [b], into batches; take it out before
            they go to a device.
        data_dir: folder of prepared sets (see ``catalog.data_root``).
        process_index: which part of each batch to make.
        process_count: of how many.
        cache_bytes: memory for images decoded and resized; what fits is decoded only once.
    """

    name: str
    split: str = "train"
    batch_size: int = 128
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    flip: bool = False
    crop: str = "center"
    seed: int = 0
    shuffle: bool = True
    repeat: bool = True
    drop_remainder: bool = True
    captions: bool = False
    data_dir: str | os.PathLike | None = None
    process_index: int = 0
    process_count: int = 1
    cache_bytes: int = 256 * 2**20


def make_dataset(spec: DataSpec) -> grain.MapDataset:
    """Batches as a grain data set: ``dataset[t]`` is this process's part of the batch at step t.

    A batch is ``{"image": float32 [b, h, w, c] in [-1, 1], "label": int32 [b]}``, ``image`` being
    float32 [b, 2] for toy2d; unlabelled sets have no ``label``.

    Raises:
        DataMissing: if the set is not prepared.
        ValueError: for a spec that cannot be followed, naming its field.
    """
    _check(spec)
    source = open_source(spec.name, spec.split, spec.data_dir)
    _check_against(spec, source)
    n = source.info.num_examples
    fetch = _toy_fetch(source) if len(source.info.shape) == 1 else _image_fetch(source, spec)

    def batch_at(step: int) -> dict[str, np.ndarray]:
        where = order.positions(step, spec.batch_size, spec.process_index, spec.process_count)
        if not spec.repeat:
            where = where[where < n]
        batch = fetch(order.examples(where, n, spec.seed, spec.shuffle), where)
        if not spec.captions:
            batch.pop("caption", None)
        return batch

    return grain.MapDataset.range(_length(spec, n)).map(batch_at)


def _length(spec: DataSpec, n: int) -> int:
    if spec.repeat:
        return ENDLESS
    return n // spec.batch_size if spec.drop_remainder else -(-n // spec.batch_size)


def _check(spec: DataSpec) -> None:
    if spec.batch_size < 1 or spec.batch_size % spec.process_count:
        raise ValueError(
            f"batch_size is {spec.batch_size}; choose a positive multiple of the number of "
            f"processes, {spec.process_count}."
        )
    if not 0 <= spec.process_index < spec.process_count:
        raise ValueError(
            f"process_index is {spec.process_index}; it must lie in 0..{spec.process_count - 1}."
        )
    if spec.crop not in images.CROPS:
        raise ValueError(f"crop is {spec.crop!r}; choose one of {', '.join(images.CROPS)}.")
    if spec.channels not in (None, 1, 3):
        raise ValueError(f"channels is {spec.channels!r}; choose 1 (grey), 3 (colour) or None.")
    size = spec.image_size
    if size is not None and not (len(size) == 2 and min(size) > 0):
        raise ValueError(f"image_size is {size!r}; give (height, width), both positive, or None.")


def _check_against(spec: DataSpec, source: Source) -> None:
    shape, n = source.info.shape, source.info.num_examples
    if spec.image_size is None and None in shape:
        raise ValueError(
            f"image_size is None, but images of {spec.name} differ in size; give (height, width)."
        )
    if n == 0 or (n < spec.batch_size and not spec.repeat and spec.drop_remainder):
        raise ValueError(
            f"batch_size is {spec.batch_size}, but split {spec.split!r} of {spec.name} has only "
            f"{n} examples; choose a smaller batch."
        )


Fetch = Callable[[np.ndarray, np.ndarray], dict[str, Any]]
"""(example indices int64 [b], positions int64 [b]) -> batch."""


def _toy_fetch(source: Source) -> Fetch:
    def fetch(indices, where):
        del where
        return _stack(source.read(indices))

    return fetch


def _image_fetch(source: Source, spec: DataSpec) -> Fetch:
    read = _cached(source.read, _fit(source, spec), source.info.num_examples, spec.cache_bytes)
    size = spec.image_size

    def fetch(indices, where):
        examples = read(indices)
        if size is not None and spec.crop != "stretch":
            place = order.uniform(spec.seed, PLACE, where) if spec.crop == "random" else _HALF
            examples = [
                example | {"image": images.cropped(example["image"], size, at)}
                for example, at in zip(examples, np.broadcast_to(place, len(where)), strict=True)
            ]
        batch = _stack(examples)
        if spec.flip:
            mirrored = order.uniform(spec.seed, FLIP, where) < 0.5
            batch["image"][mirrored] = batch["image"][mirrored, :, ::-1]
        return batch | {"image": to_unit(batch["image"])}

    return fetch


_HALF = np.float64(0.5)


def _fit(source: Source, spec: DataSpec) -> Callable[[np.ndarray], np.ndarray]:
    """The part of preparing an image that is the same each time: channels and size."""
    channels = spec.channels or source.info.shape[-1] or 3

    def fit(image):
        image = images.with_channels(image, channels)
        return images.resized(image, spec.image_size, spec.crop) if spec.image_size else image

    return fit


def _cached(
    read: Callable[[np.ndarray], list[dict]], fit: Callable, n: int, limit: int
) -> Callable[[np.ndarray], list[dict]]:
    """``read`` then ``fit``, keeping results while they fit into ``limit`` bytes."""
    kept: list[dict | None] = [None] * n
    used = 0

    def cached_read(indices):
        nonlocal used
        found = {int(i): kept[i] for i in indices}
        absent = [i for i, example in found.items() if example is None]
        for i, example in zip(absent, read(np.array(absent)) if absent else [], strict=True):
            found[i] = example | {"image": fit(example["image"])}
            size = found[i]["image"].nbytes + _OVERHEAD_BYTES
            if used + size <= limit:
                kept[i] = found[i]
                used += size
        return [found[int(i)] for i in indices]

    return cached_read


_OVERHEAD_BYTES = 400  # of a dict and an array, about


def _stack(examples: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {"image": np.stack([example["image"] for example in examples])}
    if "label" in examples[0]:
        batch["label"] = np.array([example["label"] for example in examples], np.int32)
    if "caption" in examples[0]:
        batch["caption"] = np.array([example["caption"] for example in examples], object)
    return batch


class Batches:
    """An endless or finite iterator of batches that knows its step; made by ``batches``."""

    def __init__(self, dataset: grain.MapDataset, start_step: int, threads: int, ahead: int):
        self._dataset = dataset
        self._options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        self.set_state({"step": start_step})

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """``{"step": t}``: the batch that comes next is the one of step t."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Go to a step, at once; on any number of processes, whatever the number before."""
        self._step = int(state["step"])
        rest = self._dataset[self._step :]
        self._iterator = iter(rest.to_iter_dataset(self._options))


def batches(
    dataset: grain.MapDataset, start_step: int = 0, threads: int = 1, ahead: int = 4
) -> Batches:
    """Iterate over ``make_dataset``'s batches from a step on, made by threads ahead of their use.

    Args:
        dataset: from ``make_dataset``.
        start_step: the first batch's step.
        threads: that make batches in the background.
        ahead: how many batches to have ready.
    """
    return Batches(dataset, start_step, threads, ahead)


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
    _check(spec)
    source = open_source(name, split, data_dir)
    _check_against(spec, source)
    n = min(limit or source.info.num_examples, source.info.num_examples)
    examples = source.read(np.arange(n))
    if len(source.info.shape) == 3:
        fit = _fit(source, spec)
        for example in examples:
            image = fit(example["image"])
            example["image"] = images.cropped(image, image_size, 0.5) if image_size else image
    batch = _stack(examples)
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
    source = open_source(name, split, data_dir)
    if not source.info.captions:
        raise ValueError(f"data set {name} has no captions; noto_emoji has.")
    n = min(limit or source.info.num_examples, source.info.num_examples)
    return [example["caption"] for example in source.read(np.arange(n))]
