"""Adversarial diffusion distillation, ADD (Sauer et al. 2023).

The student denoises data that are noised to one of the few levels that it will be sampled at,
x_s = alpha·x0 + sigma·eps, into y.  A discriminator has to take y for real, and the teacher's
denoised y has to be near y,

    L_net = w·generator(D(f(y))) + λ·c(t)·‖y - sg μ_real(y_t, t)‖²,                            (1)

y_t = alpha·sg y + sigma·eps, c(t) = alpha_t (their equations 1, 2 and 4).  D are heads on the
features f of pixels of a frozen network; their losses are those of ``critics``.  The distillation
term alone would pull y to means: it is D that keeps the distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.bounds import Clip, no_clip
from diffusion_jax.core.losses import mean_per_example
from diffusion_jax.core.types import Cond, Context, Denoise, Model, Params, Recipe, Report
from diffusion_jax.recipes.few_step import critics, players
from diffusion_jax.recipes.few_step.critics import Critic
from diffusion_jax.recipes.few_step.players import (
    DISCRIMINATOR,
    NET,
    DrawLevels,
    StudentInput,
    stop_gradient,
)
from diffusion_jax.recipes.few_step.teachers import Teacher
from diffusion_jax.recipes.inputs import encode

CleanFeatures = Callable[[Params, Array, Array, Cond], list[Array]]
"""(``Context.frozen``, key, x0 [b, ...], cond) -> features of clean data, real or generated."""


def adversarial(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    teacher: Teacher,
    student_input: StudentInput,
    critic: Critic,
    clean_features: CleanFeatures,
    heads: Callable[[Array, Params, Array, Cond], Params],
    ratio: int = 1,
    distillation_weight: float = 1.0,
    draw_levels: DrawLevels | None = None,
    clip: Clip = no_clip,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        teacher: see ``teachers.Teacher``.
        student_input: ``players.noised_data`` of the levels that the student is sampled at.
        critic: D; its weight is w.
        clean_features: f: ``pixel_features``, or ``latent_adversarial.teacher_features``.
        heads: (key, the network's parameters, x, cond) -> the discriminator's parameters.
        ratio: the student is updated in the last of so many steps.
        distillation_weight: λ.
        draw_levels: levels of the distillation term; None for ``players.uniform_levels()``.
        clip: clipping of the student's output, such as ``bounds.clip_to()``.

    Returns:
        A Recipe over params {"net": ..., "discriminator": ...}.
    """
    draw_levels = draw_levels or players.uniform_levels()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, input_key, real_key, generated_key, teacher_key, net_key = jax.random.split(
            key, 6
        )
        x0, cond = encode(model, context.frozen, batch, codec_key)
        x, level = student_input(input_key, params, cond, x0)

        def generate(net: Params) -> Array:
            return players.student_output(model, net, x, level, cond, net_key, clip)

        features = lambda key, clean: clean_features(context.frozen, key, clean, cond)
        generated = stop_gradient(generate(params[NET]))
        real_features, generated_features = (
            features(real_key, x0),
            features(generated_key, generated),
        )
        discriminator, metrics = critics.discriminator_loss(
            critic, params[DISCRIMINATOR], real_features, generated_features, cond
        )

        def student(net: Params):
            y = generate(net)
            generator = critics.generator_loss(
                critic, params[DISCRIMINATOR], features(generated_key, y), cond
            )
            distillation = distillation_loss(
                teacher(context.frozen, cond), teacher_key, y, draw_levels, model.process
            )
            return generator + distillation_weight * distillation, {
                "generator": generator,
                "distillation": distillation,
            }

        value, student_metrics = players.on_turn(student, params[NET], context.step, ratio)
        metrics |= {**student_metrics, "spread": players.spread(generated)}
        return value + discriminator, Report({**metrics, "spread_real": players.spread(x0)})

    return Recipe(players.initialiser(model, init_net, fake=False, heads=heads), loss)


def distillation_loss(
    teacher: Denoise, key: Array, generated: Array, draw_levels: DrawLevels, process: Any
) -> Array:
    """c(t)·mean‖y - sg μ_real(y_t, t)‖² of (1), []."""
    x, _, level = players.add_noise(key, draw_levels, stop_gradient(generated), process)
    goal = stop_gradient(teacher(x, level).x0)
    return jnp.mean(level.alpha * mean_per_example((generated - goal) ** 2))


def pixel_features(
    model: Model, features: Callable[[Params, Array], list[Array]], noise: float = 0.0
) -> CleanFeatures:
    """Features of decoded pixels by the network of ``frozen["perceptual"]``.

    Args:
        model: its codec decodes x0.
        features: (``frozen["perceptual"]``, pixels) -> arrays [b, ..., c], as in a ``Perceptual``.
        noise: standard deviation of Gaussian noise on real and generated pixels, so that D cannot
            tell them apart by invisible differences (Sønderby et al. 2017, section 3.3).
    """

    def clean_features(frozen: Params, key: Array, x0: Array, cond: Cond) -> list[Array]:
        del cond
        pixels = model.codec.decode(frozen, x0, jax.random.fold_in(key, 1))
        pixels += noise * jax.random.normal(key, pixels.shape, pixels.dtype)
        return list(features(frozen["perceptual"], pixels))

    return clean_features
