"""Grids: which n levels a sampler visits, noisiest first.

Each is (process, n) -> NoiseLevel of [n].  Those of the steps of a table are in
``table_grids``; any subsequence of a table is a valid DDIM or DDPM grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.special import betaincinv

from diffusion_jax.core.curve_grids import curve, log_linear, log_told
from diffusion_jax.core.process import Process
from diffusion_jax.core.table_grids import (
    at_times,
    check,
    consistency,
    dpm_leading,
    dpm_linspace,
    fractional_linspace,
    leading,
    linspace,
    trailing,
)
from diffusion_jax.core.types import NoiseLevel

Grid = Callable[[Process, int], NoiseLevel]

# λ beyond this is noise-free (or data-free) to float32; rectified flow's ends are infinite.
_LARGEST_LOG_SNR = 18.0


def uniform_log_snr(process: Process, n: int) -> NoiseLevel:
    """Equal steps of λ over what the schedule spans, both ends included (Lu et al. 2022).

    In sigma/alpha this is k-diffusion's "exponential" grid.
    """
    check(process, n)
    first, last = span(process)
    return process.at_log_snr(jnp.linspace(first, last, n))


def karras(
    process: Process, n: int, rho: float = 7.0, s_min: float = 0.0, s_max: float = 0.0
) -> NoiseLevel:
    """s = sigma/alpha with equal steps of s^(1/ρ) (Karras et al. 2022, eq. 5).

    Args:
        process: the model's.
        n: levels.
        rho: ρ, > 0: the larger, the more levels near the data.
        s_min, s_max: ends of s; 0 for what the process spans.
    """
    check(process, n)
    first, last = span(process)
    noisy = jnp.where(s_max > 0, s_max, jnp.exp(-first / 2)) ** (1 / rho)
    clean = jnp.where(s_min > 0, s_min, jnp.exp(-last / 2)) ** (1 / rho)
    s = (noisy + jnp.linspace(0.0, 1.0, n) * (clean - noisy)) ** rho
    return process.at_log_snr(-2 * jnp.log(s))


def polyexponential(process: Process, n: int, rho: float = 1.0) -> NoiseLevel:
    """log s falls as (1 - k/(n-1))^ρ; 1 is ``uniform_log_snr``.  As k-diffusion's of this name."""
    check(process, n)
    first, last = span(process)
    return process.at_log_snr(last + (first - last) * jnp.linspace(1.0, 0.0, n) ** rho)


def beta(process: Process, n: int, a: float = 0.6, b: float = 0.6) -> NoiseLevel:
    """t at the quantiles of a Beta(a, b): denser at both ends (Lee et al. 2024, "Beta sampling").

    Args:
        process: the model's.
        n: levels.
        a, b: of the distribution, > 0; 0.6 is the paper's.
    """
    steps = check(process, n)
    quantiles = betaincinv(a, b, np.linspace(1, 0, n))
    if steps is None:
        return at_times(process, quantiles)
    return at_times(process, np.round(1 + quantiles * (steps - 1)) / steps)


def table(process: Process, n: int, s: Sequence[float] = ()) -> NoiseLevel:
    """Levels from a list of s = sigma/alpha, resampled to n along log s.

    Args:
        process: the model's.
        n: levels; the list's own length gives the list itself.
        s: noisiest first, positive and falling: found by an optimisation, such as ``TABLES``, or
            by a search such as GITS, or by hand (Sabour et al. 2024, appendix B, resamples so).

    Raises:
        ValueError: if the list is too short, or does not fall.
    """
    check(process, n)
    known = np.log(np.asarray(s, np.float64)) if len(s) else np.zeros(0)
    if len(known) < 2 or not (np.diff(known) < 0).all():
        raise ValueError(f"sampler.grid: table(s={s}) needs two or more falling positive numbers")
    at = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(known)), known)
    return process.at_log_snr(jnp.asarray(-2 * at, jnp.result_type(float)))


def align_your_steps(process: Process, n: int, family: str = "stable_diffusion") -> NoiseLevel:
    """Published levels that minimise a bound on the discretisation error (Sabour et al. 2024).

    Args:
        process: the model's.
        n: levels.
        family: of ``TABLES``.
    """
    if family not in TABLES:
        raise ValueError(
            f"sampler.grid: align_your_steps(family={family!r}): known are {', '.join(TABLES)}"
        )
    return table(process, n, TABLES[family])


def shifted(grid: Grid, shift: float) -> Grid:
    """The levels of a grid with λ moved by -2·log(shift): flow matching's resolution shift.

    u = sigma/(alpha + sigma) becomes shift·u/(1 + (shift - 1)·u) (Esser et al. 2024, eq. 23).
    """
    move = lambda process, levels: process.at_log_snr(levels.log_snr - 2 * jnp.log(shift))
    return lambda process, n: move(process, grid(process, n))


def restart(
    process: Process, n: int, rounds: int = 2, low: float = 0.06, high: float = 0.3, part: int = 4
) -> NoiseLevel:
    """A Karras grid that goes back up from s = low to s = high, ``rounds`` times (Xu et al. 2023).

    For solvers that add noise in steps to a noisier level (``solvers.noising.renoising``).

    Args:
        process: the model's.
        n: all levels, those of the rounds included.
        rounds: K, how often it goes back.
        low, high: t_min and t_max of the restart, in s = sigma/alpha.
        part: levels of each round, from high back to low.
    """
    check(process, n)
    base = n - rounds * part
    if base < 2 or not 0 < low < high:
        raise ValueError(
            f"sampler.grid: restart(rounds={rounds}, part={part}) leaves {base} of {n} levels for "
            "the descent; give more sampler.steps, and 0 < low < high"
        )
    down = karras(process, base).log_snr
    one_round = karras(process, part, s_min=low, s_max=high).log_snr
    at = jnp.sum(down < -2 * jnp.log(low))  # where the first descent passes low
    order = jnp.where(jnp.arange(base) < at, jnp.arange(base), jnp.arange(base) + rounds * part)
    log_snr = jnp.zeros(n).at[order].set(down)
    all_rounds = jnp.tile(one_round, rounds)
    log_snr = log_snr.at[at + jnp.arange(rounds * part)].set(all_rounds)
    return process.at_log_snr(log_snr)


def pad(levels: NoiseLevel, n: int) -> NoiseLevel:
    """Repeat the last level up to n: one length for any number of steps (``noising.skipping``).

    Raises:
        ValueError: if there are more than n levels.
    """
    count = levels.t.shape[0]
    if count > n:
        raise ValueError(f"a grid of {count} levels does not fit into a padded maximum of {n}")
    return jax.tree.map(lambda leaf: jnp.pad(leaf, (0, n - count), mode="edge"), levels)


def reverse(levels: NoiseLevel) -> NoiseLevel:
    """Cleanest first: the grid of an inversion."""
    return jax.tree.map(lambda leaf: leaf[::-1], levels)


def span(process: Process) -> tuple[Array, Array]:
    """λ of the noisiest and of the cleanest level, cut off where float32 sees no noise or data."""
    first, last = (process.at(jnp.asarray(t)).log_snr for t in (1.0, _first_time(process)))
    bound = lambda lam: jnp.clip(lam, -_LARGEST_LOG_SNR, _LARGEST_LOG_SNR)
    return bound(first), bound(last)


def truncate(levels: NoiseLevel, strength: float) -> NoiseLevel:
    """The last part of a grid, for starting in the middle (SDEdit, Meng et al. 2022).

    Args:
        levels: [n].
        strength: in (0, 1], the share of the n steps to keep: ⌊n·strength⌋, as diffusers does.

    Raises:
        ValueError: if strength is outside of (0, 1], or leaves no step.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength = {strength} is not in (0, 1]; 1 keeps every step")
    n = levels.t.shape[0]
    keep = int(n * strength)
    if keep < 1:
        raise ValueError(
            f"strength = {strength} keeps none of {n} steps; take at least {_least(n)}, or more "
            "steps"
        )
    return NoiseLevel(*(leaf[n - keep :] for leaf in levels))


def _least(n: int) -> float:
    """The least strength of few digits that keeps one of n steps."""
    digits = 2
    while int(n * round(1 / n + 0.5 * 10.0**-digits, digits)) < 1:
        digits += 1
    return round(1 / n + 0.5 * 10.0**-digits, digits)


def _first_time(process: Process) -> float:
    return 1 / process.schedule.steps if process.schedule.steps else 0.0


# s = sigma/alpha, noisiest first, 10 steps each (Sabour et al. 2024, appendix B).
TABLES: dict[str, tuple[float, ...]] = {
    "stable_diffusion": (
        14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029,
    ),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "stable_video_diffusion": (
        700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002,
    ),
}  # fmt: skip


GRIDS: dict[str, Callable[..., NoiseLevel]] = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "fractional_linspace": fractional_linspace,
    "dpm_leading": dpm_leading,
    "dpm_linspace": dpm_linspace,
    "uniform_log_snr": uniform_log_snr,
    "exponential": uniform_log_snr,
    "karras": karras,
    "polyexponential": polyexponential,
    "beta": beta,
    "table": table,
    "align_your_steps": align_your_steps,
    "consistency": consistency,
    "restart": restart,
    "curve": curve,
    "log_told": log_told,
    "log_linear": log_linear,
}
