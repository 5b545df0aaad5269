"""Score identity distillation, SiD (Zhou et al. 2024).

With x_t = alpha·y + sigma·eps of what the student makes, and the two denoisers' x0 there, real of
the teacher and fake of a network that is trained on y, the student minimises

    L = w_t·(real - fake)·((real - y) - a·(real - fake)),    w_t = 1/mean|real - y|,            (1)

that is (1 - a)·w_t·‖real - fake‖² + w_t·(real - fake)·(fake - y) (their equation 23).  For an exact
fake score both summands estimate Fisher's divergence between the noised distributions, each with
a bias of its own if it is not; a = 1.2 was best, which takes more than all of the first away.
The gradient goes through x_t in both networks, whose parameters stand still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.bounds import Shown, as_is
from diffusion_jax.core.types import Context, Model, Params, Recipe, Report
from diffusion_jax.recipes.few_step import players
from diffusion_jax.recipes.few_step.players import FAKE, NET, Draw, Start, still
from diffusion_jax.recipes.few_step.teachers import Teacher
from diffusion_jax.recipes.inputs import encode


def score_identity(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    teacher: Teacher,
    start: Start,
    ratio: int = 1,
    a: float = 1.2,
    draw: Draw | None = None,
    shown: Shown = as_is,
) -> Recipe:
    """Equation (1), and denoising of y for the fake score.

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> a network's parameters.
        teacher: see ``recipes.teachers``.
        start: ``players.simulated`` of the levels that the student is sampled at.
        ratio: the student moves in the last of so many steps.
        a: of (1); 1 to 1.2 in the paper.
        draw: levels of (1) and of the fake score's training; None for ``players.between()``.
        shown: of what the student makes, such as ``bounds.inside()``.

    Returns:
        A Recipe over params {"net": ..., "fake": ...}; the data lend their condition alone.
    """
    draw = draw or players.between()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_start, of_fake, of_noise, of_net = jax.random.split(key, 5)
        x0, cond = encode(model, context.frozen, batch, of_codec)
        x, level = start(of_start, params, cond, x0)
        real = teacher(context.frozen, cond)
        fake = players.denoiser_of(model, params[FAKE], cond)

        def generate(net: Params) -> Array:
            return players.made_by(model, net, x, level, cond, of_net, shown)

        made = still(generate(params[NET]))
        own = players.denoising(model, params[FAKE], of_fake, made, cond, draw)

        def student(net: Params):
            y = generate(net)
            x_t, _, at = players.noised(of_noise, draw, y, model.process)
            value = identity(real(x_t, at).x0, fake(x_t, at).x0, y, a)
            return value, {"identity": value}

        value, metrics = players.on_turn(student, params[NET], context.step, ratio)
        metrics |= {"fake": own, "spread": players.spread(made), "spread_real": players.spread(x0)}
        return value + own, Report(metrics)

    return Recipe(players.initialiser(model, init_net), loss)


def identity(real: Array, fake: Array, made: Array, a: float) -> Array:
    """Equation (1), the mean over batch and dimensions, [].

    Args:
        real, fake: x0 of both denoisers, [b, ...].
        made: by the student.
        a: of (1).
    """
    gap = real - fake
    return jnp.mean(gap * (real - made - a * gap) / players.normaliser(made, real))
