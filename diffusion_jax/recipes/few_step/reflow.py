"""Rectified flow's second round: regression on pairs that a flow has made (Liu et al. 2023).

    L = w·d(F_θ(x_t, t), F(x0, eps)),   x_t = alpha·x0 + sigma·eps,   (x0, eps) a pair,       (1)

where for the rectified path, the target ``flow`` and squares F = eps - x0 (their equation 1).
Independent pairs make it flow matching; pairs of noise and of where a teacher takes it make the
flow straighter with every round (their section 3), so that fewer steps of a solver follow it.
``straightness`` is by how much it is not yet straight.
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
from diffusion_jax.recipes.few_step.teachers import Teacher, Tell, initialiser, nothing, still
from diffusion_jax.recipes.inputs import encode_and_drop

Coupling = Callable[[Array, Params, Cond, dict[str, Array], Array], tuple[Array, Array]]
"""(key, ``Context.frozen``, cond, batch, x0 of the batch) -> a pair (x0, eps), [b, ...] each."""

NOISE = "noise"
"""The key of a batch that holds the noise whose image the batch's image is."""


def given() -> Coupling:
    """The pairs of the batch: its image with its "noise", made beforehand."""
    return lambda key, frozen, cond, batch, x0: (x0, batch[NOISE])


def solved(teacher: Teacher, solver: Solver, levels: NoiseLevel) -> Coupling:
    """Fresh noise and where a teacher's flow takes it; the data lend their condition alone.

    Args:
        teacher: see ``recipes.teachers``; the student of the round before.
        solver: deterministic.
        levels: [n] of the solver's grid, the first of almost pure noise: x there is
            sqrt(alpha² + sigma²)·eps.
    """

    def draw(key: Array, frozen: Params, cond: Cond, batch: dict[str, Array], x0: Array):
        of_noise, of_solver = jax.random.split(key)
        eps = jax.random.normal(of_noise, x0.shape, x0.dtype)
        x = jnp.hypot(levels.alpha[0], levels.sigma[0]) * eps
        return sampling.sample(of_solver, solver, teacher(frozen, cond), x, levels), eps

    return draw


def reflow(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    coupling: Coupling,
    proposal: Proposal,
    weight: Weight | None = None,
    distance: Distance | None = None,
    tell: Tell = nothing,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's, of one time.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        coupling: ``solved(teacher, solver, levels)`` or ``given()``.
        proposal: how levels are drawn.
        weight: of the level; None for ``simple()``.
        distance: d; None for ``squared()``.
        tell: what student and teacher are told beside.
        condition_dropout: share of examples whose condition is emptied.

    Returns:
        A Recipe over params {"net": ...}.
    """
    weight, distance = weight or simple(), distance or squared()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_drop, of_tell, of_level, of_pair, of_net = jax.random.split(key, 6)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, of_codec, of_drop
        )
        cond = {**cond, **tell(of_tell, x0.shape[0])}
        x0, eps = still(coupling(of_pair, context.frozen, cond, batch, x0))
        level, importance = proposal.draw(of_level, x0.shape[0], model.process, context.carry)
        x = corrupt(x0, eps, level)
        out = network_output(model, params, x, level, cond, of_net)
        error = distance(out[..., : x0.shape[-1]], express(model.target, x0, eps, level))
        each = weight(level, model.target) * error
        carry = proposal.update(context.carry, level, jax.lax.stop_gradient(each))
        return jnp.mean(importance * each), Report({}, carry)

    return Recipe(initialiser(model, init_net, tell), loss, proposal.init)


def straightness(
    key: Array, solver: Solver, denoise: Denoise, x: Array, levels: NoiseLevel
) -> Array:
    """∫ E‖(z_1 - z_0) - dz/dt‖² dt along a flow, per dimension: [b], 0 if it is straight.

    S of Liu et al. 2023 (section 2.2), in z = x/(alpha + sigma) and t = sigma/(alpha + sigma),
    which are x and t of the rectified path.  A sum over the solver's steps of dz/dt at their
    starts.

    Args:
        key: of the solver.
        solver: deterministic.
        denoise: whose flow it is.
        x: [b, ...] at levels[0].
        levels: [n], noisiest first, the last before the clean one.
    """
    x_t, x0 = sampling.trajectory(key, solver, denoise, x, levels)
    n = levels.alpha + levels.sigma
    t, z = levels.sigma / n, x_t / like(n, x_t)
    # z = (1 - t)·x0 + t·eps, so that eps - x0 = (z - x0)/t.
    rate = (z - x0) / like(t, z)
    whole = (z[0] - x0[-1]) / t[0]
    steps = t - jnp.append(t[1:], 0.0)
    gap = jnp.mean((rate - whole) ** 2, axis=tuple(range(2, x_t.ndim)))
    return jnp.sum(steps[:, None] * gap, axis=0)
