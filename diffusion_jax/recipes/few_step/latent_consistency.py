"""Latent consistency models (Luo et al. 2023): consistency distillation of a guided teacher.

    w ~ U(w_min, w_max);  x_nxt: one DDIM step of the teacher, guided by w, over k = T/levels
    indices of the table;  L = d(f_θ(x_now, now; w), f_EMA(x_nxt, nxt; w))          (algorithm 1)

It is ``recipes.consistency`` with the student told w in ``cond["guidance_scale"]`` and the boundary
of ``flow_maps.latent_consistency``.  LCM-LoRA (Luo et al. 2023b) is ``lora.adapted`` of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from diffusion_jax.core import flow_maps
from diffusion_jax.core.bounds import Shown, as_is
from diffusion_jax.core.losses import Distance, pseudo_huber
from diffusion_jax.core.solvers import ddim
from diffusion_jax.core.types import Model, Params, Recipe, Solver
from diffusion_jax.recipes.few_step import pairs
from diffusion_jax.recipes.few_step.consistency import (
    Setting,
    TargetParams,
    averaged,
    consistency,
    even,
    taught,
)
from diffusion_jax.recipes.few_step.teachers import Teacher, Tell, scales


def latent_consistency(
    model: Model,
    teacher: Teacher,
    init_net: Callable[[Array, Array, Any], Params],
    levels: int = 50,
    tell: Tell | None = None,
    boundary: flow_maps.Boundary | None = None,
    distance: Distance | None = None,
    target: TargetParams = averaged,
    solver: Solver | None = None,
    condition_dropout: float = 0.0,
    shown: Shown = as_is,
) -> Recipe:
    """The recipe of algorithm 1.

    Args:
        model: the student's, told ``guidance_scale``.
        teacher: such as ``teachers.guided(model_of_teacher)``, by ``frozen["teacher"]``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        levels: steps of the teacher's DDIM; a table's T over the skipping interval k.
        tell: how w is drawn; None for U(3, 15), which is w of 2 to 14 in the paper.
        boundary: None for ``flow_maps.latent_consistency()``.
        distance: None for pseudo-Huber of c = 0.001, that of the authors' code.
        target: whose f is the target; ``consistency.own`` leaves the average out.
        solver: of the teacher; None for ``ddim()``.
        condition_dropout: share of examples whose condition is emptied.
        shown: see ``consistency``.
    """
    setting = Setting(
        pairs=pairs.uniform(pairs.constant(levels + 1)),
        way=taught(teacher, solver or ddim()),
        target=target,
        distance=distance or pseudo_huber(0.001),
        weight=even,
    )
    return consistency(
        model,
        init_net,
        setting,
        boundary or flow_maps.latent_consistency(),
        tell or scales(3.0, 15.0),
        condition_dropout,
        shown,
    )
