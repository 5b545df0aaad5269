"""Steps by a flow map: one evaluation goes from any level to any other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.noise import Noise, white
from diffusion_jax.core.process import Process, clean
from diffusion_jax.core.solvers.steps import follow
from diffusion_jax.core.types import NoiseLevel, Solver, like


def jump(process: Process, gamma: float | Array = 0.0, noise: Noise = white) -> Solver:
    """CTM's γ-sampling (Kim et al. 2024, algorithm 3), on any path.

    With s = sigma/alpha: jump to s_end = sqrt(1 - γ²)·s_nxt, then add γ·s_nxt·z.  γ = 0 is the flow
    itself; γ = 1 is multistep consistency (Song et al. 2023, algorithm 1), where every jump is to
    clean data.  The solver calls denoise(x, now, end), so it needs a ``Jump`` (see ``flow_maps``).

    Args:
        process: gives the level of the jump's end.
        gamma: [] γ in [0, 1]; may be traced.
        noise: source of fresh noise.
    """

    def step(key, denoise, x, now, nxt, state):
        kept = jnp.sqrt(jnp.maximum(1 - jnp.asarray(gamma, nxt.sigma.dtype) ** 2, 0.0))
        prediction = denoise(x, now, _shrunk(process, nxt, kept))
        # In x: alpha_nxt/alpha_end·x_end = alpha_nxt·x0 + kept·sigma_nxt·eps, without a division.
        moved = follow(prediction, nxt._replace(sigma=kept * nxt.sigma))
        return moved + like(gamma * nxt.sigma, x) * noise(key, x, now, nxt), state

    return Solver(lambda x: (), step)


def _shrunk(process: Process, nxt: NoiseLevel, kept: Array) -> NoiseLevel:
    """The level of sigma/alpha times ``kept``; exactly ``nxt`` or clean at the ends of kept."""
    # The schedule is not evaluated at infinitely clean levels, nor at the given ones.
    inside = (kept > 0) & (kept < 1) & jnp.isfinite(nxt.log_snr)
    log_snr = jnp.where(inside, nxt.log_snr - 2 * jnp.log(jnp.where(inside, kept, 1.0)), 0.0)
    between = process.at_log_snr(log_snr)
    end = jax.tree.map(lambda a, b: jnp.where(kept > 0, a, b), nxt, clean(nxt))
    return jax.tree.map(lambda a, b: jnp.where(inside, a, b), between, end)
