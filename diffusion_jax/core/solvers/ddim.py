"""DDIM: move along the predicted x0 and eps, with any share of fresh noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.process import transition
from diffusion_jax.core.types import Solver, like


def ddim(eta: float | Array = 0.0) -> Solver:
    """x_s = alpha_s·x0 + sqrt(sigma_s² - up²)·eps + up·z, up² = eta²·β̃ (Song et al. 2021, eq. 12).

    eta = 0 is deterministic, a first-order step of the probability-flow ODE on every path; eta = 1
    is the DDPM posterior.  Nothing divides by alpha or sigma, so grids may start at alpha = 0.

    Args:
        eta: [] share of the posterior's noise, 0 to 1; may be traced.
    """

    def step(key, denoise, x, now, nxt, state):
        prediction = denoise(x, now)
        up = eta * jnp.sqrt(transition(now, nxt).variance)
        down = jnp.sqrt(jnp.maximum(nxt.sigma**2 - up**2, 0.0))
        mean = like(nxt.alpha, x) * prediction.x0 + like(down, x) * prediction.eps
        return mean + like(up, x) * jax.random.normal(key, x.shape, x.dtype), state

    return Solver(lambda x: (), step)
