"""Schedules of noise levels per example, frame or pixel.

A grid of n levels [n] becomes leaves [m, b, f...], which ``sampling.walk`` takes as it takes the
grid, with the x that belongs to its first levels, ``corrupt(x0, eps, first)``.  What stays at a
level stays as it is.  With a network conditioned on a level per frame or pixel (diffusion forcing,
Chen et al. 2024) this is image to video, a rolling window or a soft mask, with no guidance and no
other solver: frames that are held at a clean level are conditions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.process import clean
from diffusion_jax.core.types import NoiseLevel, like


def staggered(levels: NoiseLevel, frames: int, lag: int) -> NoiseLevel:
    """Each frame walks down the grid, ``lag`` steps after the one before (Chen et al. 2024).

    Lag 0 is one level for all, 1 is the pyramid; n - 1, the grid's own number of steps, is one
    frame after the other: autoregressive.

    Args:
        levels: [n].
        frames: f, >= 1.
        lag: in steps, >= 0.

    Returns:
        Levels [n + lag·(f - 1), 1, f].

    Raises:
        ValueError: if frames is below 1 or lag is negative.
    """
    if frames < 1 or lag < 0:
        raise ValueError(f"staggered(frames={frames}, lag={lag}): need frames >= 1 and lag >= 0")
    n = levels.t.shape[0]
    row = jnp.arange(n + lag * (frames - 1))[:, None, None]
    index = jnp.clip(row - lag * jnp.arange(frames), 0, n - 1)
    return jax.tree.map(lambda leaf: leaf[index], levels)


def by_strength(levels: NoiseLevel, strength: Float[Array, "b ..."]) -> NoiseLevel:
    """Each pixel waits until the grid comes to where its strength begins: a soft mask.

    As SDEdit by ``grids.truncate``, with a strength for each: round(n·strength) steps of n, where
    that has the integer below, the one to the clean level included, and none for strength 0, which
    is clean from the start.  What differential diffusion (Levin & Fried 2023) does by replacing
    pixels, exactly.

    Args:
        levels: [n].
        strength: in [0, 1], shaped as levels of their own: [b, h, w, 1], [1, f], ...

    Returns:
        Levels [n, b, ...].
    """
    n = levels.t.shape[0]
    first = n - jnp.round(n * strength).astype(jnp.int32)
    row = jnp.arange(n).reshape(n, *[1] * first.ndim)
    ends = clean(jax.tree.map(lambda leaf: leaf[-1], levels))
    whole = jax.tree.map(lambda leaf, end: jnp.append(leaf, end), levels, ends)
    index = jnp.maximum(row, first)
    return jax.tree.map(lambda leaf: leaf[index], whole)


def held(levels: NoiseLevel, mask: Array, at: NoiseLevel) -> NoiseLevel:
    """Levels where the mask is 1, and ``at`` throughout where it is 0: frames that are given.

    A level next to the clean one (log-SNR 14, or a little noise where the given frames are a
    model's own and have its faults) asks less of a network than the clean one itself.

    Args:
        levels: [n] or [n, b, ...].
        mask: 1 where there is something to generate, shaped as levels of their own.
        at: the level of the given, [].
    """

    def choose(leaf: Array, given: Array) -> Array:
        ways = like(leaf, jnp.zeros((1,) * (1 + mask.ndim))) if leaf.ndim == 1 else leaf
        return jnp.where(mask > 0, ways, given)

    return jax.tree.map(choose, levels, at)


__all__ = ["by_strength", "held", "staggered"]
