"""Improved distribution matching distillation, DMD2 (Yin et al. 2024b).

DMD without its regression, and so without pairs:

  * the fake score moves in every step, the student in the last of ``ratio`` (their section 4.2);
  * real data, of which the teacher knows less than they say, play by a discriminator: heads on the
    fake score's middle features of data and of what the student makes, both noised (section 4.3),

        L_net  = D_KL + w·softplus(-D(F(y_t, t))),
        L_fake = denoising of y + u·(softplus(-D(F(x_t, t))) + softplus(D(F(y_t, t)))),        (1)

    F of the fake score, which is trained by both of its terms;
  * a student of several calls is trained on x that it came to itself (section 4.5).

D_KL is (1) of ``distribution_matching``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from diffusion_jax.core.bounds import Shown, as_is
from diffusion_jax.core.types import Context, Model, Params, Recipe, Report
from diffusion_jax.recipes.few_step import critics, players
from diffusion_jax.recipes.few_step.critics import Critic, Features
from diffusion_jax.recipes.few_step.distribution_matching import matching
from diffusion_jax.recipes.few_step.players import DISCRIMINATOR, FAKE, NET, Draw, Start, still
from diffusion_jax.recipes.few_step.teachers import Teacher
from diffusion_jax.recipes.inputs import encode


def improved_distribution_matching(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    teacher: Teacher,
    start: Start,
    critic: Critic,
    features: Features,
    ratio: int = 5,
    telling: float = 0.01,
    draw: Draw | None = None,
    noise: Draw | None = None,
    shown: Shown = as_is,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> a network's parameters.
        teacher: see ``recipes.teachers``.
        start: ``players.simulated`` of the levels that the student is sampled at.
        critic: D; its weight is w.
        features: F, of parameters such as the fake score's.
        ratio: the student moves in the last of so many steps.
        telling: u.
        draw: levels of D_KL and of the fake score's training; None for ``players.between()``.
        noise: levels that D sees; None for all of them.
        shown: of what the student makes, such as ``bounds.inside()``.

    Returns:
        A Recipe over params {"net": ..., "fake": ..., "discriminator": ...}.
    """
    draw, noise = draw or players.between(), noise or players.between(0.0, 1.0)

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_start, of_fake, of_match, of_real, of_made, of_net = jax.random.split(key, 7)
        x0, cond = encode(model, context.frozen, batch, of_codec)
        x, level = start(of_start, params, cond, x0)
        fake, heads = still(params[FAKE]), still(params[DISCRIMINATOR])

        def generate(net: Params) -> Array:
            return players.made_by(model, net, x, level, cond, of_net, shown)

        def seen(net: Params, key: Array, clean: Array) -> list[Array]:
            x_t, _, at = players.noised(key, noise, clean, model.process)
            return features(net, x_t, at, cond)

        made = still(generate(params[NET]))
        own = players.denoising(model, params[FAKE], of_fake, made, cond, draw)
        real, of_it = seen(params[FAKE], of_real, x0), seen(params[FAKE], of_made, made)
        told, metrics = critics.told_apart(critic, params[DISCRIMINATOR], real, of_it, cond)

        def student(net: Params):
            y = generate(net)
            x_t, _, at = players.noised(of_match, draw, still(y), model.process)
            of_fake_score = players.denoiser_of(model, fake, cond)
            grad = matching(teacher(context.frozen, cond), of_fake_score, still(y), x_t, at)
            matched = players.pulled(y, grad)
            fooled = critics.fooled(critic, heads, seen(fake, of_made, y), cond)
            return matched + fooled, {"matching": matched, "generator": fooled}

        value, of_student = players.on_turn(student, params[NET], context.step, ratio)
        metrics |= {**of_student, "fake": own}
        metrics |= {"spread": players.spread(made), "spread_real": players.spread(x0)}
        return value + own + telling * told, Report(metrics)

    heads = critics.initialiser(critic, features)
    return Recipe(players.initialiser(model, init_net, heads=heads), loss)
