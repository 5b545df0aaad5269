"""Guidance distillation (Meng et al. 2023, section 3.1): two calls of a guided teacher in one.

    w ~ U(w_min, w_max);   L = weight(t)·‖x0_student(x_t, t; w) - x0_guided(x_t, t; w)‖²       (1)

The student is told the scale w in ``cond["guidance_scale"]`` and samples with no guidance of its
own.  It is the first teacher of their second stage, ``recipes.progressive``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import losses
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.proposals import Proposal
from diffusion_jax.core.targets import network_output
from diffusion_jax.core.types import Context, Model, Params, Recipe, Report
from diffusion_jax.core.weighting import Weight, truncated_snr
from diffusion_jax.recipes.few_step.teachers import Teacher, Tell, initialiser, scales, still
from diffusion_jax.recipes.inputs import encode_and_drop


def guidance_distillation(
    model: Model,
    teacher: Teacher,
    init_net: Callable[[Array, Array, Any], Params],
    proposal: Proposal,
    weight: Weight | None = None,
    tell: Tell | None = None,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's, told ``guidance_scale``.
        teacher: such as ``teachers.guided(model_of_teacher)``, by ``frozen["teacher"]``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        proposal: how levels are drawn.
        weight: of the level; None for the paper's ``truncated_snr()``.
        tell: how w is drawn; None for ``teachers.scales()``.
        condition_dropout: share of examples whose condition is emptied, which no scale changes.

    Returns:
        A Recipe over params {"net": ...}.
    """
    weight, tell = weight or truncated_snr(), tell or scales()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_drop, of_tell, of_level, of_noise, of_net = jax.random.split(key, 6)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, of_codec, of_drop
        )
        cond = {**cond, **tell(of_tell, x0.shape[0])}
        level, importance = proposal.draw(of_level, x0.shape[0], model.process, context.carry)
        x = corrupt(x0, jax.random.normal(of_noise, x0.shape, x0.dtype), level)
        goal = still(teacher(context.frozen, cond)(x, level))
        out = network_output(model, params, x, level, cond, of_net)
        error = losses.regression(model.target, out, goal.x0, goal.eps, level)
        each = weight(level, model.target) * error
        carry = proposal.update(context.carry, level, jax.lax.stop_gradient(each))
        return jnp.mean(importance * each), Report({}, carry)

    return Recipe(initialiser(model, init_net, tell), loss, proposal.init)
