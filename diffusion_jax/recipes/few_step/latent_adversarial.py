"""Latent adversarial diffusion distillation, LADD (Sauer et al. 2024).

ADD without pixels: the discriminator's features are the frozen teacher's own, of what the student
makes and of data, both noised (their section 3),

    f(y) = blocks of the teacher at (y_t, t),    logit t ~ N(m, s²),                           (1)

so it works in codes, the teacher tells it level and condition, and t chooses what it looks at: much
noise leaves the whole, little the texture.  (m, s) = (1, 1) of the rectified path's t was theirs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.process import Process
from diffusion_jax.core.types import Cond, Model, NoiseLevel, Params
from diffusion_jax.recipes.few_step import players
from diffusion_jax.recipes.few_step.adversarial import Seen
from diffusion_jax.recipes.few_step.critics import Features
from diffusion_jax.recipes.few_step.players import Draw


def of_teacher(model: Model, features: Features, draw: Draw) -> Seen:
    """Equation (1), of the network of ``frozen["teacher"]``; for ``adversarial``.

    Args:
        model: the teacher's.
        features: of its network (``critics.of_network``).
        draw: the levels, such as ``logit_normal()``.
    """

    def seen(frozen: Params, key: Array, x0: Array, cond: Cond) -> list[Array]:
        x, _, level = players.noised(key, draw, x0, model.process)
        return features(frozen["teacher"][players.NET], x, level, cond)

    return seen


def logit_normal(mean: float = 1.0, std: float = 1.0) -> Draw:
    """logit t ~ N(mean, std²), t = sigma/(alpha + sigma): that of the rectified path, on any.

    Its log-odds are log(sigma/alpha), so that this is a normal of -λ/2.
    """

    def draw(key: Array, b: int, process: Process) -> NoiseLevel:
        log_s = mean + std * jax.random.normal(key, (b,), jnp.result_type(float))
        t = jnp.clip(process.at_log_snr(-2 * log_s).t, 1e-3, 1.0)
        return process.at(process.quantise(t))

    return draw
