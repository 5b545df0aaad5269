"""Grids along a curve of s = sigma/alpha between two levels of a table, as diffusers makes them.

They differ from ``grids.karras`` and ``grids.beta`` in where they end, which may be at the ends of
another grid, and in the time that the network is told: that of the table at each s, which some of
its schedulers round, some cut off, and one replaces by log(s)/4.  So t need not belong to log_snr.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.special import betaincinv

from diffusion_jax.core.process import Process
from diffusion_jax.core.table_grids import (
    at_times,
    check,
    fractional_linspace,
    leading,
    trailing,
)
from diffusion_jax.core.types import NoiseLevel

_RHO = 7.0
_BETA = 0.6

CURVES: dict[str, Callable[[Array, Array, int], Array]] = {
    "karras": lambda high, low, n: (
        (high ** (1 / _RHO) + jnp.linspace(0.0, 1.0, n) * (low ** (1 / _RHO) - high ** (1 / _RHO)))
        ** _RHO
    ),
    "exponential": lambda high, low, n: jnp.exp(jnp.linspace(jnp.log(high), jnp.log(low), n)),
    "beta": lambda high, low, n: (
        low + betaincinv(_BETA, _BETA, 1 - np.linspace(0, 1, n)) * (high - low)
    ),
}
"""(s at the noisy end, at the clean end, n) -> s [n]: Karras et al. 2022, eq. 5, at ρ = 7; even in
log s; and at the quantiles of a Beta(0.6, 0.6), here of s where Lee et al. 2024 have those of t."""

TOLD: dict[str, Callable[[Array, Array], Array]] = {
    "exact": lambda index, s: index,
    "rounded": lambda index, s: jnp.round(index),
    "cut": lambda index, s: jnp.floor(index),
    "log": lambda index, s: jnp.log(s) / 4,
}
"""(index in the table of T, s) -> what the network is told in its place."""


def curve(
    process: Process,
    n: int,
    shape: str = "karras",
    ends: str = "table",
    offset: int = 0,
    s_min: float | None = None,
    s_max: float | None = None,
    told: str = "exact",
    short: bool = False,
) -> NoiseLevel:
    """n levels along a curve, with the times that the network is told.

    Args:
        process: the model's, a table of T levels.
        n: levels.
        shape: of ``CURVES``.
        ends: where it begins and ends: of the whole table, or of the grid of n levels "leading",
            "trailing" or "linspace" (``fractional_linspace``).
        offset: of "leading".
        s_min, s_max: in place of these ends.
        told: of ``TOLD``.
        short: whether the table's noisiest level counts as just short of its index, as it does in
            diffusers by the rounding of some tables, which shows where times are cut off.

    Raises:
        ValueError: without a table, or for a name that is not known.
    """
    steps = check(process, n)
    if steps is None:
        raise ValueError(
            f"sampler.grid: curve({shape!r}) needs a table of levels, and this schedule is "
            "continuous; take karras() or uniform_log_snr()"
        )
    for name, value, known in (
        ("shape", shape, CURVES),
        ("ends", ends, ENDS),
        ("told", told, TOLD),
    ):
        if value not in known:
            raise ValueError(f"sampler.grid: curve({name}={value!r}): known are {', '.join(known)}")
    at = ENDS[ends](process, n, offset)
    s_of = lambda i: jnp.exp(-at.log_snr[i] / 2)
    high = s_of(0) if s_max is None else jnp.asarray(s_max, at.log_snr.dtype)
    low = s_of(-1) if s_min is None else jnp.asarray(s_min, at.log_snr.dtype)
    s = CURVES[shape](high, low, n)
    level = process.at_log_snr(-2 * jnp.log(s))
    index = jnp.clip(level.t * steps - 1, 0, steps - 1)
    if s_max is None:  # an end is a step of the table, whatever the rounding
        index = index.at[0].set(at.t[0] * steps - 1 - (1e-2 if short else 0.0))
    return level._replace(t=(TOLD[told](index, s) + 1) / steps)


def log_told(process: Process, n: int, spacing: str = "linspace", offset: int = 0) -> NoiseLevel:
    """Levels of a spacing in time, of which the network is told log(s)/4.

    Args:
        process, n: see ``curve``.
        spacing: "leading", "trailing" or "linspace", as ``ends`` of ``curve``.
        offset: of "leading".
    """
    levels = ENDS[spacing](process, n, offset)
    return levels._replace(t=_log_time(process, levels))


def log_linear(
    process: Process, n: int, spacing: str = "linspace", offset: int = 0, log: bool = False
) -> NoiseLevel:
    """n levels even in log s, of n + 1 from the noisiest to the cleanest of the table.

    Diffusers' ``interpolation_type="log_linear"``: the network is told the times of its spacing.

    Args:
        process, n, spacing, offset: see ``log_told``.
        log: whether log(s)/4 is told instead.
    """
    spaced = ENDS[spacing](process, n, offset)
    table = _table(process, n, 0)
    levels = process.at_log_snr(jnp.linspace(table.log_snr[0], table.log_snr[-1], n + 1)[:-1])
    return levels._replace(t=_log_time(process, levels) if log else spaced.t)


def _log_time(process: Process, levels: NoiseLevel) -> Array:
    return (-levels.log_snr / 8 + 1) / (process.schedule.steps or 1000)


def _table(process: Process, n: int, offset: int) -> NoiseLevel:
    del n, offset
    return at_times(process, np.array([1.0, 1 / (process.schedule.steps or 1000)]))


ENDS: dict[str, Callable[[Process, int, int], NoiseLevel]] = {
    "table": _table,
    "leading": leading,
    "trailing": lambda process, n, offset: trailing(process, n),
    "linspace": lambda process, n, offset: fractional_linspace(process, n),
}
