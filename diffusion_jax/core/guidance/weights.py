"""How strongly, and at which levels."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.types import NoiseLevel

Weight = float | Array | Callable[[NoiseLevel], Array]
"""A number, a traced [] or [b] array, or a function of the level giving one."""


def weight_at(weight: Weight, level: NoiseLevel, x: Array) -> Array:
    """The weight at a level, [] or [b], in x's dtype."""
    return jnp.asarray(weight(level) if callable(weight) else weight, x.dtype)


def interval(
    scale: Weight, low: float | Array, high: float | Array, outside: float | Array = 1.0
) -> Weight:
    """scale where low <= log_snr < high, ``outside`` elsewhere (Kynkäänniemi et al. 2024).

    Args:
        scale: within the interval.
        low, high: bounds in log-SNR, [] or [b]; may be traced, and infinite.
        outside: 1 leaves the conditional model; 0 fits the strength of ``perturbed``.
    """

    def weight(level: NoiseLevel) -> Array:
        within = (level.log_snr >= low) & (level.log_snr < high)
        return jnp.where(within, weight_at(scale, level, level.log_snr), outside)

    return weight


def sigma_interval(
    scale: Weight, low: float | Array, high: float | Array, outside: float | Array = 1.0
) -> Weight:
    """As ``interval`` in the paper's own terms: low < sigma/alpha <= high.

    log_snr = -2·log(sigma/alpha); low = 0 and high = inf are allowed.
    """
    log_snr = lambda sigma: -2 * jnp.log(jnp.asarray(sigma, jnp.result_type(float)))
    return interval(scale, log_snr(high), log_snr(low), outside)
