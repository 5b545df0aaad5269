"""Grids on a table of T noise levels: the levels to visit, noisiest first.

On a continuous schedule they are the same formulas with T = infinity.  ``leading`` and ``linspace``
are those of DDPM and DDIM; libraries define the same names differently for DPM-Solver and UniPC,
which have separate names here.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core.process import Process
from diffusion_jax.core.types import NoiseLevel


def at_times(process: Process, times: Float[Array | np.ndarray, "n"]) -> NoiseLevel:
    """The levels of any list of times in (0, 1], noisiest first."""
    return process.at(jnp.asarray(times, jnp.result_type(float)))


def trailing(process: Process, n: int) -> NoiseLevel:
    """t = 1, 1 - 1/n, ..., 1/n: always starts from pure noise (Lin et al. 2024, table 2).

    On a table: i = round(T - k·T/n), k = 0..n-1.
    """
    steps = check(process, n)
    if steps is None:
        return at_times(process, 1 - np.arange(n) / n)
    # Halves are rounded as diffusers rounds them; for some n it has a step too many, at index -1.
    return at_times(process, np.round(np.arange(steps, 0, -steps / n))[:n] / steps)


def leading(process: Process, n: int, offset: int = 0) -> NoiseLevel:
    """i = 1 + k·⌊T/n⌋ + offset, k = n-1..0 (Ho et al. 2020; offset is "steps_offset" elsewhere).

    The first level is short of t = 1; on a continuous schedule t = (k + ½)/n.  An offset that would
    leave the table is cut to what fits.
    """
    steps = check(process, n)
    k = np.arange(n)[::-1]
    if steps is None:
        return at_times(process, (k + 0.5) / n)
    return at_times(process, _inside(1 + k * (steps // n), offset, steps))


def linspace(process: Process, n: int) -> NoiseLevel:
    """n equal steps from t = 1 to the first level (t = 1/T, or 0 if continuous), both included."""
    steps = check(process, n)
    if n == 1:
        return at_times(process, np.ones(1))
    if steps is None:
        return at_times(process, np.linspace(1, 0, n))
    # Halves are rounded counting from 0, as elsewhere.
    return at_times(process, (1 + np.round(np.linspace(0, steps - 1, n)))[::-1] / steps)


def fractional_linspace(process: Process, n: int) -> NoiseLevel:
    """``linspace`` with times that may be between two steps of a table.

    Diffusers' "linspace" of Euler, Heun, LMS and the other solvers that came from k-diffusion.
    """
    steps = check(process, n)
    if steps is None:
        return at_times(process, np.linspace(1, 0, n) if n > 1 else np.ones(1))
    # Of one level, diffusers' is the cleanest: numpy's linspace(0, T - 1, 1).
    index = np.linspace(0, steps - 1, n)[::-1] if n > 1 else np.full(1, steps - 1.0)
    low = np.floor(index)
    near, far = (
        at_times(process, np.minimum(1 + low + more, steps) / steps) for more in (0.0, 1.0)
    )
    share = index - low
    s = lambda level: jnp.exp(-level.log_snr / 2)
    between = (1 - share) * s(near) + jnp.where(share > 0, share * s(far), 0.0)
    log_snr = jnp.where(share > 0, -2 * jnp.log(between), near.log_snr)
    times = jnp.asarray((1 + index) / steps, near.t.dtype)
    return process.at_log_snr(log_snr)._replace(t=times)


def dpm_linspace(process: Process, n: int, last: int = 0) -> NoiseLevel:
    """``linspace`` of n + 1 levels without the cleanest: the last step to data is a long one.

    Diffusers' "linspace" of DPM-Solver, UniPC and DEIS.

    Args:
        process: the model's.
        n: levels.
        last: the noisiest step of the table to start from, in place of T.
    """
    steps = check(process, n)
    if steps is None:
        return at_times(process, np.linspace(1, 0, n + 1)[:-1])
    most = _most("dpm_linspace", n, last, steps)
    return at_times(process, (1 + np.round(np.linspace(0, most - 1, n + 1)))[:0:-1] / steps)


def dpm_leading(process: Process, n: int, offset: int = 0, last: int = 0) -> NoiseLevel:
    """i = 1 + k·⌊T/(n + 1)⌋ + offset, k = n..1: diffusers' "leading" of the same solvers.

    Args:
        process: the model's.
        n: levels, fewer than T.
        offset: see ``leading``.
        last: in place of T, see ``dpm_linspace``.
    """
    steps = check(process, n)
    k = np.arange(n + 1)[:0:-1]
    if steps is None:
        return at_times(process, (k + 0.5) / (n + 1))
    most = _most("dpm_leading", n, last, steps)
    return at_times(process, _inside(1 + k * (most // (n + 1)), offset, steps))


def _inside(index: np.ndarray, offset: int, steps: int) -> np.ndarray:
    """Times of falling steps of the table, moved up by the offset as far as there is room."""
    return (index + min(offset, steps - int(index[0]))) / steps


def _most(name: str, n: int, last: int, steps: int) -> int:
    """The table's length, or the part of it that is used; levels that would not fall are refused.

    Raises:
        ValueError: for more steps than levels fall over.
    """
    most = last or steps
    if n >= most:
        raise ValueError(
            f"sampler.steps = {n} is too many for the grid {name}, which divides {most} steps of "
            f"the table into one part more; ask for at most {most - 1}, or another sampler.grid"
        )
    return most


def consistency(process: Process, n: int, original: int = 50) -> NoiseLevel:
    """n of the ``original`` levels that a consistency model was distilled on (Luo et al. 2023).

    The originals are i = k·⌊T/original⌋, k = 1..original; of these every ⌊·⌋-th, from the noisiest.

    Args:
        process: the model's process, a table of T levels.
        n: number of steps, at most ``original``.
        original: number of levels of the distillation.
    """
    steps = check(process, n)
    if steps is None or n > original:
        raise ValueError(
            f"sampler.grid: consistency(original={original}) needs a table of levels and at most "
            f"{original} steps, got {n} of {'a continuous schedule' if steps is None else steps}"
        )
    levels = (np.arange(1, original + 1) * (steps // original))[::-1]
    chosen = levels[np.floor(np.linspace(0, original, n, endpoint=False)).astype(int)]
    return at_times(process, chosen / steps)


def check(process: Process, n: int) -> int | None:
    """T of the process's table, None on a continuous schedule.

    Raises:
        ValueError: for fewer than one step, or more than the table has.
    """
    steps = process.schedule.steps
    if n < 1:
        raise ValueError(f"sampler.steps = {n}; a sampler needs at least 1 step")
    if steps is not None and n > steps:
        raise ValueError(
            f"sampler.steps = {n} is more than the {steps} steps of the process's table; "
            f"ask for at most {steps}"
        )
    return steps
