"""Shortcut models (Frans et al. 2025, "One Step Diffusion via Shortcut Models").

s(x, t, d) is the mean velocity of a step of size d: two steps of d make one of 2d, and a step of
size 0 is flow matching,

    L = ‖s_θ(x, t, 0) - v‖² + ‖s_θ(x, t, 2d) - stopgrad(½·s(x, t, d) + ½·s(x', t - d, d))‖²,  (1)

x' = x - d·s(x, t, d), t = 1 being noise (their equation 5 and algorithm 1).  Here the network is
told the end t - d in place of d, and the mean is the ``secant`` of the two steps, which on any path
and for any target is what the one step has to be.  d is 1/2, 1/4, ... 1/finest of the time; the
finest half steps are taken with the denoiser, as d = 0.

One batch holds both terms: the share ``bootstrap`` of it learns the second.  It is progressive
distillation of all stages at once, with itself as the teacher.
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
from diffusion_jax.recipes.few_step.consistency import TargetParams, averaged
from diffusion_jax.recipes.few_step.continuous_consistency import Velocity, of_data
from diffusion_jax.recipes.few_step.progressive import step_in_two
from diffusion_jax.recipes.few_step.teachers import Tell, nothing, still
from diffusion_jax.recipes.few_step.two_times import choose, initialiser
from diffusion_jax.recipes.inputs import encode_and_drop


def shortcut(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    velocity: Velocity | None = None,
    proposal: Proposal | None = None,
    finest: int = 128,
    bootstrap: float = 0.125,
    target: TargetParams = averaged,
    weight: Weight | None = None,
    tell: Tell = nothing,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (1), each term as the mean over its part of the batch, weighed by that part.

    Args:
        model: the student's, told ``end``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        velocity: of v; None for ``of_data()``, the paper's; ``of_teacher(teacher)`` distils.
        proposal: of t in the first term, without importance weights; None for ``uniform()``.
        finest: number of the smallest steps, a power of 2, at least 2.
        bootstrap: share of the batch, of 2 examples at least, that learns the second term.
        target: whose two steps are taken: the average (the paper's code), or ``consistency.own``.
        weight: of the level, in both terms; None for ``simple()``.
        tell: what the student is told beside.
        condition_dropout: share of examples whose condition is emptied.

    Returns:
        A Recipe over params {"net": ...}; it reports both terms.

    Raises:
        ValueError: if finest is not a power of 2, or bootstrap not a share.
    """
    if finest < 2 or finest & (finest - 1):
        raise ValueError(f"finest={finest} must be a power of 2, such as 128: steps are halved")
    if not 0 < bootstrap < 1:
        raise ValueError(f"bootstrap={bootstrap} is a share: give a number between 0 and 1")
    velocity, proposal, weight = velocity or of_data(), proposal or uniform(), weight or simple()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_drop, of_tell, of_level, of_step, of_noise, of_net = jax.random.split(key, 7)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, of_codec, of_drop
        )
        cond = {**cond, **tell(of_tell, x0.shape[0])}
        b = x0.shape[0]
        doubled = min(max(round(bootstrap * b), 1), b - 1)
        n = steps(jax.random.fold_in(of_step, 1), doubled, finest)
        start, middle, last = step_in_two(of_step, doubled, model.process, n)
        level = proposal.draw(of_level, b - doubled, model.process, ())[0]
        now, end = _joined(start, level), _joined(last, level)
        eps = jax.random.normal(of_noise, x0.shape, x0.dtype)
        x = corrupt(x0, eps, now)

        first = lambda tree: jax.tree.map(lambda leaf: leaf[:doubled], tree)
        rest = lambda tree: jax.tree.map(lambda leaf: leaf[doubled:], tree)
        own = jumper(model, still(target(params, context)))
        halves = two_steps(own, first(x), start, middle, last, first(cond), 2 * n == finest)
        drawn = rest(Prediction(x0, eps))
        matched = velocity(context.frozen, rest(cond), drawn, rest(x), level)
        x0_goal = jnp.concatenate([halves.x0, matched.x0])
        eps_goal = jnp.concatenate([halves.eps, matched.eps])
        told = {**cond, END: jnp.broadcast_to(model.time_in(end), (b,))}
        out = network_output(model, params, x, now, told, of_net)
        each = weight(now, model.target) * losses.regression(
            model.target, out, x0_goal, eps_goal, now
        )
        report = {"bootstrap": jnp.mean(first(each)), "matching": jnp.mean(rest(each))}
        return jnp.mean(each), Report(report)

    return Recipe(initialiser(model, init_net, tell), loss)


def steps(key: Array, b: int, finest: int) -> Array:
    """The number of steps that are to be learned as one of two, 1, 2, 4 ... finest/2; [b]."""
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
    """The one step that is as two of the jumper, [b, ...].

    Args:
        jumper: the network of two times.
        x: [b, ...] at ``now``.
        now, middle, end: [b].
        cond: the condition.
        smallest: bool [b], where both are steps with the denoiser.
    """

    def step(x: Array, now: NoiseLevel, end: NoiseLevel) -> Array:
        return transfer(jumper(x, now, choose(smallest, now, end), cond), end)

    return secant(x, step(step(x, now, middle), middle, end), now, end)


def _joined(first: NoiseLevel, rest: NoiseLevel) -> NoiseLevel:
    return jax.tree.map(lambda *two: jnp.concatenate(two), first, rest)
