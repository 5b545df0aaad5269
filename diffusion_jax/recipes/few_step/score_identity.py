"""Score identity distillation, SiD (Zhou et al. 2024).

With x_t = alpha·y + sigma·eps, y the student's output, and the x0 of two denoisers there, real of
the teacher and fake of a network that is trained on y, the student minimises

    L = w_t·(real - fake)·((real - y) - a·(real - fake)),    w_t = 1/mean|real - y|,            (1)

that is (1 - a)·w_t·‖real - fake‖² + w_t·(real - fake)·(fake - y) (their equation 23).  For an exact
fake score both summands estimate the Fisher divergence between the noised distributions; for an
inexact one each has its own bias.  a = 1.2 was best, which gives the first a negative weight.
The gradient flows through x_t in both networks, but not into their parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.bounds import Clip, no_clip
from diffusion_jax.core.types import Context, Model, Params, Recipe, Report
from diffusion_jax.recipes.few_step import players
from diffusion_jax.recipes.few_step.players import (
    FAKE,
    NET,
    DrawLevels,
    StudentInput,
    stop_gradient,
)
from diffusion_jax.recipes.few_step.teachers import Teacher
from diffusion_jax.recipes.inputs import encode


def score_identity(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    teacher: Teacher,
    student_input: StudentInput,
    ratio: int = 1,
    a: float = 1.2,
    draw_levels: DrawLevels | None = None,
    clip: Clip = no_clip,
) -> Recipe:
    """Equation (1), and the denoising loss of the fake score on y.

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> a network's parameters.
        teacher: see ``teachers.Teacher``.
        student_input: ``players.backward_simulation`` of the levels that the student is sampled at.
        ratio: the student is updated in the last of so many steps.
        a: as in (1); 1 to 1.2 in the paper.
        draw_levels: levels of (1) and of the fake score's training; None for
            ``players.uniform_levels()``.
        clip: clipping of the student's output, such as ``bounds.clip_to()``.

    Returns:
        A Recipe over params {"net": ..., "fake": ...}; of the data only cond is used.
    """
    draw_levels = draw_levels or players.uniform_levels()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, input_key, fake_key, noise_key, net_key = jax.random.split(key, 5)
        x0, cond = encode(model, context.frozen, batch, codec_key)
        x, level = student_input(input_key, params, cond, x0)
        real = teacher(context.frozen, cond)
        fake = players.frozen_denoiser(model, params[FAKE], cond)

        def generate(net: Params) -> Array:
            return players.student_output(model, net, x, level, cond, net_key, clip)

        generated = stop_gradient(generate(params[NET]))
        fake_loss = players.denoising_loss(
            model, params[FAKE], fake_key, generated, cond, draw_levels
        )

        def student(net: Params):
            y = generate(net)
            x_t, _, at = players.add_noise(noise_key, draw_levels, y, model.process)
            value = score_identity_loss(real(x_t, at).x0, fake(x_t, at).x0, y, a)
            return value, {"identity": value}

        value, metrics = players.on_turn(student, params[NET], context.step, ratio)
        metrics |= {
            "fake": fake_loss,
            "spread": players.spread(generated),
            "spread_real": players.spread(x0),
        }
        return value + fake_loss, Report(metrics)

    return Recipe(players.initialiser(model, init_net), loss)


def score_identity_loss(real: Array, fake: Array, generated: Array, a: float) -> Array:
    """Equation (1), averaged over batch and dimensions, [].

    Args:
        real, fake: x0 of the two denoisers, [b, ...].
        generated: the student's output y.
        a: as in (1).
    """
    gap = real - fake
    return jnp.mean(gap * (real - generated - a * gap) / players.normaliser(generated, real))
