"""DDIM: move along the predicted x0 and eps, with any share of fresh noise."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.noise import Noise, white
from diffusion_jax.core.process import transition
from diffusion_jax.core.solvers.steps import follow
from diffusion_jax.core.types import NoiseLevel, Solver, like


def ddim(eta: float | Array = 0.0, noise: Noise = white) -> Solver:
    """x_s = alpha_s·x0 + sqrt(sigma_s² - up²)·eps + up·z, up² = eta²·β̃ (Song et al. 2021, eq. 12).

    eta = 0 is deterministic, a first-order step of the probability-flow ODE on every path; eta = 1
    is the DDPM posterior.  In y = x/alpha these are Euler's method and k-diffusion's "Euler
    ancestral"; on the rectified path, flow-matching Euler.  Nothing divides by alpha or sigma, so
    grids may start at alpha = 0.

    Args:
        eta: [] share of the posterior's noise, 0 to 1; may be traced.
        noise: source of fresh noise.
    """
    ode = isinstance(eta, (int, float)) and eta == 0

    def step(key, denoise, x, now, nxt, state):
        prediction = denoise(x, now)
        if ode:
            return follow(prediction, nxt), state
        up, down = ancestral_split(now, nxt, eta)
        mean = follow(prediction, nxt._replace(sigma=down))
        return mean + like(up, x) * noise(key, x, now, nxt), state

    return Solver(lambda x: (), step)


def ancestral_split(now: NoiseLevel, nxt: NoiseLevel, eta: float | Array) -> tuple[Array, Array]:
    """(up, down): deviations at ``nxt`` of fresh and of kept noise; up² + down² = sigma_s².

    up² = eta²·β̃, never more than sigma_s².  A step to a noisier level has no fresh noise.
    """
    up = jnp.minimum(eta * jnp.sqrt(jnp.maximum(transition(now, nxt).variance, 0.0)), nxt.sigma)
    return up, jnp.sqrt(jnp.maximum(nxt.sigma**2 - up**2, 0.0))
