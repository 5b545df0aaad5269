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
    times = 1 - np.arange(n) / n
    return at_times(process, times if steps is None else np.round(times * steps) / steps)


def leading(process: Process, n: int, offset: int = 0) -> NoiseLevel:
    """i = 1 + k·⌊T/n⌋ + offset, k = n-1..0 (Ho et al. 2020; offset is "steps_offset" elsewhere).

    The first level is short of t = 1; on a continuous schedule t = (k + ½)/n.
    """
    steps = check(process, n)
    k = np.arange(n)[::-1]
    if steps is None:
        return at_times(process, (k + 0.5) / n)
    return at_times(process, np.minimum(1 + k * (steps // n) + offset, steps) / steps)


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
    first = 0.0 if steps is None else 1 / steps
    return at_times(process, np.linspace(1, first, n) if n > 1 else np.ones(1))


def dpm_linspace(process: Process, n: int) -> NoiseLevel:
    """``linspace`` of n + 1 levels without the cleanest: the last step to data is a long one.

    Diffusers' "linspace" of DPM-Solver, UniPC and DEIS.
    """
    steps = check(process, n)
    if steps is None:
        return at_times(process, np.linspace(1, 0, n + 1)[:-1])
    return at_times(process, (1 + np.round(np.linspace(0, steps - 1, n + 1)))[:0:-1] / steps)


def dpm_leading(process: Process, n: int, offset: int = 0) -> NoiseLevel:
    """i = 1 + k·⌊T/(n + 1)⌋ + offset, k = n..1: diffusers' "leading" of the same solvers."""
    steps = check(process, n)
    k = np.arange(n + 1)[:0:-1]
    if steps is None:
        return at_times(process, (k + 0.5) / (n + 1))
    return at_times(process, np.minimum(1 + k * (steps // (n + 1)) + offset, steps) / steps)


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
