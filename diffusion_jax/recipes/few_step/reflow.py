"""Reflow (Liu et al. 2023): regression on pairs of noise and data that a flow generated.

    L = w·d(F_θ(x_t, t), F(x0, eps)),   x_t = alpha·x0 + sigma·eps,   (x0, eps) a pair,       (1)

where F = eps - x0 for the target ``flow`` on the rectified path (their equation 1, squared
distance).  With independent pairs it is flow matching; with pairs of noise and the data that a
teacher maps it to, the flow gets straighter with every round (their section 3), so that a solver
needs fewer steps.  ``straightness`` measures how far the flow is from straight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import sampling
from diffusion_jax.core.losses import Distance, squared
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.proposals import Proposal
from diffusion_jax.core.targets import express, network_output
from diffusion_jax.core.types import (
    Cond,
    Context,
    Denoise,
    Model,
    NoiseLevel,
    Params,
    Recipe,
    Report,
    Solver,
    like,
)
from diffusion_jax.core.weighting import Weight, simple
from diffusion_jax.recipes.few_step.teachers import (
    ExtraCond,
    Teacher,
    initialiser,
    no_extra_cond,
    stop_gradient,
)
from diffusion_jax.recipes.inputs import encode_and_drop

Coupling = Callable[[Array, Params, Cond, dict[str, Array], Array], tuple[Array, Array]]
"""(key, ``Context.frozen``, cond, batch, x0 of the batch) -> a pair (x0, eps), [b, ...] each."""

NOISE = "noise"
"""The key of a batch that holds the noise which its image was generated from."""


def pairs_from_batch() -> Coupling:
    """The pairs of the batch: its image and its "noise", generated beforehand."""
    return lambda key, frozen, cond, batch, x0: (x0, batch[NOISE])


def pairs_from_teacher(teacher: Teacher, solver: Solver, levels: NoiseLevel) -> Coupling:
    """Fresh noise and the sample that a teacher makes of it; of the data only cond is used.

    Args:
        teacher: see ``teachers.Teacher``; such as the student of the previous round.
        solver: deterministic.
        levels: [n] of the solver's grid, the first of almost pure noise: x there is
            sqrt(alpha² + sigma²)·eps.
    """

    def draw(key: Array, frozen: Params, cond: Cond, batch: dict[str, Array], x0: Array):
        noise_key, solver_key = jax.random.split(key)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        x = jnp.hypot(levels.alpha[0], levels.sigma[0]) * eps
        return sampling.sample(solver_key, solver, teacher(frozen, cond), x, levels), eps

    return draw


def reflow(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    coupling: Coupling,
    proposal: Proposal,
    weight: Weight | None = None,
    distance: Distance | None = None,
    extra_cond: ExtraCond = no_extra_cond,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's, a network of one time.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        coupling: ``pairs_from_teacher(teacher, solver, levels)`` or ``pairs_from_batch()``.
        proposal: how levels are drawn.
        weight: loss weight of a level; None for ``simple()``.
        distance: d; None for ``squared()``.
        extra_cond: what student and teacher are conditioned on beside the batch's condition.
        condition_dropout: share of examples that get the null condition.

    Returns:
        A Recipe over params {"net": ...}.
    """
    weight, distance = weight or simple(), distance or squared()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, extra_key, level_key, pair_key, net_key = jax.random.split(key, 6)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, codec_key, drop_key
        )
        cond = {**cond, **extra_cond(extra_key, x0.shape[0])}
        x0, eps = stop_gradient(coupling(pair_key, context.frozen, cond, batch, x0))
        level, importance = proposal.draw(level_key, x0.shape[0], model.process, context.carry)
        x = corrupt(x0, eps, level)
        out = network_output(model, params, x, level, cond, net_key)
        error = distance(out[..., : x0.shape[-1]], express(model.target, x0, eps, level))
        per_example = weight(level, model.target) * error
        carry = proposal.update(context.carry, level, jax.lax.stop_gradient(per_example))
        return jnp.mean(importance * per_example), Report({}, carry)

    return Recipe(initialiser(model, init_net, extra_cond), loss, proposal.init)


def straightness(
    key: Array, solver: Solver, denoise: Denoise, x: Array, levels: NoiseLevel
) -> Array:
    """∫ E‖(z_1 - z_0) - dz/dt‖² dt along a flow, per dimension: [b], 0 for a straight flow.

    S of Liu et al. 2023 (section 2.2), in z = x/(alpha + sigma) and t = sigma/(alpha + sigma),
    which are x and t of the rectified path.  A sum over the solver's steps of dz/dt at their
    starts.

    Args:
        key: for the solver.
        solver: deterministic.
        denoise: the denoiser that defines the flow.
        x: [b, ...] at levels[0].
        levels: [n], noisiest first, without the clean one.
    """
    x_t, x0 = sampling.trajectory(key, solver, denoise, x, levels)
    n = levels.alpha + levels.sigma
    t, z = levels.sigma / n, x_t / like(n, x_t)
    # z = (1 - t)·x0 + t·eps, so that eps - x0 = (z - x0)/t.
    rate = (z - x0) / like(t, z)
    chord = (z[0] - x0[-1]) / t[0]
    steps = t - jnp.append(t[1:], 0.0)
    gap = jnp.mean((rate - chord) ** 2, axis=tuple(range(2, x_t.ndim)))
    return jnp.sum(steps[:, None] * gap, axis=0)
