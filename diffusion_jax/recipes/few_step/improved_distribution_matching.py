"""Improved distribution matching distillation, DMD2 (Yin et al. 2024b).

DMD without the regression term, and so without pairs:

  * the fake score is updated in every step, the student in the last of ``ratio`` (section 4.2);
  * real data correct the teacher's errors by a discriminator: heads on the fake score's middle
    features of noised data and of the student's noised output (section 4.3),

        L_net  = D_KL + w·softplus(-D(F(y_t, t))),
        L_fake = denoising of y + u·(softplus(-D(F(x_t, t))) + softplus(D(F(y_t, t)))),        (1)

    F of the fake score, which is trained by both of its terms;
  * a multi-step student is trained on x of its own trajectories (section 4.5).

D_KL is (1) of ``distribution_matching``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from diffusion_jax.core.bounds import Clip, no_clip
from diffusion_jax.core.types import Context, Model, Params, Recipe, Report
from diffusion_jax.recipes.few_step import critics, players
from diffusion_jax.recipes.few_step.critics import Critic, Features
from diffusion_jax.recipes.few_step.distribution_matching import distribution_matching_gradient
from diffusion_jax.recipes.few_step.players import (
    DISCRIMINATOR,
    FAKE,
    NET,
    DrawLevels,
    StudentInput,
    stop_gradient,
)
from diffusion_jax.recipes.few_step.teachers import Teacher
from diffusion_jax.recipes.inputs import encode


def improved_distribution_matching(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    teacher: Teacher,
    student_input: StudentInput,
    critic: Critic,
    features: Features,
    ratio: int = 5,
    discriminator_weight: float = 0.01,
    draw_levels: DrawLevels | None = None,
    draw_discriminator_levels: DrawLevels | None = None,
    clip: Clip = no_clip,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> a network's parameters.
        teacher: see ``teachers.Teacher``.
        student_input: ``players.backward_simulation`` of the levels that the student is sampled at.
        critic: D; its weight is w.
        features: F, which takes parameters such as the fake score's.
        ratio: the student is updated in the last of so many steps.
        discriminator_weight: u.
        draw_levels: levels of D_KL and of the fake score's training; None for
            ``players.uniform_levels()``.
        draw_discriminator_levels: levels that D sees; None for all of them.
        clip: clipping of the student's output, such as ``bounds.clip_to()``.

    Returns:
        A Recipe over params {"net": ..., "fake": ..., "discriminator": ...}.
    """
    draw_levels, draw_discriminator_levels = (
        draw_levels or players.uniform_levels(),
        draw_discriminator_levels or players.uniform_levels(0.0, 1.0),
    )

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, input_key, fake_key, match_key, real_key, generated_key, net_key = (
            jax.random.split(key, 7)
        )
        x0, cond = encode(model, context.frozen, batch, codec_key)
        x, level = student_input(input_key, params, cond, x0)
        fake, heads = stop_gradient(params[FAKE]), stop_gradient(params[DISCRIMINATOR])

        def generate(net: Params) -> Array:
            return players.student_output(model, net, x, level, cond, net_key, clip)

        def noised_features(net: Params, key: Array, clean: Array) -> list[Array]:
            x_t, _, at = players.add_noise(key, draw_discriminator_levels, clean, model.process)
            return features(net, x_t, at, cond)

        generated = stop_gradient(generate(params[NET]))
        fake_loss = players.denoising_loss(
            model, params[FAKE], fake_key, generated, cond, draw_levels
        )
        real_features, generated_features = (
            noised_features(params[FAKE], real_key, x0),
            noised_features(params[FAKE], generated_key, generated),
        )
        discriminator, metrics = critics.discriminator_loss(
            critic, params[DISCRIMINATOR], real_features, generated_features, cond
        )

        def student(net: Params):
            y = generate(net)
            x_t, _, at = players.add_noise(match_key, draw_levels, stop_gradient(y), model.process)
            fake_denoise = players.frozen_denoiser(model, fake, cond)
            grad = distribution_matching_gradient(
                teacher(context.frozen, cond), fake_denoise, stop_gradient(y), x_t, at
            )
            matching = players.loss_with_gradient(y, grad)
            generator = critics.generator_loss(
                critic, heads, noised_features(fake, generated_key, y), cond
            )
            return matching + generator, {"matching": matching, "generator": generator}

        value, student_metrics = players.on_turn(student, params[NET], context.step, ratio)
        metrics |= {**student_metrics, "fake": fake_loss}
        metrics |= {"spread": players.spread(generated), "spread_real": players.spread(x0)}
        return value + fake_loss + discriminator_weight * discriminator, Report(metrics)

    heads = critics.initialiser(critic, features)
    return Recipe(players.initialiser(model, init_net, heads=heads), loss)
