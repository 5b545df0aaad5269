"""The range that data keep, such as that of pixels, for what students say of them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

Shown = Callable[[Array], Array]
"""x0 -> what it is shown as; losses that compare in it see no more of a student than that."""


def as_is(x0: Array) -> Array:
    """x0: of codes and points, which have no range."""
    return x0


def inside(low: float = -1.0, high: float = 1.0) -> Shown:
    """Clip to [low, high], as pixels are; outside, a gradient passes only if descent leads inward.

    What is to be at the very edge, such as a black ground, has then room beyond it for the errors
    of a network.  By a plain clip's gradient, what is outside and should not be would stay there.

    Args:
        low, high: range of the data.
    """

    @jax.custom_vjp
    def shown(x0: Array) -> Array:
        return jnp.clip(x0, low, high)

    def backward(x0: Array, slope: Array) -> tuple[Array]:
        farther = ((x0 < low) & (slope > 0)) | ((x0 > high) & (slope < 0))
        return (jnp.where(farther, 0.0, slope),)

    shown.defvjp(lambda x0: (shown(x0), x0), backward)
    return shown
