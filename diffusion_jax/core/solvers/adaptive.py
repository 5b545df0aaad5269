"""The probability-flow ODE by an adaptive solver of diffrax, to a tolerance.

In the coordinate of rectified flow, z = x/(alpha + sigma), u = sigma/(alpha + sigma), the ODE
dz/du = eps - x0 is finite at both ends; a step from one level to the next is one integration, which
takes as many internal steps as the tolerance needs.
"""

from __future__ import annotations

import diffrax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers.runge_kutta import FLOW
from diffusion_jax.core.solvers.steps import one_level
from diffusion_jax.core.types import Solver, like


def adaptive(
    process: Process,
    method: str = "tsit5",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 4096,
) -> Solver:
    """Integrate from level to level with steps in which no example exceeds the tolerance.

    The steps are those that the hardest example of the batch needs, so another is better than it
    would be alone, and within the tolerance of that.  A grid of two levels is enough; more levels
    are more points at which x is returned.  Differentiable in reverse mode.

    Args:
        process: gives the levels in between.
        method: "tsit5" or "dopri5" (orders 5 with an embedded 4), "heun" (2 with 1).
        rtol, atol: relative and absolute tolerance of a step's error, > 0.
        max_steps: largest number of steps of one integration.

    Raises:
        ValueError: for an unknown method or a tolerance that is not positive.
    """
    if method not in METHODS:
        raise ValueError(f"adaptive(method={method!r}): known are {', '.join(METHODS)}")
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"adaptive(rtol={rtol}, atol={atol}): both must be positive")

    def step(key, denoise, x, now, nxt, state):
        del key
        one_level("adaptive", now)

        def velocity(u, z, args):
            del args
            level = process.at_log_snr(FLOW.log_snr(u))
            return FLOW.velocity(denoise(z * like(FLOW.scale(level), z), level)).astype(z.dtype)

        start, end = FLOW.clock(now), FLOW.clock(nxt)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            METHODS[method](),
            t0=start,
            t1=end,
            dt0=None,
            y0=x / like(FLOW.scale(now), x),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=_worst),
            max_steps=max_steps,
        )
        assert solution.ys is not None
        return solution.ys[0] * like(FLOW.scale(nxt), x), state

    return Solver(lambda x: (), step)


def _worst(error: Array) -> Array:
    """The largest root mean square of an example's scaled error [b, ...]."""
    square = jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
    largest = jnp.max(square)
    # The root has no derivative at 0, and diffrax differentiates the norm.
    return jnp.where(largest > 0, jnp.sqrt(jnp.where(largest > 0, largest, 1.0)), 0.0)


METHODS = {"tsit5": diffrax.Tsit5, "dopri5": diffrax.Dopri5, "heun": diffrax.Heun}

__all__ = ["METHODS", "adaptive"]
