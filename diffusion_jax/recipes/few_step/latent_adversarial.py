"""Latent adversarial diffusion distillation, LADD (Sauer et al. 2024).

ADD without pixels: the discriminator's features are the frozen teacher's, of the student's output
and of data, both noised (their section 3),

    f(y) = blocks of the teacher at (y_t, t),    logit t ~ N(m, s²),                           (1)

so it works in latents, the features know level and condition, and t chooses what D compares:
global structure at much noise, texture at little.  Their (m, s) is (1, 1) on the rectified path.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.process import Process
from diffusion_jax.core.types import Cond, Model, NoiseLevel, Params
from diffusion_jax.recipes.few_step import players
from diffusion_jax.recipes.few_step.adversarial import CleanFeatures
from diffusion_jax.recipes.few_step.critics import Features
from diffusion_jax.recipes.few_step.players import DrawLevels


def teacher_features(model: Model, features: Features, draw_levels: DrawLevels) -> CleanFeatures:
    """Equation (1), by the network of ``frozen["teacher"]``; for ``adversarial``.

    Args:
        model: the teacher's.
        features: features of its network (``critics.network_features``).
        draw_levels: the levels, such as ``logit_normal()``.
    """

    def clean_features(frozen: Params, key: Array, x0: Array, cond: Cond) -> list[Array]:
        x, _, level = players.add_noise(key, draw_levels, x0, model.process)
        return features(frozen["teacher"][players.NET], x, level, cond)

    return clean_features


def logit_normal(mean: float = 1.0, std: float = 1.0) -> DrawLevels:
    """logit t ~ N(mean, std²), t = sigma/(alpha + sigma), the rectified path's t, on any path.

    logit t is log(sigma/alpha), so -λ/2 is normal.
    """

    def draw_levels(key: Array, b: int, process: Process) -> NoiseLevel:
        log_s = mean + std * jax.random.normal(key, (b,), jnp.result_type(float))
        t = jnp.clip(process.at_log_snr(-2 * log_s).t, 1e-3, 1.0)
        return process.at(process.quantise(t))

    return draw_levels
