"""Sampling: one ``lax.scan`` of a solver's step over a grid of levels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.core.types import Denoise, NoiseLevel, Solver


def prior(key: Key[Array, ""], shape: tuple[int, ...], levels: NoiseLevel) -> Float[Array, "b ..."]:
    """x_T at the first level of a grid: N(0, alpha² + sigma²), as unit-variance data would give.

    On the variance preserving path this is N(0, I); the data's own mean is taken as 0.
    """
    scale = jnp.sqrt(levels.alpha[0] ** 2 + levels.sigma[0] ** 2)
    return scale * jax.random.normal(key, shape)


def sample(
    key: Key[Array, ""],
    solver: Solver,
    denoise: Denoise,
    x: Float[Array, "b ..."],
    levels: NoiseLevel,
) -> Float[Array, "b ..."]:
    """Walk x from levels[0] to the clean level.

    n levels are n - 1 steps of the solver and then the step to sigma = 0, which for every solver is
    the predicted x0: n network calls for a solver of one call a step.

    Args:
        key: randomness of stochastic solvers.
        solver: see ``core.solvers``.
        denoise: the (guided) model.
        x: [b, ...] at levels[0], such as ``prior`` gives.
        levels: [n] noisiest first, n >= 1; traced, so another grid of this length compiles nothing.

    Returns:
        The sample, [b, ...].
    """
    now, nxt, last = pairs(levels)
    keys = jax.random.split(key, now.t.shape[0])

    def body(carry, inputs):
        (x, state), (key, now, nxt) = carry, inputs
        return solver.step(key, denoise, x, now, nxt, state), None

    (x, _), _ = jax.lax.scan(body, (x, solver.init(x)), (keys, now, nxt))
    return denoise(x, last).x0


def trajectory(
    key: Key[Array, ""],
    solver: Solver,
    denoise: Denoise,
    x: Float[Array, "b ..."],
    levels: NoiseLevel,
) -> tuple[Float[Array, "n b ..."], Float[Array, "n b ..."]]:
    """As ``sample``, and keep the way: the same key gives the same sample.

    Returns:
        (x_t, predicted x0), each [n, b, ...], at every level; the last predicted x0 is the sample.
        Costs one more network call a step.
    """
    now, nxt, last = pairs(levels)
    keys = jax.random.split(key, now.t.shape[0])

    def body(carry, inputs):
        (x, state), (key, now, nxt) = carry, inputs
        seen = (x, denoise(x, now).x0)
        return solver.step(key, denoise, x, now, nxt, state), seen

    (x, _), (xs, x0s) = jax.lax.scan(body, (x, solver.init(x)), (keys, now, nxt))
    final = denoise(x, last).x0
    return jnp.concatenate([xs, x[None]]), jnp.concatenate([x0s, final[None]])


def pairs(levels: NoiseLevel) -> tuple[NoiseLevel, NoiseLevel, NoiseLevel]:
    """(levels[:-1], levels[1:], levels[-1]) of a grid."""
    take = lambda index: jax.tree.map(lambda leaf: leaf[index], levels)
    return take(slice(None, -1)), take(slice(1, None)), take(-1)


__all__ = ["pairs", "prior", "sample", "trajectory"]
