"""Aspect ratio buckets: each batch has images of one size, with about their aspect ratio.

Cropping pictures of many shapes to one cuts off heads, and a model learns to draw such pictures
(Anlatan 2022, "NovelAI improvements on Stable Diffusion", aspect ratio bucketing; Podell et al.
2023, section 2.3, multi-aspect training).  Here each example always belongs to the bucket of
nearest aspect ratio, is resized to cover that bucket's size, and cropped.

Bucket j of n_j examples has its own endless sequence of positions, as in ``order``: it visits each
of its examples once before any a second time.  With batches of B, epoch e has

    c_j(e) = floor((e + 1)·n_j / B) - floor(e·n_j / B)                                       (1)

batches of it: a remainder is carried over to the next epoch, not dropped, so no example is rarer
than another.  The batches of an epoch are shuffled.  Everything is a closed form of (seed, step).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data import order
from diffusion_jax.data.balance import members
from diffusion_jax.data.fetch import image_fetch
from diffusion_jax.data.sources import Source
from diffusion_jax.data.spec import DataSpec

Size = tuple[int, int]


def buckets(area: int, multiple: int = 64, most_ratio: float = 2.0) -> tuple[Size, ...]:
    """All sizes (height, width) of multiples whose sides cannot grow within an area.

    Args:
        area: largest height·width, in pixels.
        multiple: number that both sides are multiples of.
        most_ratio: largest ratio of the longer to the shorter side.

    Returns:
        Sizes from the widest to the tallest.

    Raises:
        ValueError: if there is none.
    """
    units = area // multiple**2 if multiple > 0 else 0
    if units < 1 or most_ratio < 1:
        raise ValueError(
            f"buckets(area={area}, multiple={multiple}, most_ratio={most_ratio}) are none; take "
            "an area of at least multiple² and a ratio of at least 1"
        )
    found = [(h, units // h) for h in range(1, units + 1)]
    longest = [(h, w) for h, w in found if units // w == h]
    fits = [(h, w) for h, w in longest if max(h / w, w / h) <= most_ratio]
    if not fits:
        raise ValueError(
            f"no size of multiples of {multiple} within {area} pixels has a ratio of at most "
            f"{most_ratio}; raise config.data.buckets' most_ratio or area, or lower its multiple"
        )
    return tuple((h * multiple, w * multiple) for h, w in fits)


class Bucket(NamedTuple):
    """A size (height, width) and the examples, or groups of variants, resized to it, int64 [n]."""

    size: Size
    members: np.ndarray


def assign_buckets(image_sizes: np.ndarray, sizes: Sequence[Size], batch_size: int) -> list[Bucket]:
    """Each example in the bucket of nearest aspect ratio, by the difference of logarithms.

    A bucket that cannot fill a batch is dropped, and its examples go to the next nearest; one
    warning names all of these.

    Args:
        image_sizes: (height, width) of each example, [n, 2].
        sizes: sizes of the buckets; of equal ratios the first is taken.
        batch_size: smallest number of examples of a bucket.

    Raises:
        ValueError: if none can fill a batch.
    """
    left, missing = list(dict.fromkeys(sizes)), {}
    while True:
        nearest = _nearest(image_sizes, left)
        counts = np.bincount(nearest, minlength=len(left))
        if counts.max() < batch_size:
            raise ValueError(
                f"batch_size is {batch_size}, but the largest of the buckets, "
                f"{_text(left[int(counts.argmax())])}, has only {counts.max()} of "
                f"{len(image_sizes)} examples; choose a smaller batch, or fewer buckets."
            )
        least = int(counts.argmin())
        if counts[least] >= batch_size:
            break
        missing[left.pop(least)] = counts[least]
    if missing:
        told = ", ".join(f"{_text(size)} ({n})" for size, n in missing.items())
        warnings.warn(
            f"config.data.buckets: these have fewer examples than a batch of {batch_size} and are "
            f"left out, what they have going to the nearest others: {told}",
            stacklevel=2,
        )
    return [Bucket(size, np.flatnonzero(nearest == j)) for j, size in enumerate(left)]


def match_buckets(image_sizes: np.ndarray, leading: Sequence[Bucket]) -> list[Bucket]:
    """Examples of one set in the buckets of another set, which determines each step's bucket.

    A bucket of the other set that is nearest to none of these examples gets those of the nearest
    bucket that has some: square pictures are combined with every shape.

    Args:
        image_sizes: (height, width) of each image, int [n, 2].
        leading: the other set's buckets, from ``assign_buckets``.
    """
    sizes = [bucket.size for bucket in leading]
    nearest = _nearest(image_sizes, sizes)
    filled = np.unique(nearest)
    lender = filled[_nearest(np.array(sizes), [sizes[j] for j in filled])]
    return [Bucket(size, np.flatnonzero(nearest == lender[j])) for j, size in enumerate(sizes)]


def _nearest(image_sizes: np.ndarray, sizes: Sequence[Size]) -> np.ndarray:
    """Index of the size with the aspect ratio nearest to each image's, int64 [n]."""
    ratios = np.log(image_sizes[:, 0] / image_sizes[:, 1])
    return np.argmin(np.abs(ratios[:, None] - np.log([h / w for h, w in sizes])), 1)


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


class Turns(NamedTuple):
    """The bucket of each step: equation (1).

    Attributes:
        counts: n_j, number of examples of each bucket, at least ``batch_size``.
        batch_size: B.
        seed: seed of the order.
        shuffle: whether to shuffle an epoch's batches; otherwise one bucket follows the other.
    """

    counts: tuple[int, ...]
    batch_size: int
    seed: int
    shuffle: bool

    def before(self, epoch: int) -> list[int]:
        """Number of batches of each bucket before an epoch."""
        return [epoch * n // self.batch_size for n in self.counts]

    def at(self, step: int) -> tuple[int, int]:
        """(bucket, the number of its batch, from 0) at a step."""
        epoch = step * self.batch_size // sum(self.counts)  # or one of the next few
        while sum(self.before(epoch + 1)) <= step:
            epoch += 1
        whose, number = _epoch(self, epoch)
        place = step - sum(self.before(epoch))
        return int(whose[place]), int(number[place])


@functools.lru_cache(maxsize=4)
def _epoch(turns: Turns, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(bucket, number of its batch) of all batches of an epoch, int64 [m] each."""
    first, end = np.array(turns.before(epoch)), np.array(turns.before(epoch + 1))
    whose = np.repeat(np.arange(len(first)), end - first)
    if turns.shuffle:
        whose = whose[order.shuffled(len(whose), turns.seed, epoch)]
    number = np.empty_like(whose)
    for j, (a, b) in enumerate(zip(first, end, strict=True)):
        number[whose == j] = np.arange(a, b)
    return whose, number


def by_bucket(
    source: Source,
    spec: DataSpec,
    leader: Source | None = None,
    groups: Sequence[np.ndarray] | None = None,
) -> tuple[Callable[[int], dict[str, Any]], int]:
    """(step -> this process's part of the batch, batches in the first epoch) of a set of images.

    Args:
        source: the images.
        spec: the batches.
        leader: the set ``spec.beside``, whose buckets and order are used; None for the images'
            own.
        groups: variants of one thing (``balance.groups_of``), in the set whose order is used: a
            thing is in one bucket, by the mean of its variants' aspect ratios, and a variant is
            drawn each time.  None for single images.

    Raises:
        ValueError: as ``assign_buckets``.
    """
    led = source if leader is None else leader
    assert source.sizes is not None and led.sizes is not None  # ``check_against`` ensures images
    sizes = led.sizes() if groups is None else _of_things(led.sizes(), groups)
    found = assign_buckets(sizes, spec.buckets, spec.batch_size)
    counts = tuple(len(bucket.members) for bucket in found)
    turns = Turns(counts, spec.batch_size, _seed(spec.seed, 0), spec.shuffle)
    if leader is not None:
        found, groups = match_buckets(source.sizes(), found), None
        counts = tuple(len(bucket.members) for bucket in found)
    fetches = [_fetch(source, spec, bucket, groups) for bucket in found]
    drawn = functools.lru_cache(maxsize=2 * len(found))(order.shuffled)

    def batch_at(step: int) -> dict[str, Any]:
        j, number = turns.at(step)
        part = (spec.batch_size, spec.process_index, spec.process_count)
        own = order.positions(number, *part)
        which = order.examples(own, counts[j], _seed(spec.seed, j + 1), spec.shuffle, drawn)
        # Random choices are keyed by the position in the run, which is unique to a batch.
        return fetches[j](which, order.positions(step, *part))

    return batch_at, sum(turns.before(1))


def _fetch(source: Source, spec: DataSpec, bucket: Bucket, groups: Any) -> Any:
    """A bucket as a data set of one size: (indices of its members, positions) -> batch."""
    things = None if groups is None else [groups[i] for i in bucket.members]
    own = bucket.members if things is None else np.concatenate(things)
    n = len(own)
    share = spec.cache_bytes * n // source.info.num_examples
    part = Source(source.info._replace(num_examples=n), lambda indices: source.read(own[indices]))
    fetch = image_fetch(part, spec._replace(image_size=bucket.size, cache_bytes=share))
    if things is None:
        return fetch
    variants = np.split(np.arange(n), np.cumsum([len(thing) for thing in things])[:-1])
    return lambda which, where: fetch(members(variants, which, where, spec.seed), where)


def _of_things(image_sizes: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """(height, width) of each thing, [n, 2]: geometric means over its variants."""
    return np.exp([np.log(image_sizes[group]).mean(0) for group in groups])


def _seed(seed: int, stream: int) -> int:
    """A separate seed for each of several orders."""
    return (seed + (stream + 1) * 2**32) % 2**64


BUCKETS: dict[str, Callable[..., tuple[Size, ...]]] = {"buckets": buckets}
