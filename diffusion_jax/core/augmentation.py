"""Conditioning augmentation: noise on a condition (Ho et al. 2022a, section 4.2).

A stage of a cascade is trained on pictures that are downsampled and noised, at levels of all kinds,
and sampled with the picture of the stage before it, noised too, so that the noise hides its errors.
The network is conditioned on the level.  One function serves training and sampling, and all
conditions that are arrays: low-resolution pictures, first frames, image embeddings.  Noise that the
network is not conditioned on is worse than none (``oracles_conditional.cascade``).
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from diffusion_jax.core.network_io import LevelFunction
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.types import NoiseLevel


def augmented(
    cond: Mapping[str, Array],
    name: str,
    level_name: str,
    level: NoiseLevel,
    key: Key[Array, ""],
    level_in: LevelFunction,
) -> dict[str, Array]:
    """cond with cond[name] at a noise level, and cond[level_name] for it, float32 [b].

    Args:
        cond: conditions, each [b, ...].
        name: which to noise.
        level_name: the network's scalar for the level (``scalars`` of its embedding).
        level: [] or [b], of any process; may be traced.
        key: draws the noise.
        level_in: level -> that scalar, such as ``network_io.discrete(1000)``.

    Raises:
        ValueError: if cond has no such condition.
    """
    if name not in cond:
        raise ValueError(f"augmented({name!r}): the condition has {', '.join(cond) or 'no keys'}")
    clean = cond[name]
    noised = corrupt(clean, jax.random.normal(key, clean.shape, clean.dtype), level)
    scalar = jnp.broadcast_to(jnp.asarray(level_in(level), jnp.float32), clean.shape[:1])
    return {**cond, name: noised.astype(clean.dtype), level_name: scalar}


__all__ = ["augmented"]
