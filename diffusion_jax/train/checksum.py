"""Checksums of arrays that do not depend on their sharding.

    c = Σ_i word_i · (2i + 1)  mod 2^32

over an array's bits as 32-bit words (one for each narrower element), i being the index in the whole
array.  An odd factor is invertible mod 2^32, so a change of one word always changes c; and
the sum can be taken over parts, each process summing its own.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def checksums(tree: Any) -> list[int]:
    """One number in [0, 2^32) per leaf, the same on every process and for every sharding."""
    sums = np.asarray([_of_leaf(leaf) for leaf in jax.tree.leaves(tree)], np.uint32)
    if jax.process_count() > 1:
        everyone = np.asarray(multihost_utils.process_allgather(sums))
        sums = np.add.reduce(everyone, axis=0, dtype=np.uint32)
    return [int(c) for c in sums]


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of JSON's types, with its own checksum under "checksum"."""
    return {**record, "checksum": _of_record(record)}


def unsealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its checksum; one that has none is returned as it is.

    Raises:
        ValueError: if the checksum is wrong.
    """
    content = {name: value for name, value in record.items() if name != "checksum"}
    if "checksum" in record and record["checksum"] != _of_record(content):
        raise ValueError("the checksum of its metadata is wrong")
    return content


def _of_record(record: Mapping[str, Any]) -> int:
    as_read = json.loads(json.dumps(dict(record)))
    return zlib.crc32(json.dumps(as_read, sort_keys=True).encode())


def _of_leaf(leaf: Any) -> np.uint32:
    """The checksum of this process's parts, each part counted by one process only."""
    if isinstance(leaf, jax.Array):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        mine = [s for s in leaf.addressable_shards if s.replica_id == 0]
        parts = [_of_part(np.asarray(s.data), s.index, leaf.shape) for s in mine]
        return np.sum(parts, dtype=np.uint32)
    # Every process has all of a host array; the first one counts it.
    return _of_part(leaf, (), leaf.shape) if jax.process_index() == 0 else np.uint32(0)


def _of_part(part: np.ndarray, where: tuple[slice, ...], shape: tuple[int, ...]) -> np.uint32:
    words = _words(part)
    starts = [s.start or 0 for s in where] + [0] * (words.ndim - len(where))
    whole = (*shape, *words.shape[len(shape) :])
    # Overflow wraps around on purpose, here and below.
    index = np.zeros((1,) * words.ndim, np.uint32)
    for axis, (start, size) in enumerate(zip(starts, words.shape, strict=True)):
        stride = np.prod(whole[axis + 1 :], dtype=np.uint32)
        along = np.arange(start, start + size, dtype=np.uint32) * stride
        index = index + along.reshape(-1, *(1,) * (words.ndim - axis - 1))
    return np.sum(words * (2 * index + 1), dtype=np.uint32)


def _words(x: np.ndarray) -> np.ndarray:
    """The bits of x as uint32, of x's shape, with another axis for elements of 8 bytes or more."""
    size = x.dtype.itemsize
    x = np.ascontiguousarray(x).reshape(x.shape)
    if size > 4:
        return x.reshape(*x.shape, 1).view(np.uint32)
    return x.view(f"uint{8 * size}").astype(np.uint32)
