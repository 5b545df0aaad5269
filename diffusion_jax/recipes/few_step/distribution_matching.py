"""Distribution matching distillation, DMD (Yin et al. 2024a).

The student's y = G_θ(z) shall have the teacher's distribution.  The gradient of the KL divergence
between the two noised distributions is a difference of scores,

    ∇_θ D_KL = E[w_t·alpha_t·(s_fake(x_t, t) - s_real(x_t, t))·dG/dθ],                         (1)

where x_t = alpha·y + sigma·eps and s = -(x_t - alpha·μ)/sigma² of a denoiser μ (their equations 4
to 7): the teacher's, and that of a network trained on y at the same time (their equation 6).  With

    w_t = sigma_t²/alpha_t²·1/mean|μ_real(x_t, t) - y|                                         (2)

it is (μ_fake - μ_real)/mean|μ_real - y|, as in their code (equation 8 has alpha_t for alpha_t²).
In addition the student regresses on what a deterministic solver makes of the same noise,

    L = D_KL + λ·d(G_θ(z), ODE_teacher(z)),   λ = 0.25,                                        (3)

which keeps it from dropping modes (their equation 9); pairs are generated as they are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.bounds import Clip, no_clip
from diffusion_jax.core.losses import Distance, squared
from diffusion_jax.core.types import (
    Context,
    Denoise,
    Model,
    NoiseLevel,
    Params,
    Recipe,
    Report,
)
from diffusion_jax.recipes.few_step import players
from diffusion_jax.recipes.few_step.players import FAKE, NET, DrawLevels, stop_gradient
from diffusion_jax.recipes.few_step.reflow import Coupling
from diffusion_jax.recipes.few_step.teachers import Teacher
from diffusion_jax.recipes.inputs import encode


def distribution_matching(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    teacher: Teacher,
    coupling: Coupling,
    noise_level: NoiseLevel,
    ratio: int = 1,
    regression_weight: float = 0.25,
    pair_share: float = 1.0,
    distance: Distance | None = None,
    draw_levels: DrawLevels | None = None,
    clip: Clip = no_clip,
) -> Recipe:
    """Equation (3), for a one-step student.

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> a network's parameters.
        teacher: see ``teachers.Teacher``.
        coupling: pairs (x0, eps), such as those of ``reflow.pairs_from_teacher``.
        noise_level: [] the level of pure noise, at which the student is evaluated.
        ratio: the student is updated in the last of so many steps (``players.on_turn``).
        regression_weight: λ of (3).
        pair_share: share of the batch for which pairs are generated, in (0, 1]; they are most of a
            step's cost.
        distance: d; None for the squared distance.
        draw_levels: levels of (1) and of the fake score's training; None for
            ``players.uniform_levels()``.
        clip: clipping of the student's output, such as ``bounds.clip_to()``.

    Returns:
        A Recipe over params {"net": ..., "fake": ...}.
    """
    draw_levels, distance = draw_levels or players.uniform_levels(), distance or squared()
    scale = jnp.hypot(noise_level.alpha, noise_level.sigma)

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, z_key, fake_key, match_key, pair_key, net_key = jax.random.split(key, 6)
        x0, cond = encode(model, context.frozen, batch, codec_key)
        fake = stop_gradient(params[FAKE])

        def generate(net: Params, eps: Array, cond: Any) -> Array:
            level = jax.tree.map(lambda c: jnp.broadcast_to(c, eps.shape[:1]), noise_level)
            return players.student_output(model, net, scale * eps, level, cond, net_key, clip)

        z = jax.random.normal(z_key, x0.shape, x0.dtype)
        generated = stop_gradient(generate(params[NET], z, cond))
        fake_loss = players.denoising_loss(
            model, params[FAKE], fake_key, generated, cond, draw_levels
        )

        def student(net: Params):
            y = generate(net, z, cond)
            x, _, level = players.add_noise(match_key, draw_levels, stop_gradient(y), model.process)
            fake_denoise = players.frozen_denoiser(model, fake, cond)
            grad = distribution_matching_gradient(
                teacher(context.frozen, cond), fake_denoise, stop_gradient(y), x, level
            )
            matching = players.loss_with_gradient(y, grad)
            first = lambda leaf: leaf[: max(1, round(pair_share * leaf.shape[0]))]
            pair_cond = jax.tree.map(first, cond)
            goal, eps = stop_gradient(
                coupling(pair_key, context.frozen, pair_cond, batch, first(x0))
            )
            regression = distance(generate(net, eps, pair_cond), goal).mean()
            metrics = {"matching": matching, "regression": regression}
            return matching + regression_weight * regression, metrics

        value, metrics = players.on_turn(student, params[NET], context.step, ratio)
        metrics |= {
            "fake": fake_loss,
            "spread": players.spread(generated),
            "spread_real": players.spread(x0),
        }
        return value + fake_loss, Report(metrics)

    return Recipe(players.initialiser(model, init_net), loss)


def distribution_matching_gradient(
    real: Denoise, fake: Denoise, generated: Array, x: Array, level: NoiseLevel
) -> Array:
    """Equation (1) with (2): the gradient with respect to the student's output, [b, ...].

    Args:
        real, fake: the denoisers of teacher and fake score.
        generated: the student's output.
        x: the student's output, noised.
        level: [b].
    """
    real_x0, fake_x0 = real(x, level).x0, fake(x, level).x0
    return stop_gradient((fake_x0 - real_x0) / players.normaliser(generated, real_x0))
