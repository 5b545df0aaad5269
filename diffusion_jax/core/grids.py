"""Grids: which n levels a sampler visits, noisiest first.

Each is (process, n) -> NoiseLevel of [n].  On a table of T steps the times are steps i/T of the
table (any subsequence is a valid DDIM or DDPM grid); on a continuous schedule they are the same
formulas with T = infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.stats import beta as beta_distribution

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


def leading(process: Process, n: int, offset: int = 0) -> NoiseLevel:
    """i = 1 + k·⌊T/n⌋ + offset, k = n-1..0 (Ho et al. 2020; offset is "steps_offset" elsewhere).

    The first level is short of t = 1; on a continuous schedule t = (k + ½)/n.
    """
    steps = _check(process, n)
    k = np.arange(n)[::-1]
    if steps is None:
        return at_times(process, (k + 0.5) / n)
    return at_times(process, np.minimum(1 + k * (steps // n) + offset, steps) / steps)


def linspace(process: Process, n: int) -> NoiseLevel:
    """n equal steps from t = 1 to the first level (t = 1/T, or 0 if continuous), both included."""
    steps = _check(process, n)
    if n == 1:
        return at_times(process, np.ones(1))
    if steps is None:
        return at_times(process, np.linspace(1, 0, n))
    # Halves are rounded as counted from 0, like everywhere else.
    return at_times(process, (1 + np.round(np.linspace(0, steps - 1, n)))[::-1] / steps)


def uniform_log_snr(process: Process, n: int) -> NoiseLevel:
    """Equal steps of λ over what the schedule spans, both ends included (Lu et al. 2022).

    In sigma/alpha this is k-diffusion's "exponential" grid.
    """
    _check(process, n)
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
    _check(process, n)
    first, last = span(process)
    noisy = jnp.where(s_max > 0, s_max, jnp.exp(-first / 2)) ** (1 / rho)
    clean = jnp.where(s_min > 0, s_min, jnp.exp(-last / 2)) ** (1 / rho)
    s = (noisy + jnp.linspace(0.0, 1.0, n) * (clean - noisy)) ** rho
    return process.at_log_snr(-2 * jnp.log(s))


def polyexponential(process: Process, n: int, rho: float = 1.0) -> NoiseLevel:
    """log s falls as (1 - k/(n-1))^ρ; 1 is ``uniform_log_snr``.  As k-diffusion's of this name."""
    _check(process, n)
    first, last = span(process)
    return process.at_log_snr(last + (first - last) * jnp.linspace(1.0, 0.0, n) ** rho)


def beta(process: Process, n: int, a: float = 0.6, b: float = 0.6) -> NoiseLevel:
    """t at the quantiles of a Beta(a, b): denser at both ends (Lee et al. 2024, "Beta sampling").

    Args:
        process: the model's.
        n: levels.
        a, b: of the distribution, > 0; 0.6 is the paper's.
    """
    steps = _check(process, n)
    quantiles = beta_distribution.ppf(np.linspace(1, 0, n), a, b)
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
    _check(process, n)
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


def consistency(process: Process, n: int, original: int = 50) -> NoiseLevel:
    """n of the ``original`` levels that a consistency model was distilled on (Luo et al. 2023).

    The originals are i = k·⌊T/original⌋, k = 1..original; of these every ⌊·⌋-th, from the noisiest.

    Args:
        process: the model's, a table of T levels.
        n: at most ``original``.
        original: levels of the distillation.
    """
    steps = _check(process, n)
    if steps is None or n > original:
        raise ValueError(
            f"sampler.grid: consistency(original={original}) needs a table of levels and at most "
            f"{original} steps, got {n} of {'a continuous schedule' if steps is None else steps}"
        )
    levels = (np.arange(1, original + 1) * (steps // original))[::-1]
    chosen = levels[np.floor(np.linspace(0, original, n, endpoint=False)).astype(int)]
    return at_times(process, chosen / steps)


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

    For solvers that add noise on the way up (``solvers.noising.renoising``).

    Args:
        process: the model's.
        n: all levels, those of the rounds included.
        rounds: K, how often it goes back.
        low, high: t_min and t_max of the restart, in s = sigma/alpha.
        part: levels of each round, from high back to low.
    """
    _check(process, n)
    base = n - rounds * part
    if base < 2 or not 0 < low < high:
        raise ValueError(
            f"sampler.grid: restart(rounds={rounds}, part={part}) leaves {base} of {n} levels for "
            "the way down; give more sampler.steps, and 0 < low < high"
        )
    down = karras(process, base).log_snr
    again = karras(process, part, s_min=low, s_max=high).log_snr
    at = jnp.sum(down < -2 * jnp.log(low))  # where the first way down passes low
    order = jnp.where(jnp.arange(base) < at, jnp.arange(base), jnp.arange(base) + rounds * part)
    log_snr = jnp.zeros(n).at[order].set(down)
    repeated = jnp.tile(again, rounds)
    log_snr = log_snr.at[at + jnp.arange(rounds * part)].set(repeated)
    return process.at_log_snr(log_snr)


def pad(levels: NoiseLevel, n: int) -> NoiseLevel:
    """Repeat the last level up to n: one length for any number of steps (``noising.skipping``).

    Raises:
        ValueError: if there are more than n levels.
    """
    have = levels.t.shape[0]
    if have > n:
        raise ValueError(f"a grid of {have} levels does not fit into a padded maximum of {n}")
    return jax.tree.map(lambda leaf: jnp.pad(leaf, (0, n - have), mode="edge"), levels)


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
    "uniform_log_snr": uniform_log_snr,
    "exponential": uniform_log_snr,
    "karras": karras,
    "polyexponential": polyexponential,
    "beta": beta,
    "table": table,
    "align_your_steps": align_your_steps,
    "consistency": consistency,
    "restart": restart,
}
