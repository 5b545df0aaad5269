"""Order of examples, and their random choices: pure functions of (seed, position).

A run visits one endless sequence of positions 0, 1, 2, ...  Position p lies in epoch p // n and
holds example permutation(seed, epoch)[p % n].  With batches of B, step t has positions t*B ...
t*B + B - 1, and part k of K is the k-th block of B/K of them.  There is no state between steps, so
a run resumes at any step at once, on any number of processes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """A fixed shuffle of range(n), int64 [n]; different for each (seed, epoch); read-only."""
    generator = np.random.Generator(np.random.Philox(key=_words(seed, epoch)))
    found = generator.permutation(n)
    found.setflags(write=False)
    return found


permutation = functools.lru_cache(maxsize=8)(shuffled)
"""``shuffled``, with the last few results cached."""


def _words(seed: int, other: int) -> np.ndarray:
    return np.array([seed % 2**64, other % 2**64], np.uint64)


def positions(step: int, batch_size: int, process_index: int = 0, process_count: int = 1):
    """Positions of this process's part of the batch at ``step``, int64 [batch_size / count]."""
    size = batch_size // process_count
    first = step * batch_size + process_index * size
    return np.arange(first, first + size, dtype=np.int64)


def examples(
    where: np.ndarray, n: int, seed: int, shuffle: bool, drawn: Callable = permutation
) -> np.ndarray:
    """Example indices, int64 in [0, n), at positions ``where`` int64 [b]; ``drawn`` shuffles."""
    epochs, places = np.divmod(where, n)
    if not shuffle:
        return places
    out = np.empty_like(places)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        out[inside] = drawn(n, seed, int(epoch))[places[inside]]
    return out


def uniform(seed: int, stream: int, where: np.ndarray) -> np.ndarray:
    """Independent uniforms in [0, 1), float64 [b], keyed by (seed, stream, position int64 [b]).

    The finaliser of SplitMix64 (Steele, Lea & Flood 2014) over a Weyl sequence: a hash, so no
    generator has to be built for each example.
    """
    with np.errstate(over="ignore"):
        start = _mix(np.uint64(seed % 2**64) + _WEYL * np.uint64(stream + 1))
        bits = _mix(start + _WEYL * (where.astype(np.uint64) + np.uint64(1)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, stream: int, where: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Independent standard normals, float32 [b, *shape], keyed as in ``uniform``."""
    keys = (uniform(seed, stream, where) * 2.0**53).astype(np.uint64)
    draw = lambda key: np.random.Generator(np.random.Philox(key=_words(seed, int(key))))
    return np.stack([draw(key).standard_normal(shape, np.float32) for key in keys])


_WEYL = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
