"""Adversarial diffusion distillation, ADD (Sauer et al. 2023).

The student denoises data that are noised to one of the few levels that it will be sampled at,
x_s = alpha·x0 + sigma·eps, into y, which a discriminator has to take for real and the teacher for
what it would make of it,

    L_net = w·generator(D(f(y))) + λ·c(t)·‖y - sg μ_real(y_t, t)‖²,                            (1)

y_t = alpha·sg y + sigma·eps, c(t) = alpha_t (their equations 1, 2 and 4).  D are heads on a frozen
network's features f of pixels, which play as ``critics`` says.  The distillation term alone pulls y
to means, so D has to hold the distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.bounds import Shown, as_is
from diffusion_jax.core.losses import mean_per_example
from diffusion_jax.core.types import Cond, Context, Denoise, Model, Params, Recipe, Report
from diffusion_jax.recipes.few_step import critics, players
from diffusion_jax.recipes.few_step.critics import Critic
from diffusion_jax.recipes.few_step.players import DISCRIMINATOR, NET, Draw, Start, still
from diffusion_jax.recipes.few_step.teachers import Teacher
from diffusion_jax.recipes.inputs import encode

Seen = Callable[[Params, Array, Array, Cond], list[Array]]
"""(``Context.frozen``, key, x0 [b, ...], cond) -> features of clean data, real or made."""


def adversarial(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    teacher: Teacher,
    start: Start,
    critic: Critic,
    seen: Seen,
    heads: Callable[[Array, Params, Array, Cond], Params],
    ratio: int = 1,
    distillation: float = 1.0,
    draw: Draw | None = None,
    shown: Shown = as_is,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        teacher: see ``recipes.teachers``.
        start: ``players.noised_data`` of the levels that the student is sampled at.
        critic: D; its weight is w.
        seen: f of the decoded data: ``of_pixels``, or of noised ones (``latent_adversarial``).
        heads: (key, the network's parameters, x, cond) -> the discriminator's parameters.
        ratio: the student moves in the last of so many steps.
        distillation: λ.
        draw: levels of the distillation term; None for ``players.between()``.
        shown: of what the student makes, such as ``bounds.inside()``.

    Returns:
        A Recipe over params {"net": ..., "discriminator": ...}.
    """
    draw = draw or players.between()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_start, of_real, of_made, of_teacher, of_net = jax.random.split(key, 6)
        x0, cond = encode(model, context.frozen, batch, of_codec)
        x, level = start(of_start, params, cond, x0)

        def generate(net: Params) -> Array:
            return players.made_by(model, net, x, level, cond, of_net, shown)

        see = lambda key, clean: seen(context.frozen, key, clean, cond)
        made = still(generate(params[NET]))
        real, of_it = see(of_real, x0), see(of_made, made)
        told, metrics = critics.told_apart(critic, params[DISCRIMINATOR], real, of_it, cond)

        def student(net: Params):
            y = generate(net)
            fooled = critics.fooled(critic, params[DISCRIMINATOR], see(of_made, y), cond)
            apart = distilled(teacher(context.frozen, cond), of_teacher, y, draw, model.process)
            return fooled + distillation * apart, {"generator": fooled, "distillation": apart}

        value, of_student = players.on_turn(student, params[NET], context.step, ratio)
        metrics |= {**of_student, "spread": players.spread(made)}
        return value + told, Report({**metrics, "spread_real": players.spread(x0)})

    return Recipe(players.initialiser(model, init_net, fake=False, heads=heads), loss)


def distilled(teacher: Denoise, key: Array, made: Array, draw: Draw, process: Any) -> Array:
    """c(t)·mean‖y - sg μ_real(y_t, t)‖² of (1), []."""
    x, _, level = players.noised(key, draw, still(made), process)
    goal = still(teacher(x, level).x0)
    return jnp.mean(level.alpha * mean_per_example((made - goal) ** 2))


def of_pixels(
    model: Model, features: Callable[[Params, Array], list[Array]], noise: float = 0.0
) -> Seen:
    """Of pixels through the network of ``frozen["perceptual"]``.

    Args:
        model: its codec decodes what is diffused.
        features: (``frozen["perceptual"]``, pixels) -> arrays [b, ..., c]: of a ``Perceptual``.
        noise: deviation of Gaussian noise on the pixels, real and made, so that D cannot tell them
            apart by what no eye sees (Sønderby et al. 2017, section 3.3).
    """

    def seen(frozen: Params, key: Array, x0: Array, cond: Cond) -> list[Array]:
        del cond
        pixels = model.codec.decode(frozen, x0, jax.random.fold_in(key, 1))
        pixels += noise * jax.random.normal(key, pixels.shape, pixels.dtype)
        return list(features(frozen["perceptual"], pixels))

    return seen
