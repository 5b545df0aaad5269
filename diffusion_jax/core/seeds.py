"""Seeds of 64 bits as keys.

JAX without 64-bit integers reads the low 32 bits of a seed and drops the others silently.  Here
the high word is folded into the key of the low one where it is not 0, so seeds below 2**32 have
the keys of ``jax.random.key``, and all 2**64 have keys of their own, whatever the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt32

COUNT = 2**64
"""Seeds are 0 to COUNT - 1."""

Seed = int | UInt32[Array, "2"] | np.ndarray
"""A seed, or its words."""


def words(seeds: int | Sequence[int]) -> np.ndarray:
    """Seeds, [] or [n], as (high, low) words: uint32 [2] or [n, 2], which may be traced.

    Raises:
        ValueError: for a seed outside of 0 to 2**64 - 1.
    """
    numbers = [seeds] if isinstance(seeds, int) else list(seeds)
    for seed in numbers:
        if not 0 <= seed < COUNT:
            raise ValueError(f"seed = {seed} must be 0 to {COUNT - 1}")
    pairs = np.array([(n >> 32, n & 0xFFFFFFFF) for n in numbers], np.uint32).reshape(-1, 2)
    return pairs[0] if isinstance(seeds, int) else pairs


def key(seed: Seed) -> Key[Array, ""]:
    """The key of a seed, or of its ``words``."""
    return _of_words(jax.random.key, seed)


def folded(into: Key[Array, ""], seed: Seed) -> Key[Array, ""]:
    """``jax.random.fold_in`` of a seed, or of its ``words``."""
    return _of_words(partial(jax.random.fold_in, into), seed)


def _of_words(of_low: Callable[[Any], Array], seed: Seed) -> Array:
    high, low = words(seed) if isinstance(seed, int) else seed
    found = of_low(low)
    if isinstance(seed, int) and not high:
        return found
    return jnp.where(high > 0, jax.random.fold_in(found, high), found)
