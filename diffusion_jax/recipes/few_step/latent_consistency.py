"""Latent consistency models (Luo et al. 2023): consistency distillation of a guided teacher.

    w ~ U(w_min, w_max);  x_nxt: one DDIM step of the teacher, guided by w, over k = T/levels
    indices of the table;  L = d(f_θ(x_now, now; w), f_EMA(x_nxt, nxt; w))          (algorithm 1)

It is ``few_step.consistency`` with the student conditioned on w, ``cond["guidance_scale"]``, and
the boundary of ``flow_maps.latent_consistency``.  LCM-LoRA (Luo et al. 2023b) is ``lora.adapted``
of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from diffusion_jax.core import flow_maps
from diffusion_jax.core.bounds import Clip, no_clip
from diffusion_jax.core.losses import Distance, pseudo_huber
from diffusion_jax.core.solvers import ddim
from diffusion_jax.core.types import Model, Params, Recipe, Solver
from diffusion_jax.recipes.few_step import level_pairs
from diffusion_jax.recipes.few_step.consistency import (
    Setting,
    TargetParams,
    consistency,
    ema_target,
    teacher_step,
    uniform_weight,
)
from diffusion_jax.recipes.few_step.teachers import ExtraCond, Teacher, guidance_scales


def latent_consistency(
    model: Model,
    teacher: Teacher,
    init_net: Callable[[Array, Array, Any], Params],
    levels: int = 50,
    extra_cond: ExtraCond | None = None,
    boundary: flow_maps.Boundary | None = None,
    distance: Distance | None = None,
    target: TargetParams = ema_target,
    solver: Solver | None = None,
    condition_dropout: float = 0.0,
    clip: Clip = no_clip,
) -> Recipe:
    """The recipe of algorithm 1.

    Args:
        model: the student's, conditioned on ``guidance_scale``.
        teacher: such as ``teachers.guided(teacher_model)``, which reads ``frozen["teacher"]``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        levels: steps of the teacher's DDIM; a table's T over the skipping interval k.
        extra_cond: how w is drawn; None for U(3, 15), w from 2 to 14 in the paper's convention.
        boundary: None for ``flow_maps.latent_consistency()``.
        distance: None for pseudo-Huber with c = 0.001, as in the authors' code.
        target: the target's parameters; ``consistency.online_target`` takes no average.
        solver: the teacher's; None for ``ddim()``.
        condition_dropout: share of examples that get the null condition.
        clip: see ``consistency``.
    """
    setting = Setting(
        levels=level_pairs.uniform(level_pairs.constant(levels + 1)),
        transition=teacher_step(teacher, solver or ddim()),
        target=target,
        distance=distance or pseudo_huber(0.001),
        weight=uniform_weight,
    )
    return consistency(
        model,
        init_net,
        setting,
        boundary or flow_maps.latent_consistency(),
        extra_cond or guidance_scales(3.0, 15.0),
        condition_dropout,
        clip,
    )
