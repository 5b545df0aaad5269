"""Distribution matching distillation, DMD (Yin et al. 2024a).

The student's y = G_θ(z) shall have the teacher's distribution.  Of the KL divergence between both,
once noised, the gradient is the difference of two scores,

    ∇_θ D_KL = E[w_t·alpha_t·(s_fake(x_t, t) - s_real(x_t, t))·dG/dθ],                         (1)

where x_t = alpha·y + sigma·eps and s = -(x_t - alpha·μ)/sigma² of a denoiser μ (their equations 4
to 7): the teacher's, and that of a network which learns y all along (their equation 6).  With

    w_t = sigma_t²/alpha_t²·1/mean|μ_real(x_t, t) - y|                                         (2)

it is (μ_fake - μ_real)/mean|μ_real - y|, as in their code (equation 8 has alpha_t for alpha_t²).
Beside it the student regresses to where a deterministic solver takes the same noise,

    L = D_KL + λ·d(G_θ(z), ODE_teacher(z)),   λ = 0.25,                                        (3)

which keeps it from leaving out modes (their equation 9); pairs are made as they are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.bounds import Shown, as_is
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
from diffusion_jax.recipes.few_step.players import FAKE, NET, Draw, still
from diffusion_jax.recipes.few_step.reflow import Coupling
from diffusion_jax.recipes.few_step.teachers import Teacher
from diffusion_jax.recipes.inputs import encode


def distribution_matching(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    teacher: Teacher,
    coupling: Coupling,
    noise: NoiseLevel,
    ratio: int = 1,
    regression: float = 0.25,
    share: float = 1.0,
    distance: Distance | None = None,
    draw: Draw | None = None,
    shown: Shown = as_is,
) -> Recipe:
    """Equation (3), of a student of one call.

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> a network's parameters.
        teacher: see ``recipes.teachers``.
        coupling: pairs (x0, eps), such as ``reflow.solved`` makes.
        noise: [] the level of pure noise, where the student is asked.
        ratio: the student moves in the last of so many steps (``players.on_turn``).
        regression: λ of (3).
        share: of the batch that pairs are made of, in (0, 1]; they are most of a step's cost.
        distance: d; None for the squared one.
        draw: levels of (1) and of the fake score's training; None for ``players.between()``.
        shown: of what the student makes, such as ``bounds.inside()``.

    Returns:
        A Recipe over params {"net": ..., "fake": ...}.
    """
    draw, distance = draw or players.between(), distance or squared()
    scale = jnp.hypot(noise.alpha, noise.sigma)

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_z, of_fake, of_match, of_pair, of_net = jax.random.split(key, 6)
        x0, cond = encode(model, context.frozen, batch, of_codec)
        fake = still(params[FAKE])

        def generate(net: Params, eps: Array, cond: Any) -> Array:
            level = jax.tree.map(lambda c: jnp.broadcast_to(c, eps.shape[:1]), noise)
            return players.made_by(model, net, scale * eps, level, cond, of_net, shown)

        z = jax.random.normal(of_z, x0.shape, x0.dtype)
        made = still(generate(params[NET], z, cond))
        own = players.denoising(model, params[FAKE], of_fake, made, cond, draw)

        def student(net: Params):
            y = generate(net, z, cond)
            x, _, level = players.noised(of_match, draw, still(y), model.process)
            of_fake_score = players.denoiser_of(model, fake, cond)
            grad = matching(teacher(context.frozen, cond), of_fake_score, still(y), x, level)
            matched = players.pulled(y, grad)
            first = lambda leaf: leaf[: max(1, round(share * leaf.shape[0]))]
            few = jax.tree.map(first, cond)
            goal, eps = still(coupling(of_pair, context.frozen, few, batch, first(x0)))
            apart = distance(generate(net, eps, few), goal).mean()
            metrics = {"matching": matched, "regression": apart}
            return matched + regression * apart, metrics

        value, metrics = players.on_turn(student, params[NET], context.step, ratio)
        metrics |= {"fake": own, "spread": players.spread(made), "spread_real": players.spread(x0)}
        return value + own, Report(metrics)

    return Recipe(players.initialiser(model, init_net), loss)


def matching(real: Denoise, fake: Denoise, made: Array, x: Array, level: NoiseLevel) -> Array:
    """Equation (1) with (2): the gradient in what the student makes, [b, ...].

    Args:
        real, fake: the two denoisers, at x and their level.
        made: by the student.
        x: it, noised.
        level: [b].
    """
    of_real, of_fake = real(x, level).x0, fake(x, level).x0
    return still((of_fake - of_real) / players.normaliser(made, of_real))
