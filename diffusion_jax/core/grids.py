"""Grids: which n levels a sampler visits, noisiest first.

Each is (process, n) -> NoiseLevel of [n].  On a table of T steps the times are steps i/T of the
table (any subsequence is a valid DDIM or DDPM grid); on a continuous schedule they are the same
formulas with T = infinity.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core.process import Process
from diffusion_jax.core.types import NoiseLevel

Grid = Callable[[Process, int], NoiseLevel]

# λ beyond this is noise-free (or data-free) to float32; rectified flow's ends are infinite.
_LARGEST_LOG_SNR = 18.0


def at_times(process: Process, times: Float[Array | np.ndarray, "n"]) -> NoiseLevel:
    """The levels of any list of times in (0, 1], noisiest first."""
    return process.at(jnp.asarray(times, jnp.result_type(float)))


def trailing(process: Process, n: int) -> NoiseLevel:
    """t = 1, 1 - 1/n, ..., 1/n: always starts from pure noise (Lin et al. 2024, table 2).

    On a table: i = round(T - k·T/n), k = 0..n-1.
    """
    steps = _check(process, n)
    times = 1 - np.arange(n) / n
    return at_times(process, times if steps is None else np.round(times * steps) / steps)


def leading(process: Process, n: int) -> NoiseLevel:
    """i = 1 + k·⌊T/n⌋, k = n-1..0 (Ho et al. 2020; diffusers' "leading" with steps_offset 0).

    The first level is short of t = 1; on a continuous schedule t = (k + ½)/n.
    """
    steps = _check(process, n)
    k = np.arange(n)[::-1]
    return at_times(process, (k + 0.5) / n if steps is None else (1 + k * (steps // n)) / steps)


def linspace(process: Process, n: int) -> NoiseLevel:
    """n equal steps from t = 1 to the first level (t = 1/T, or 0 if continuous), both included."""
    steps = _check(process, n)
    if steps is None:
        return at_times(process, np.linspace(1, 0, n) if n > 1 else np.ones(1))
    return at_times(process, np.round(np.linspace(steps, 1, n)) / steps)


def uniform_log_snr(process: Process, n: int) -> NoiseLevel:
    """Equal steps of λ over what the schedule spans, both ends included (Lu et al. 2022)."""
    _check(process, n)
    first, last = (process.at(jnp.asarray(t)).log_snr for t in (1.0, _first_time(process)))
    bound = lambda lam: jnp.clip(lam, -_LARGEST_LOG_SNR, _LARGEST_LOG_SNR)
    return process.at_log_snr(jnp.linspace(bound(first), bound(last), n))


def truncate(levels: NoiseLevel, strength: float) -> NoiseLevel:
    """The last part of a grid, for starting in the middle (SDEdit, Meng et al. 2022).

    Args:
        levels: [n].
        strength: in (0, 1], the share of the n steps to keep (at least one).

    Raises:
        ValueError: if strength is outside of (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength = {strength} is not in (0, 1]; 1 keeps every step")
    n = levels.t.shape[0]
    keep = max(1, round(n * strength))
    return NoiseLevel(*(leaf[n - keep :] for leaf in levels))


def _first_time(process: Process) -> float:
    return 1 / process.schedule.steps if process.schedule.steps else 0.0


def _check(process: Process, n: int) -> int | None:
    steps = process.schedule.steps
    if n < 1:
        raise ValueError(f"sampler.steps = {n}; a sampler needs at least 1 step")
    if steps is not None and n > steps:
        raise ValueError(
            f"sampler.steps = {n} is more than the {steps} steps of the process's table; "
            f"ask for at most {steps}"
        )
    return steps


GRIDS: dict[str, Grid] = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "uniform_log_snr": uniform_log_snr,
}
