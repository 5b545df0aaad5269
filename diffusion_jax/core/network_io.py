"""A network's inputs from the noise level: the factor on x, and the time input.

Both are functions of a NoiseLevel, from the factories in the two tables at the end, so that a
checkpoint's convention is data beside it and no network depends on a schedule.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.types import NoiseLevel

LevelFunction = Callable[[NoiseLevel], Float[Array, "*n"]]
"""level -> float32, shaped as the level."""

# λ is infinite at the ends of time.  ±20 covers every image schedule (sigma from 5e-5 to 1 - 1e-9);
# ±40 leaves EDM's log-sigma untouched for s = sigma/alpha from 2e-9 to 5e8.
_LOG_SNR_RANGE = 20.0
_EDM_LOG_SNR_RANGE = 40.0


def discrete(steps: int = 1000) -> LevelFunction:
    """t·T - 1: the index 0 ... T-1 of a level in a table of T (Ho et al. 2020); -1 at t = 0.

    Args:
        steps: T, at least 1.

    Raises:
        ValueError: if steps is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1: it is the length of the noise table.")
    return lambda level: _float32(level.t) * steps - 1


def continuous(scale: float = 1000.0) -> LevelFunction:
    """scale·t, for schedules over continuous time t in [0, 1] (Song et al. 2021).

    Args:
        scale: the value at t = 1.
    """
    return lambda level: _float32(level.t) * scale


def log_snr(scale: float = 1000.0) -> LevelFunction:
    """scale·(20 - λ)/40 with λ clipped to ±20: 0 (clean) to scale (noise), whatever the schedule.

    A network so conditioned may be sampled under another schedule than it was trained on
    (Kingma et al. 2021, section 4.1, conditions on λ for this reason).

    Args:
        scale: the value at λ = -20.
    """

    def of(level: NoiseLevel) -> Array:
        clipped = jnp.clip(_float32(level.log_snr), -_LOG_SNR_RANGE, _LOG_SNR_RANGE)
        return scale * (_LOG_SNR_RANGE - clipped) / (2 * _LOG_SNR_RANGE)

    return of


def edm_noise() -> LevelFunction:
    """EDM's c_noise = log(sigma/alpha)/4 = -λ/8, λ clipped to ±40 (Karras et al. 2022, table 1)."""

    def of(level: NoiseLevel) -> Array:
        return -jnp.clip(_float32(level.log_snr), -_EDM_LOG_SNR_RANGE, _EDM_LOG_SNR_RANGE) / 8

    return of


def unit() -> LevelFunction:
    """1: the network gets x unscaled."""
    return lambda level: jnp.ones_like(_float32(level.sigma))


def edm_scale(sigma_data: float = 0.5) -> LevelFunction:
    """EDM's c_in = 1/sqrt(sigma² + alpha²·sigma_data²): unit variance (Karras et al. 2022, eq. 7).

    Written for x = alpha·x0 + sigma·eps on any path; alpha = 1 gives the paper's.

    Args:
        sigma_data: standard deviation of the data, above 0.

    Raises:
        ValueError: if sigma_data is not above 0.
    """
    if sigma_data <= 0:
        raise ValueError(f"sigma_data={sigma_data} must be above 0: it is a standard deviation.")
    return lambda level: 1 / jnp.hypot(_float32(level.sigma), sigma_data * _float32(level.alpha))


def _float32(x: Array) -> Array:
    return jnp.asarray(x, jnp.float32)


TIME_INPUTS: dict[str, Callable[..., LevelFunction]] = {
    "discrete": discrete,
    "continuous": continuous,
    "log_snr": log_snr,
    "edm": edm_noise,
}

SCALE_INPUTS: dict[str, Callable[..., LevelFunction]] = {"unit": unit, "edm": edm_scale}
