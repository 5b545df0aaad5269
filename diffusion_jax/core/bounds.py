"""Clipping of a student's x0 to the range of the data, such as that of pixels, in its loss."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

Clip = Callable[[Array], Array]
"""x0 -> clipped x0, which is what a loss compares."""


def no_clip(x0: Array) -> Array:
    """x0 as it is: for latents and points, which have no range."""
    return x0


def clip_to(low: float = -1.0, high: float = 1.0) -> Clip:
    """Clip to [low, high]; outside, a gradient passes only if descent leads back into the range.

    Values at the very edge, such as a black background, so leave room beyond it for the network's
    errors.  With the gradient of a plain clip, a wrong value outside the range would stay there.

    Args:
        low, high: range of the data.
    """

    @jax.custom_vjp
    def clip(x0: Array) -> Array:
        return jnp.clip(x0, low, high)

    def backward(x0: Array, slope: Array) -> tuple[Array]:
        farther = ((x0 < low) & (slope > 0)) | ((x0 > high) & (slope < 0))
        return (jnp.where(farther, 0.0, slope),)

    clip.defvjp(lambda x0: (clip(x0), x0), backward)
    return clip
