"""EDICT: an exactly invertible sampler (Wallace et al. 2023).

Two coupled copies of x take turns: each is moved by the eps that the network predicts of the other,
so that each half step is inverted by the same evaluation.  After both moved they are mixed,
x' = p·x + (1 - p)·y, which keeps them together.  The step from a level to a cleaner one and the
step back are inverses up to rounding, whatever the network is; rounding grows by about 1/(2p - 1)
per step back.
"""

from __future__ import annotations

import jax
from jaxtyping import Array

from diffusion_jax.core.solvers.steps import one_level
from diffusion_jax.core.types import NoiseLevel, Solver, like


def edict(mixing: float | Array = 0.93) -> Solver:
    """EDICT; its state is the second copy, which ``sampling.walk`` needs for the inverse.

    Two network evaluations per step.  Levels must have alpha > 0 and sigma > 0.

    Args:
        mixing: p, 0.5 to 1; may be traced.
    """
    p = mixing

    def to_cleaner(denoise, x, y, now, nxt):
        x = _move(denoise, x, y, now, nxt, now)
        y = _move(denoise, y, x, now, nxt, now)
        x = p * x + (1 - p) * y
        return x, p * y + (1 - p) * x

    def to_noisier(denoise, x, y, now, nxt):
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        y = _move(denoise, y, x, now, nxt, nxt)
        return _move(denoise, x, y, now, nxt, nxt), y

    def step(key, denoise, x, now, nxt, y):
        del key
        one_level("edict", now)
        down = lambda x, y: to_cleaner(denoise, x, y, now, nxt)
        up = lambda x, y: to_noisier(denoise, x, y, now, nxt)
        return jax.lax.cond(nxt.log_snr > now.log_snr, down, up, x, y)

    return Solver(lambda x: x, step)


def _move(
    denoise, x: Array, other: Array, now: NoiseLevel, nxt: NoiseLevel, noisier: NoiseLevel
) -> Array:
    """x from ``now`` to ``nxt`` along the eps predicted of the other copy at the noisier level."""
    eps = denoise(other, noisier).eps
    ratio = nxt.alpha / now.alpha
    return like(ratio, x) * x + like(nxt.sigma - ratio * now.sigma, x) * eps


__all__ = ["edict"]
