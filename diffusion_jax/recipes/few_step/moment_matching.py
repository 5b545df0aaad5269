"""Inductive moment matching, IMM (Zhou, Ermon & Song 2025).

For s <= r < t the jumps from t to s and from r to s should have the same *distribution*, which a
kernel compares by M particles of each,

    L = w(t)·MMD²({f_θ(x_t, t, s)}, {stopgrad f_θ(x_r, r, s)}),                              (1)
    MMD² = mean_ij k(a_i, a_j) + mean_ij k(b_i, b_j) - 2·mean_ij k(a_i, b_j).                (2)

A batch is groups of M examples of the same (s, r, t), and x_r is the DDIM interpolant of x_t and
its own x0: the same noise.  k is Laplace's kernel,

    k(a, b) = exp(-‖a - b‖/(|c_out|·D)),        c_out(t, s) = df/dF,                         (3)

as wide as the network's output can move f.  For M = 1 (1) is consistency training with another
distance: it is the pairs i != j of particles that compare distributions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.flow_maps import jumper, transfer
from diffusion_jax.core.process import Process, corrupt
from diffusion_jax.core.proposals import uniform
from diffusion_jax.core.schedules import elbo_rate
from diffusion_jax.core.targets import determinant
from diffusion_jax.core.types import Context, Model, NoiseLevel, Params, Recipe, Report, Target
from diffusion_jax.recipes.few_step.consistency import (
    Noised,
    TargetParams,
    Transition,
    online_target,
    same_noise,
)
from diffusion_jax.recipes.few_step.teachers import ExtraCond, no_extra_cond, stop_gradient
from diffusion_jax.recipes.few_step.two_times import Times, initialiser, select, uniform_end
from diffusion_jax.recipes.inputs import drop_condition, encode

MiddleLevel = Callable[[Process, NoiseLevel, NoiseLevel], NoiseLevel]
"""(process, now, end) -> the level r between them, [b]."""

LevelWeight = Callable[[Process, NoiseLevel], Array]
"""(process, now) -> w, shaped as the level."""


def less_noise(gap: float) -> MiddleLevel:
    """sigma/alpha reduced by a constant, but not below that of ``end``: the paper's choice.

    Args:
        gap: (η_max - η_min)/2^k of the range of sigma/alpha trained on, k = 12 in the paper.
    """

    def middle_level(process: Process, now: NoiseLevel, end: NoiseLevel) -> NoiseLevel:
        s = now.sigma / now.alpha - gap
        inside = s > end.sigma / end.alpha
        level = process.at_log_snr(-2 * jnp.log(jnp.where(inside, s, 1.0)))
        return select(inside, level, end)

    return middle_level


def less_time(gap: float) -> MiddleLevel:
    """t reduced by a constant, but not below that of ``end``."""

    def middle_level(process: Process, now: NoiseLevel, end: NoiseLevel) -> NoiseLevel:
        t = process.quantise(jnp.maximum(now.t - gap, end.t))
        return select(t > end.t, process.at(t), end)

    return middle_level


def imm_weight(bias: float = 5.0, power: int = 1) -> LevelWeight:
    """½·sigmoid(b - λ)·(-dλ/dt)·alpha^a/(alpha² + sigma²) (their weighting).

    Args:
        bias: b.
        power: a, 1 or 2.
    """

    def weight(process: Process, now: NoiseLevel) -> Array:
        rate = elbo_rate(process, now.t)
        share = now.alpha**power / (now.alpha**2 + now.sigma**2)
        return 0.5 * jax.nn.sigmoid(bias - now.log_snr) * rate * share

    return weight


def moment_matching(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    middle_level: MiddleLevel,
    particles: int = 4,
    times: Times | None = None,
    weight: LevelWeight | None = None,
    transition: Transition | None = None,
    target: TargetParams = online_target,
    extra_cond: ExtraCond = no_extra_cond,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (1), averaged over groups.

    Args:
        model: the student's, conditioned on ``end``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        middle_level: how r is chosen.
        particles: M, which divides the batch; M consecutive examples are a group.  With a
            condition, the examples of a group should share it.
        times: how (t, s) are drawn, once for a group; None for ``uniform_end(uniform())``; t's
            sigma/alpha must be finite.
        weight: None for ``imm_weight()``.
        transition: from x_t to x_r; None for ``consistency.same_noise()``, the paper's; with
            ``consistency.teacher_step`` both sides are points of a teacher's trajectories.
        target: the parameters of the second jump.
        extra_cond: what the student is conditioned on beside the batch's condition.
        condition_dropout: share of groups that get the null condition.

    Returns:
        A Recipe over params {"net": ...}.

    Raises:
        ValueError: from the loss, if particles does not divide the batch.
    """
    times, weight, transition = (
        times or uniform_end(uniform()),
        weight or imm_weight(),
        transition or same_noise(),
    )

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, extra_key, times_key, noise_key, transition_key, net_key = (
            jax.random.split(key, 7)
        )
        x0, cond = encode(model, context.frozen, batch, codec_key)
        groups, rest = divmod(x0.shape[0], particles)
        if rest:
            raise ValueError(f"particles={particles} must divide the batch of {x0.shape[0]}")
        repeat = lambda tree: jax.tree.map(lambda leaf: jnp.repeat(leaf, particles, 0), tree)
        drop = repeat(jax.random.bernoulli(drop_key, condition_dropout, (groups,)))
        cond = drop_condition(drop, cond, model.null(context.frozen, cond))
        cond = {**cond, **repeat(extra_cond(extra_key, groups))}
        group_times = times(times_key, groups, model.process)
        now, end = repeat(group_times)
        r = repeat(middle_level(model.process, *group_times))
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        noised = Noised(x0, eps, corrupt(x0, eps, now), now)
        x_r = transition(transition_key, context.frozen, cond, noised, r)

        def f(params: Params, x: Array, level: NoiseLevel) -> Array:
            moved = transfer(jumper(model, params, net_key)(x, level, end, cond), end)
            return moved.reshape(groups, particles, -1)

        target_particles = f(stop_gradient(target(params, context)), x_r, r)
        width = jnp.maximum(jnp.abs(c_out(model.target, *group_times)), 1e-6)
        mmd = squared_mmd(f(params, noised.x, now), target_particles, width)
        return jnp.mean(weight(model.process, group_times[0]) * mmd), Report({})

    return Recipe(initialiser(model, init_net, extra_cond), loss)


def c_out(target: Target, now: NoiseLevel, end: NoiseLevel) -> Array:
    """c_out = df/dF, the derivative of x at ``end`` in the network's output; shaped as the levels.

    It is s - t for the target ``flow`` on the rectified path.
    """
    return (now.alpha * end.sigma - now.sigma * end.alpha) / determinant(target, now)


def squared_mmd(a: Array, b: Array, width: Array) -> Array:
    """Equation (2) for groups of particles; the pairs i = j count too.

    Args:
        a, b: [groups, particles, d].
        width: |c_out| of (3), [groups].

    Returns:
        [groups], not below 0.
    """
    mean = lambda a, b: jnp.mean(laplace(a, b, width), axis=(1, 2))
    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def laplace(a: Array, b: Array, width: Array, minimum: float = 1e-8) -> Array:
    """Equation (3) for each pair: [groups, m, d], [groups, n, d] -> [groups, m, n].

    Args:
        a, b: particles.
        width: [groups].
        minimum: smaller distances are set to it, and have no gradient.
    """
    square = jnp.sum((a[:, :, None] - b[:, None]) ** 2, axis=-1)
    far = square > minimum**2
    distance = jnp.where(far, jnp.sqrt(jnp.where(far, square, 1.0)), minimum)
    return jnp.exp(-distance / (width[:, None, None] * a.shape[-1]))
