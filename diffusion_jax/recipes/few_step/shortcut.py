"""Shortcut models (Frans et al. 2025, "One Step Diffusion via Shortcut Models").

s(x, t, d) is the mean velocity over a step of size d: two steps of d equal one of 2d, and a step
of size 0 is flow matching,

    L = ‖s_θ(x, t, 0) - v‖² + ‖s_θ(x, t, 2d) - stopgrad(½·s(x, t, d) + ½·s(x', t - d, d))‖²,  (1)

x' = x - d·s(x, t, d), t = 1 being noise (their equation 5 and algorithm 1).  Here the network is
conditioned on the end t - d in place of d, and the mean is the ``secant`` of the two steps, which
is the goal of the one step on any path and for any target.  d is 1/2, 1/4, ... 1/finest of the
time; the smallest half steps are taken with the denoiser, as d = 0.

One batch holds both terms: the share ``bootstrap`` of it learns the second.  It is progressive
distillation in all stages at once, with the network as its own teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import losses
from diffusion_jax.core.flow_maps import END, jumper, secant, transfer
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.proposals import Proposal, uniform
from diffusion_jax.core.targets import network_output
from diffusion_jax.core.types import (
    Cond,
    Context,
    Jumper,
    Model,
    NoiseLevel,
    Params,
    Prediction,
    Recipe,
    Report,
)
from diffusion_jax.core.weighting import Weight, simple
from diffusion_jax.recipes.few_step.consistency import TargetParams, ema_target
from diffusion_jax.recipes.few_step.continuous_consistency import Velocity, data_velocity
from diffusion_jax.recipes.few_step.progressive import draw_student_step
from diffusion_jax.recipes.few_step.teachers import ExtraCond, no_extra_cond, stop_gradient
from diffusion_jax.recipes.few_step.two_times import initialiser, select
from diffusion_jax.recipes.inputs import encode_and_drop


def shortcut(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    velocity: Velocity | None = None,
    proposal: Proposal | None = None,
    finest: int = 128,
    bootstrap: float = 0.125,
    target: TargetParams = ema_target,
    weight: Weight | None = None,
    extra_cond: ExtraCond = no_extra_cond,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (1), each term averaged over its part of the batch and weighted by its share.

    Args:
        model: the student's, conditioned on ``end``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        velocity: v; None for ``data_velocity()``, the paper's; ``teacher_velocity(teacher)``
            distils.
        proposal: how t of the first term is drawn, without importance weights; None for
            ``uniform()``.
        finest: number of steps of the smallest size, a power of 2, at least 2.
        bootstrap: share of the batch, of 2 examples at least, that learns the second term.
        target: parameters of the two steps: ``consistency.ema_target``, as in the paper's code, or
            ``consistency.online_target``.
        weight: loss weight of a level, in both terms; None for ``simple()``.
        extra_cond: what the student is conditioned on beside the batch's condition.
        condition_dropout: share of examples that get the null condition.

    Returns:
        A Recipe over params {"net": ...}; it reports both terms.

    Raises:
        ValueError: if finest is not a power of 2, or bootstrap not a share.
    """
    if finest < 2 or finest & (finest - 1):
        raise ValueError(f"finest={finest} must be a power of 2, such as 128: steps are halved")
    if not 0 < bootstrap < 1:
        raise ValueError(f"bootstrap={bootstrap} is a share: give a number between 0 and 1")
    velocity, proposal, weight = (
        velocity or data_velocity(),
        proposal or uniform(),
        weight or simple(),
    )

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, extra_key, level_key, step_key, noise_key, net_key = jax.random.split(
            key, 7
        )
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, codec_key, drop_key
        )
        cond = {**cond, **extra_cond(extra_key, x0.shape[0])}
        b = x0.shape[0]
        bootstrapped = min(max(round(bootstrap * b), 1), b - 1)
        n = draw_step_counts(jax.random.fold_in(step_key, 1), bootstrapped, finest)
        start, middle, last = draw_student_step(step_key, bootstrapped, model.process, n)
        level = proposal.draw(level_key, b - bootstrapped, model.process, ())[0]
        now, end = _joined(start, level), _joined(last, level)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        x = corrupt(x0, eps, now)

        first = lambda tree: jax.tree.map(lambda leaf: leaf[:bootstrapped], tree)
        rest = lambda tree: jax.tree.map(lambda leaf: leaf[bootstrapped:], tree)
        target_jumper = jumper(model, stop_gradient(target(params, context)))
        bootstrap_goal = two_steps(
            target_jumper, first(x), start, middle, last, first(cond), 2 * n == finest
        )
        drawn = rest(Prediction(x0, eps))
        velocity_goal = velocity(context.frozen, rest(cond), drawn, rest(x), level)
        x0_goal = jnp.concatenate([bootstrap_goal.x0, velocity_goal.x0])
        eps_goal = jnp.concatenate([bootstrap_goal.eps, velocity_goal.eps])
        cond_and_end = {**cond, END: jnp.broadcast_to(model.time_in(end), (b,))}
        out = network_output(model, params, x, now, cond_and_end, net_key)
        per_example = weight(now, model.target) * losses.regression(
            model.target, out, x0_goal, eps_goal, now
        )
        report = {
            "bootstrap": jnp.mean(first(per_example)),
            "matching": jnp.mean(rest(per_example)),
        }
        return jnp.mean(per_example), Report(report)

    return Recipe(initialiser(model, init_net, extra_cond), loss)


def draw_step_counts(key: Array, b: int, finest: int) -> Array:
    """Random numbers of steps, each learned from two half steps: 1, 2, 4 ... finest/2; [b]."""
    return 2 ** jax.random.randint(key, (b,), 0, finest.bit_length() - 1)


def two_steps(
    jumper: Jumper,
    x: Array,
    now: NoiseLevel,
    middle: NoiseLevel,
    end: NoiseLevel,
    cond: Cond,
    smallest: Array,
) -> Prediction:
    """The single step that ends where two steps of the jumper do, [b, ...].

    Args:
        jumper: the network of two times.
        x: [b, ...] at ``now``.
        now, middle, end: [b].
        cond: the condition.
        smallest: bool [b], where both steps are taken with the denoiser.
    """

    def step(x: Array, now: NoiseLevel, end: NoiseLevel) -> Array:
        return transfer(jumper(x, now, select(smallest, now, end), cond), end)

    return secant(x, step(step(x, now, middle), middle, end), now, end)


def _joined(first: NoiseLevel, rest: NoiseLevel) -> NoiseLevel:
    return jax.tree.map(lambda *two: jnp.concatenate(two), first, rest)
