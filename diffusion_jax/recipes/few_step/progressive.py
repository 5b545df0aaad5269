"""Progressive distillation (Salimans & Ho 2022): one step of the student for two of its teacher.

    t = i/N, i ~ U{1 ... N};  x at t;  two DDIM steps of the teacher take it to t - 1/N;
    x̃ = (x_end - (sigma_end/sigma)·x) / (alpha_end - (sigma_end/sigma)·alpha)         (algorithm 2)
    L = w(t)·‖x0_student(x, t) - x̃‖²,   w = max(SNR, 1) in the paper

x̃ is the x0 of the secant (``core.flow_maps``): one DDIM step along it ends where the teacher's two
do.  When the student has learned it, it is the next teacher and N is halved: both are data of
``Context.frozen``, so a stage compiles nothing.  The student samples with ``ddim`` on
``grids.trailing`` of N levels, whose steps these are; the last one goes to the clean level.
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
from diffusion_jax.recipes.few_step.teachers import Teacher, Tell, initialiser, nothing, still
from diffusion_jax.recipes.inputs import encode_and_drop

STEPS = "steps"
"""``frozen["steps"]``: N, int32 [], how many steps the student of this stage takes."""


def progressive(
    model: Model,
    teacher: Teacher,
    init_net: Callable[[Array, Array, Any], Params],
    weight: Weight | None = None,
    tell: Tell = nothing,
    condition_dropout: float = 0.0,
    solver: Solver | None = None,
    distance: losses.Distance | None = None,
) -> Recipe:
    """One stage after another, by ``frozen["teacher"]`` and ``frozen["steps"]``.

    Args:
        model: the student's; its target should say x0 at pure noise too, as v and x0 do.
        teacher: see ``recipes.teachers``; takes 2N steps.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        weight: of the level; None for the paper's ``truncated_snr()``.
        tell: what the student is told beside, such as the guidance scale of stage two of Meng et
            al. 2023, whose first teacher is a student of ``recipes.guidance_distillation``.
        condition_dropout: share of examples whose condition is emptied.
        solver: of the teacher, one that needs no memory; None for ``ddim()``.
        distance: of F times the root of its weight; None for ``squared()``, the paper's.

    Returns:
        A Recipe over params {"net": ...}.
    """
    weight, solver = weight or truncated_snr(), solver or ddim()
    distance = distance or losses.squared()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_drop, of_tell, of_step, of_noise, of_solver, of_net = jax.random.split(key, 7)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, of_codec, of_drop
        )
        cond = {**cond, **tell(of_tell, x0.shape[0])}
        now, middle, end = step_in_two(of_step, x0.shape[0], model.process, context.frozen[STEPS])
        x = corrupt(x0, jax.random.normal(of_noise, x0.shape, x0.dtype), now)
        denoise, state = teacher(context.frozen, cond), solver.init(x)
        x_end, state = solver.step(of_solver, denoise, x, now, middle, state)
        x_end, _ = solver.step(of_solver, denoise, x_end, middle, end, state)
        goal = still(secant(x, x_end, now, end))
        out = network_output(model, params, x, now, cond, of_net)[..., : x.shape[-1]]
        root = like(jnp.sqrt(weight(now, model.target)), x)
        wanted = express(model.target, goal.x0, goal.eps, now)
        return jnp.mean(distance(root * out, root * wanted)), Report({})

    return Recipe(initialiser(model, init_net, tell), loss)


def step_in_two(
    key: Array, b: int, process: Process, n: Int[Array, "*b"]
) -> tuple[NoiseLevel, NoiseLevel, NoiseLevel]:
    """A step of n drawn for each of b examples: its start, middle and end, [b] each.

    The end of the last step is the clean level.

    Args:
        key: of the draw.
        b: size of the batch.
        process: gives the levels at times i/n.
        n: number of steps, [] or [b], traced.
    """
    i = jax.random.randint(key, (b,), 1, n + 1).astype(jnp.result_type(float))
    at: Callable[[Float[Array, "b"]], NoiseLevel] = lambda i: process.at(i / n)
    last = at(i - 1)
    end = jax.tree.map(lambda a, c: jnp.where(i > 1, a, c), last, clean(last))
    return at(i), at(i - 0.5), end
