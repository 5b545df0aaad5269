"""Consistency trajectory models, CTM (Kim et al. 2024).

The student jumps from any t to any s < t.  A jump from t, and one from a u between that a teacher's
solver reached from t, should meet at s; they are compared where differences can be seen, in clean
data, to which both are taken by the student without gradient:

    L = d(G⁻(G_θ(x_t, t, s), s, 0), G⁻(G⁻(x_u, u, s), s, 0)) + μ·w·‖x0 - g_θ(x_t, t, t)‖²      (1)

(their section 3).  G(x, t, s) = (s/t)·x + (1 - s/t)·g(x, t, s), in the time of their variance
exploding path, is the DDIM step with x0 = g (``flow_maps.transfer``).  The second term, denoising,
keeps the slope right where s is near t.  u = s makes the first one global, u near t local; s = 0
makes a consistency model.  Of the paper this leaves out the adversarial term, and the rule by which
μ follows the gradients of the last layer: here μ is a number.

The student samples with ``jump(gamma)``, of any gamma.
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
from diffusion_jax.recipes.few_step.consistency import TargetParams, averaged
from diffusion_jax.recipes.few_step.continuous_consistency import Velocity, of_data
from diffusion_jax.recipes.few_step.teachers import Teacher, Tell, nothing, still
from diffusion_jax.recipes.few_step.two_times import Times, below, initialiser
from diffusion_jax.recipes.inputs import encode_and_drop


def trajectory(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    teacher: Teacher,
    times: Times | None = None,
    solver: Solver | None = None,
    steps: int = 4,
    matching: float = 1.0,
    weight: Weight | None = None,
    velocity: Velocity | None = None,
    distance: Distance | None = None,
    target: TargetParams = averaged,
    tell: Tell = nothing,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's, told ``end``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        teacher: see ``recipes.teachers``.
        times: of (t, s); None for ``below(uniform(), 0.1)``.
        solver: of the teacher, deterministic; None for ``flow_heun``, whose steps in rectified time
            may start near pure noise, where the paper's Heun steps in sigma/alpha need many levels.
        steps: that it takes from t to u, equal in time.
        matching: μ of the denoising term.
        weight: of the level in it; None for ``mse("x0")``, the paper's.
        velocity: what it learns; None for ``of_data()``, the drawn x0.
        distance: d; None for ``squared()`` (the paper's is LPIPS).
        target: of G⁻; the paper's is the average.
        tell: what student and teacher are told beside.
        condition_dropout: share of examples whose condition is emptied.

    Returns:
        A Recipe over params {"net": ...}; it reports both terms, the second without μ.
    """
    times, solver = times or below(uniform(), 0.1), solver or SOLVERS["flow_heun"]()
    weight, velocity, distance = weight or mse("x0"), velocity or of_data(), distance or squared()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_drop, of_tell, of_times, of_noise, of_solver, of_net = jax.random.split(key, 7)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, of_codec, of_drop
        )
        cond = {**cond, **tell(of_tell, x0.shape[0])}
        now, end = times(of_times, x0.shape[0], model.process)
        way = between(jax.random.fold_in(of_times, 1), model.process, now, end, steps)
        eps = jax.random.normal(of_noise, x0.shape, x0.dtype)
        x = corrupt(x0, eps, now)
        x_u, _ = sampling.walk(of_solver, solver, teacher(context.frozen, cond), x, way)
        u = jax.tree.map(lambda leaf: leaf[-1], way)

        student = flow_maps.jumper(model, params, of_net)
        fixed = flow_maps.jumper(model, still(target(params, context)), of_net)

        def landed(jumper: Jumper, x: Array, level: NoiseLevel) -> Array:
            at_end = flow_maps.transfer(jumper(x, level, end, cond), end)
            return fixed(at_end, end, clean(end), cond).x0

        meeting = jnp.mean(distance(landed(student, x, now), landed(fixed, x_u, u)))
        true = velocity(context.frozen, cond, Prediction(x0, eps), x, now)
        told = student(x, now, now, cond)
        out = express(model.target, told.x0, told.eps, now)
        error = losses.regression(model.target, out, true.x0, true.eps, now)
        denoising = jnp.mean(weight(now, model.target) * error)
        report = {"consistency": meeting, "denoising": denoising}
        return meeting + matching * denoising, Report(report)

    return Recipe(initialiser(model, init_net, tell), loss)


def between(
    key: Array, process: Process, now: NoiseLevel, end: NoiseLevel, steps: int
) -> NoiseLevel:
    """A solver's levels from ``now`` to u, uniform in time from ``end`` to now: [steps + 1, b]."""
    u = end.t + (now.t - end.t) * jax.random.uniform(key, now.t.shape, now.t.dtype)
    share = jnp.arange(1, steps + 1, dtype=now.t.dtype)[:, None] / steps
    later = process.at(process.quantise(now.t + (u - now.t) * share))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), now, later)
