"""Consistency trajectory models, CTM (Kim et al. 2024).

The student jumps from any t to any s < t.  A jump from t, and one from a u between t and s that a
teacher's solver reaches from t, should end at the same x_s.  Both are compared in clean data, to
which the student without gradient takes them:

    L = d(G⁻(G_θ(x_t, t, s), s, 0), G⁻(G⁻(x_u, u, s), s, 0)) + μ·w·‖x0 - g_θ(x_t, t, t)‖²      (1)

(their section 3).  G(x, t, s) = (s/t)·x + (1 - s/t)·g(x, t, s), in the time of their variance
exploding path, is the DDIM step with x0 = g (``flow_maps.transfer``).  The second term, denoising,
keeps the slope right where s is near t.  u = s makes the first term global, u near t local; s = 0
makes a consistency model.  Not implemented are the paper's adversarial term, and its adaptive μ
from the gradients of the last layer: here μ is a number.

The student samples with ``jump(gamma)`` for any gamma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import flow_maps, losses, sampling
from diffusion_jax.core.losses import Distance, squared
from diffusion_jax.core.process import Process, clean, corrupt
from diffusion_jax.core.proposals import uniform
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.targets import express
from diffusion_jax.core.types import (
    Context,
    Jumper,
    Model,
    NoiseLevel,
    Params,
    Prediction,
    Recipe,
    Report,
    Solver,
)
from diffusion_jax.core.weighting import Weight, mse
from diffusion_jax.recipes.few_step.consistency import TargetParams, ema_target
from diffusion_jax.recipes.few_step.continuous_consistency import Velocity, data_velocity
from diffusion_jax.recipes.few_step.teachers import ExtraCond, Teacher, no_extra_cond, stop_gradient
from diffusion_jax.recipes.few_step.two_times import Times, initialiser, uniform_end
from diffusion_jax.recipes.inputs import encode_and_drop


def trajectory(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    teacher: Teacher,
    times: Times | None = None,
    solver: Solver | None = None,
    steps: int = 4,
    denoising_weight: float = 1.0,
    weight: Weight | None = None,
    velocity: Velocity | None = None,
    distance: Distance | None = None,
    target: TargetParams = ema_target,
    extra_cond: ExtraCond = no_extra_cond,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's, conditioned on ``end``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        teacher: see ``teachers.Teacher``.
        times: how (t, s) are drawn; None for ``uniform_end(uniform(), 0.1)``.
        solver: the teacher's, deterministic; None for ``flow_heun``, whose steps in rectified time
            may start near pure noise, where the paper's Heun steps in sigma/alpha need many levels.
        steps: number of its steps from t to u, equal in time.
        denoising_weight: μ.
        weight: loss weight of a level in the second term; None for ``mse("x0")``, the paper's.
        velocity: what the second term learns; None for ``data_velocity()``, the drawn x0.
        distance: d; None for ``squared()`` (the paper's is LPIPS).
        target: parameters of G⁻; the paper's are the moving average.
        extra_cond: what student and teacher are conditioned on beside the batch's condition.
        condition_dropout: share of examples that get the null condition.

    Returns:
        A Recipe over params {"net": ...}; it reports both terms, the second without μ.
    """
    times, solver = times or uniform_end(uniform(), 0.1), solver or SOLVERS["flow_heun"]()
    weight, velocity, distance = (
        weight or mse("x0"),
        velocity or data_velocity(),
        distance or squared(),
    )

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, extra_key, times_key, noise_key, solver_key, net_key = (
            jax.random.split(key, 7)
        )
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, codec_key, drop_key
        )
        cond = {**cond, **extra_cond(extra_key, x0.shape[0])}
        now, end = times(times_key, x0.shape[0], model.process)
        levels = solver_levels(jax.random.fold_in(times_key, 1), model.process, now, end, steps)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        x = corrupt(x0, eps, now)
        x_u, _ = sampling.walk(solver_key, solver, teacher(context.frozen, cond), x, levels)
        u = jax.tree.map(lambda leaf: leaf[-1], levels)

        student = flow_maps.jumper(model, params, net_key)
        target_jumper = flow_maps.jumper(model, stop_gradient(target(params, context)), net_key)

        def jump_to_clean(jumper: Jumper, x: Array, level: NoiseLevel) -> Array:
            x_end = flow_maps.transfer(jumper(x, level, end, cond), end)
            return target_jumper(x_end, end, clean(end), cond).x0

        consistency_term = jnp.mean(
            distance(jump_to_clean(student, x, now), jump_to_clean(target_jumper, x_u, u))
        )
        denoising_goal = velocity(context.frozen, cond, Prediction(x0, eps), x, now)
        prediction = student(x, now, now, cond)
        out = express(model.target, prediction.x0, prediction.eps, now)
        error = losses.regression(model.target, out, denoising_goal.x0, denoising_goal.eps, now)
        denoising_term = jnp.mean(weight(now, model.target) * error)
        report = {"consistency": consistency_term, "denoising": denoising_term}
        return consistency_term + denoising_weight * denoising_term, Report(report)

    return Recipe(initialiser(model, init_net, extra_cond), loss)


def solver_levels(
    key: Array, process: Process, now: NoiseLevel, end: NoiseLevel, steps: int
) -> NoiseLevel:
    """A solver's levels from ``now`` to u, u uniform in time between both: [steps + 1, b]."""
    u = end.t + (now.t - end.t) * jax.random.uniform(key, now.t.shape, now.t.dtype)
    share = jnp.arange(1, steps + 1, dtype=now.t.dtype)[:, None] / steps
    later_levels = process.at(process.quantise(now.t + (u - now.t) * share))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), now, later_levels)
