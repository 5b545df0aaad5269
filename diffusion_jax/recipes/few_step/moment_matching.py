"""Inductive moment matching, IMM (Zhou, Ermon & Song 2025).

For s <= r < t the jumps from t to s and from r to s should make the same *distribution*, of which a
kernel judges by M particles each,

    L = w(t)·MMD²({f_θ(x_t, t, s)}, {stopgrad f_θ(x_r, r, s)}),                              (1)
    MMD² = mean_ij k(a_i, a_j) + mean_ij k(b_i, b_j) - 2·mean_ij k(a_i, b_j).                (2)

A batch is groups of M examples of the same (s, r, t), and x_r is the DDIM interpolant of x_t and
its own x0: the same noise.  k is Laplace's kernel,

    k(a, b) = exp(-‖a - b‖/(|c_out|·D)),        c_out(t, s) = df/dF,                         (3)

as wide as the network moves f.  For M = 1 (1) is consistency training in another distance, with
``mean_ij`` over that one pair: it is the pairs i != j that compare distributions.
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
from diffusion_jax.recipes.few_step.consistency import Noised, TargetParams, Way, own, same_noise
from diffusion_jax.recipes.few_step.teachers import Tell, nothing, still
from diffusion_jax.recipes.few_step.two_times import Times, below, choose, initialiser
from diffusion_jax.recipes.inputs import emptied, encode

Between = Callable[[Process, NoiseLevel, NoiseLevel], NoiseLevel]
"""(process, now, end) -> the level r between them, [b]."""

LevelWeight = Callable[[Process, NoiseLevel], Array]
"""(process, now) -> w, shaped as the level."""


def less_noise(gap: float) -> Between:
    """sigma/alpha less by a constant, ``end`` at the least: the paper's choice.

    Args:
        gap: (η_max - η_min)/2^k of the range of sigma/alpha trained on, k = 12 in the paper.
    """

    def between(process: Process, now: NoiseLevel, end: NoiseLevel) -> NoiseLevel:
        s = now.sigma / now.alpha - gap
        inside = s > end.sigma / end.alpha
        level = process.at_log_snr(-2 * jnp.log(jnp.where(inside, s, 1.0)))
        return choose(inside, level, end)

    return between


def less_time(gap: float) -> Between:
    """t less by a constant, ``end`` at the least."""

    def between(process: Process, now: NoiseLevel, end: NoiseLevel) -> NoiseLevel:
        t = process.quantise(jnp.maximum(now.t - gap, end.t))
        return choose(t > end.t, process.at(t), end)

    return between


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
    between: Between,
    particles: int = 4,
    times: Times | None = None,
    weight: LevelWeight | None = None,
    way: Way | None = None,
    target: TargetParams = own,
    tell: Tell = nothing,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (1), the mean over groups.

    Args:
        model: the student's, told ``end``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        between: how r is chosen.
        particles: M, which divides the batch; M examples in a row are a group.  If there is a
            condition, a group of one condition compares what it should.
        times: of (t, s), drawn once for a group; None for ``below(uniform())``; t's sigma/alpha
            must be finite.
        weight: None for ``imm_weight()``.
        way: from x_t to x_r; None for ``consistency.same_noise()``, the paper's; with
            ``consistency.taught`` both sides are particles of a teacher's trajectories.
        target: whose the second jump is.
        tell: what the student is told beside.
        condition_dropout: share of groups whose condition is emptied.

    Returns:
        A Recipe over params {"net": ...}.

    Raises:
        ValueError: from the loss, if particles does not divide the batch.
    """
    times, weight, way = times or below(uniform()), weight or imm_weight(), way or same_noise()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_drop, of_tell, of_times, of_noise, of_way, of_net = jax.random.split(key, 7)
        x0, cond = encode(model, context.frozen, batch, of_codec)
        groups, rest = divmod(x0.shape[0], particles)
        if rest:
            raise ValueError(f"particles={particles} must divide the batch of {x0.shape[0]}")
        for_all = lambda tree: jax.tree.map(lambda leaf: jnp.repeat(leaf, particles, 0), tree)
        drop = for_all(jax.random.bernoulli(of_drop, condition_dropout, (groups,)))
        cond = emptied(drop, cond, model.null(context.frozen, cond))
        cond = {**cond, **for_all(tell(of_tell, groups))}
        drawn = times(of_times, groups, model.process)
        now, end = for_all(drawn)
        r = for_all(between(model.process, *drawn))
        eps = jax.random.normal(of_noise, x0.shape, x0.dtype)
        noised = Noised(x0, eps, corrupt(x0, eps, now), now)
        x_r = way(of_way, context.frozen, cond, noised, r)

        def f(params: Params, x: Array, level: NoiseLevel) -> Array:
            moved = transfer(jumper(model, params, of_net)(x, level, end, cond), end)
            return moved.reshape(groups, particles, -1)

        theirs = f(still(target(params, context)), x_r, r)
        width = jnp.maximum(jnp.abs(reach(model.target, *drawn)), 1e-6)
        each = squared_mmd(f(params, noised.x, now), theirs, width)
        return jnp.mean(weight(model.process, drawn[0]) * each), Report({})

    return Recipe(initialiser(model, init_net, tell), loss)


def reach(target: Target, now: NoiseLevel, end: NoiseLevel) -> Array:
    """c_out = df/dF: how far the network's output moves x at ``end``; shaped as the levels.

    s - t for the target ``flow`` on the rectified path.
    """
    return (now.alpha * end.sigma - now.sigma * end.alpha) / determinant(target, now)


def squared_mmd(a: Array, b: Array, width: Array) -> Array:
    """Equation (2), with the pairs i = j, of groups of particles.

    Args:
        a, b: [groups, particles, d].
        width: |c_out| of (3), [groups].

    Returns:
        [groups], not below 0.
    """
    mean = lambda a, b: jnp.mean(laplace(a, b, width), axis=(1, 2))
    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def laplace(a: Array, b: Array, width: Array, least: float = 1e-8) -> Array:
    """Equation (3) for each pair: [groups, m, d], [groups, n, d] -> [groups, m, n].

    Args:
        a, b: particles.
        width: [groups].
        least: distances below it count as it, and have no gradient.
    """
    square = jnp.sum((a[:, :, None] - b[:, None]) ** 2, axis=-1)
    far = square > least**2
    distance = jnp.where(far, jnp.sqrt(jnp.where(far, square, 1.0)), least)
    return jnp.exp(-distance / (width[:, None, None] * a.shape[-1]))
