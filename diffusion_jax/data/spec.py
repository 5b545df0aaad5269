"""Description of batches, and its validation."""

from __future__ import annotations

import os
from typing import NamedTuple

from diffusion_jax.data import images
from diffusion_jax.data.sources import Info


class DataSpec(NamedTuple):
    """Description of batches for training or evaluation.

    Attributes:
        name: name of the data set (see ``catalog``).
        split: its split, possibly a slice: ``train``, ``test[:500]``.
        batch_size: over all processes together.
        image_size: (height, width) to bring images to; None if all have one size already; for
            latents, this and the channels are ignored.
        channels: 1 or 3; None for those of the set.
        flip: mirror each image left to right with probability 1/2, anew each epoch.
        crop: ``center``, ``random`` or ``stretch`` (see ``images.CROPS``).
        balance: regular expression of words by which captions of one thing's variants differ: a
            thing occurs once in an epoch, in a random variant; "" for no balancing.
        buckets: sizes (height, width), in place of ``image_size``: each batch has images of about
            one aspect ratio, resized to one of these (see ``buckets``); () for one size.
        beside: name of another set, with ``buckets``: each step's batch has the same bucket as the
            other set's, so that the two can be combined, and ``balance`` refers to the other set;
            "" for an order of its own.
        framing: put ``framing``, int32 [b, 4], into batches: the height and width of an image in
            the set, and the top and left of its crop after resizing.
        seed: seed of the order and of random choices.
        shuffle: whether to shuffle each epoch; otherwise in the set's order.
        repeat: whether to repeat for ever; otherwise stop after one epoch.
        drop_remainder: without ``repeat``, drop a last batch that is not full.
        captions: put ``caption``, an object array of str [b], into batches; take it out before
            they go to a device.
        data_dir: folder of prepared sets (see ``catalog.data_root``).
        process_index: index of this process's part of each batch.
        process_count: number of parts.
        cache_bytes: memory for images decoded and resized; what fits is decoded only once.
    """

    name: str
    split: str = "train"
    batch_size: int = 128
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    flip: bool = False
    crop: str = "center"
    balance: str = ""
    buckets: tuple[tuple[int, int], ...] = ()
    beside: str = ""
    framing: bool = False
    seed: int = 0
    shuffle: bool = True
    repeat: bool = True
    drop_remainder: bool = True
    captions: bool = False
    data_dir: str | os.PathLike | None = None
    process_index: int = 0
    process_count: int = 1
    cache_bytes: int = 256 * 2**20


def check(spec: DataSpec) -> None:
    """Raise ValueError for a spec that is invalid by itself."""
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
    if spec.buckets:
        _check_buckets(spec)
    elif spec.beside:
        raise ValueError(
            f"beside is {spec.beside!r}, a set whose buckets to take, but buckets are (); give "
            "sizes, or set beside = ''."
        )


def _check_buckets(spec: DataSpec) -> None:
    for size in spec.buckets:
        pair = isinstance(size, (tuple, list)) and len(size) == 2
        if not (pair and all(isinstance(side, int) and side > 0 for side in size)):
            raise ValueError(f"buckets has {size!r}; give pairs (height, width), both positive.")
    if not (spec.repeat or spec.drop_remainder):
        raise ValueError(
            "drop_remainder is False, but with buckets every batch is full; set it True, or "
            "buckets = ()."
        )


def check_against(spec: DataSpec, info: Info) -> None:
    """Raise ValueError for a spec that is invalid for this data set."""
    shape, n = info.shape, info.num_examples
    if info.kind == "latents" and (spec.flip or spec.crop == "random"):
        field, off = ("flip", "False") if spec.flip else ("crop", "'center'")
        raise ValueError(
            f"{field} is {getattr(spec, field)!r}, but {spec.name} holds latents, and the latent "
            f"of a changed image is not the changed latent; set data.{field} = {off}."
        )
    if spec.buckets and info.kind != "image":
        held = "latents of one size" if info.kind == "latents" else "points"
        raise ValueError(
            f"buckets are {len(spec.buckets)} sizes, but {spec.name} holds {held}; set "
            "data.buckets = (), or name a set of images."
        )
    if spec.image_size is None and None in shape and not spec.buckets:
        raise ValueError(
            f"image_size is None, but images of {spec.name} differ in size; give (height, width)."
        )
    if n == 0 or (n < spec.batch_size and not spec.repeat and spec.drop_remainder):
        raise ValueError(
            f"batch_size is {spec.batch_size}, but split {spec.split!r} of {spec.name} has only "
            f"{n} examples; choose a smaller batch."
        )
