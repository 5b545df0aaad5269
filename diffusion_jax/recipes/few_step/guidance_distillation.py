"""Guidance distillation (Meng et al. 2023, section 3.1): one evaluation in place of two.

    w ~ U(w_min, w_max);   L = weight(t)·‖x0_student(x_t, t; w) - x0_guided(x_t, t; w)‖²       (1)

The student is conditioned on the scale w, ``cond["guidance_scale"]``, and samples without further
guidance.  It is the first teacher of their second stage, ``few_step.progressive``.
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
from diffusion_jax.recipes.few_step.teachers import (
    ExtraCond,
    Teacher,
    guidance_scales,
    initialiser,
    stop_gradient,
)
from diffusion_jax.recipes.inputs import encode_and_drop


def guidance_distillation(
    model: Model,
    teacher: Teacher,
    init_net: Callable[[Array, Array, Any], Params],
    proposal: Proposal,
    weight: Weight | None = None,
    extra_cond: ExtraCond | None = None,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's, conditioned on ``guidance_scale``.
        teacher: such as ``teachers.guided(teacher_model)``, which reads ``frozen["teacher"]``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        proposal: how levels are drawn.
        weight: loss weight of a level; None for the paper's ``truncated_snr()``.
        extra_cond: how w is drawn; None for ``teachers.guidance_scales()``.
        condition_dropout: share of examples that get the null condition, where no scale
            changes anything.

    Returns:
        A Recipe over params {"net": ...}.
    """
    weight, extra_cond = weight or truncated_snr(), extra_cond or guidance_scales()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, extra_key, level_key, noise_key, net_key = jax.random.split(key, 6)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, codec_key, drop_key
        )
        cond = {**cond, **extra_cond(extra_key, x0.shape[0])}
        level, importance = proposal.draw(level_key, x0.shape[0], model.process, context.carry)
        x = corrupt(x0, jax.random.normal(noise_key, x0.shape, x0.dtype), level)
        goal = stop_gradient(teacher(context.frozen, cond)(x, level))
        out = network_output(model, params, x, level, cond, net_key)
        error = losses.regression(model.target, out, goal.x0, goal.eps, level)
        per_example = weight(level, model.target) * error
        carry = proposal.update(context.carry, level, jax.lax.stop_gradient(per_example))
        return jnp.mean(importance * per_example), Report({}, carry)

    return Recipe(initialiser(model, init_net, extra_cond), loss, proposal.init)
