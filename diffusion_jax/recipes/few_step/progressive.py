"""Progressive distillation (Salimans & Ho 2022): one student step replaces two teacher steps.

    t = i/N, i ~ U{1 ... N};  x at t;  two DDIM steps of the teacher take it to t - 1/N;
    x̃ = (x_end - (sigma_end/sigma)·x) / (alpha_end - (sigma_end/sigma)·alpha)         (algorithm 2)
    L = w(t)·‖x0_student(x, t) - x̃‖²,   w = max(SNR, 1) in the paper

x̃ is the x0 of the secant (``core.flow_maps``): one DDIM step with it ends where the teacher's two
steps do.  A trained student becomes the next teacher and N is halved: both are data in
``Context.frozen``, so a new stage compiles nothing.  The student samples with ``ddim`` on
``grids.trailing`` of N levels, which has these steps; the last one goes to the clean level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.core import losses
from diffusion_jax.core.flow_maps import secant
from diffusion_jax.core.process import Process, clean, corrupt
from diffusion_jax.core.solvers import ddim
from diffusion_jax.core.targets import express, network_output
from diffusion_jax.core.types import (
    Context,
    Model,
    NoiseLevel,
    Params,
    Recipe,
    Report,
    Solver,
    like,
)
from diffusion_jax.core.weighting import Weight, truncated_snr
from diffusion_jax.recipes.few_step.teachers import (
    ExtraCond,
    Teacher,
    initialiser,
    no_extra_cond,
    stop_gradient,
)
from diffusion_jax.recipes.inputs import encode_and_drop

STEPS = "steps"
"""``frozen["steps"]``: N, int32 [], the number of the student's steps in this stage."""


def progressive(
    model: Model,
    teacher: Teacher,
    init_net: Callable[[Array, Array, Any], Params],
    weight: Weight | None = None,
    extra_cond: ExtraCond = no_extra_cond,
    condition_dropout: float = 0.0,
    solver: Solver | None = None,
    distance: losses.Distance | None = None,
) -> Recipe:
    """Any stage, as ``frozen["teacher"]`` and ``frozen["steps"]`` say.

    Args:
        model: the student's; its target should determine x0 at pure noise too, as v and x0 do.
        teacher: see ``teachers.Teacher``; takes 2N steps.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        weight: loss weight of a level; None for the paper's ``truncated_snr()``.
        extra_cond: what the student is conditioned on beside the batch's condition, such as the
            guidance scale in stage two of Meng et al. 2023, whose first teacher is a student of
            ``few_step.guidance_distillation``.
        condition_dropout: share of examples that get the null condition.
        solver: the teacher's, one that needs no history; None for ``ddim()``.
        distance: between outputs F times the root of the weight; None for ``squared()``, the
            paper's.

    Returns:
        A Recipe over params {"net": ...}.
    """
    weight, solver = weight or truncated_snr(), solver or ddim()
    distance = distance or losses.squared()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, extra_key, step_key, noise_key, solver_key, net_key = jax.random.split(
            key, 7
        )
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, codec_key, drop_key
        )
        cond = {**cond, **extra_cond(extra_key, x0.shape[0])}
        now, middle, end = draw_student_step(
            step_key, x0.shape[0], model.process, context.frozen[STEPS]
        )
        x = corrupt(x0, jax.random.normal(noise_key, x0.shape, x0.dtype), now)
        denoise, state = teacher(context.frozen, cond), solver.init(x)
        x_end, state = solver.step(solver_key, denoise, x, now, middle, state)
        x_end, _ = solver.step(solver_key, denoise, x_end, middle, end, state)
        goal = stop_gradient(secant(x, x_end, now, end))
        out = network_output(model, params, x, now, cond, net_key)[..., : x.shape[-1]]
        root_weight = like(jnp.sqrt(weight(now, model.target)), x)
        target_output = express(model.target, goal.x0, goal.eps, now)
        return jnp.mean(distance(root_weight * out, root_weight * target_output)), Report({})

    return Recipe(initialiser(model, init_net, extra_cond), loss)


def draw_student_step(
    key: Array, b: int, process: Process, n: Int[Array, "*b"]
) -> tuple[NoiseLevel, NoiseLevel, NoiseLevel]:
    """A random one of n steps for each of b examples: its start, middle and end, [b] each.

    The end of the last step is the clean level.

    Args:
        key: for the draw.
        b: size of the batch.
        process: gives the levels at times i/n.
        n: number of steps, [] or [b], traced.
    """
    i = jax.random.randint(key, (b,), 1, n + 1).astype(jnp.result_type(float))
    at: Callable[[Float[Array, "b"]], NoiseLevel] = lambda i: process.at(i / n)
    last = at(i - 1)
    end = jax.tree.map(lambda a, c: jnp.where(i > 1, a, c), last, clean(last))
    return at(i), at(i - 0.5), end
