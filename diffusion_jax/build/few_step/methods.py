"""Every few-step method by its name in a config: how a student is trained, and how sampled.

This file has those whose network has one level, f(x, now): a denoiser or a consistency function.
``two_levels`` has those of two, ``several_networks`` those that train several networks.  Solvers
call every student as a ``Jump``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.build.few_step import several_networks, two_levels
from diffusion_jax.build.few_step.method import (
    Method,
    Setup,
    check_at_least_1,
    check_solver,
    loss_clip,
    make_distance,
    make_teacher,
)
from diffusion_jax.core import flow_maps, grids, proposals
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Recipe
from diffusion_jax.recipes.few_step import (
    consistency,
    continuous_consistency,
    guidance_distillation,
    latent_consistency,
    progressive,
    reflow,
    students,
    teachers,
)


def _one_level_method(
    setting: Callable[[Setup], consistency.Setting], distance: str = ""
) -> Method:
    loss_distance = make_distance(distance)

    def recipe(setup: Setup) -> Recipe:
        chosen = setting(setup)
        chosen = chosen._replace(distance=loss_distance or chosen.distance)
        return consistency.consistency(
            setup.student,
            setup.init,
            chosen,
            condition_dropout=setup.dropout,
            clip=loss_clip(setup),
        )

    return Method(recipe, students.consistency)


def consistency_distillation_method(
    levels: int = 18, solver: str = "flow_heun", scale: float = 1.0, distance: str = ""
) -> Method:
    """Consistency distillation (``consistency.distillation``) of a guided teacher.

    The paper's Heun solver in sigma needs a grid in sigma; from pure noise its first step is wrong.
    """
    check_at_least_1("consistency_distillation", levels=levels)
    check_solver("consistency_distillation", solver)
    setting = lambda setup: consistency.distillation(make_teacher(setup, scale), solver, levels)
    return _one_level_method(setting, distance)


def consistency_training_method(
    total: int, first: int = 2, last: int = 150, distance: str = ""
) -> Method:
    """Consistency training (``consistency.training``)."""
    return _one_level_method(lambda setup: consistency.training(total, first, last), distance)


def improved_consistency_method(
    total: int, first: int = 10, last: int = 1280, mean: float = -1.1, std: float = 2.0,
    distance: str = "",
) -> Method:  # fmt: skip
    """Improved consistency training (``consistency.improved``); distance "" is pseudo-Huber."""
    setting = lambda setup: consistency.improved(total, first, last, None, mean, std)
    return _one_level_method(setting, distance)


def easy_method(
    total: int,
    stages: int = 8,
    q: float = 2.0,
    k: float = 8.0,
    mean: float = -1.1,
    std: float = 2.0,
    distance: str = "",
) -> Method:
    """Easy consistency tuning (``consistency.easy``) in equal stages; distance "" is the norm."""
    check_at_least_1("easy", stages=stages)
    stage = -(-total // stages)
    setting = lambda setup: consistency.easy(stage, q, k, 1.0, mean, std)
    return _one_level_method(setting, distance)


def latent_consistency_method(
    levels: int = 50, low: float = 1.0, high: float = 5.0, distance: str = "", scale: float = 0.0
) -> Method:
    """Latent consistency (``few_step.latent_consistency``).

    Args:
        levels: steps of the teacher's DDIM.
        low, high: range of the guidance scales that the student is conditioned on.
        distance: d, of ``losses.DISTANCES``; "" for pseudo-Huber.
        scale: one scale for all examples instead, not a condition (LCM-LoRA); 0 for none.
    """
    check_at_least_1("latent_consistency", levels=levels)
    loss_distance, boundary = make_distance(distance), flow_maps.latent_consistency()
    extra_cond = teachers.no_extra_cond if scale else teachers.guidance_scales(low, high)
    student = students.bounded(boundary)

    def recipe(setup: Setup) -> Recipe:
        teacher = make_teacher(setup, scale) if scale else teachers.guided(setup.teacher)
        return latent_consistency.latent_consistency(
            setup.student, teacher, setup.init, levels, extra_cond, boundary, loss_distance,
            clip=loss_clip(setup),
        )  # fmt: skip

    if scale:
        return Method(recipe, student)
    return Method(recipe, students.with_scale(student), (teachers.SCALE,))


def continuous_distillation_method(
    mean: float = -0.8, std: float = 1.6, sigma_data: float = 0.5, warm_up: int = 0,
    scale: float = 1.0, c: float = 0.1, total: int = 0,
) -> Method:  # fmt: skip
    """sCD (``few_step.continuous_consistency``); warm_up = 0 means a fifth of the training."""
    velocity = lambda setup: continuous_consistency.teacher_velocity(make_teacher(setup, scale))
    return _continuous(velocity, mean, std, sigma_data, warm_up or total // 5, c)


def continuous_training_method(
    mean: float = -1.0, std: float = 1.4, sigma_data: float = 0.5, warm_up: int = 0,
    c: float = 0.1, total: int = 0,
) -> Method:  # fmt: skip
    """sCT (``few_step.continuous_consistency``); warm_up = 0 means a fifth of the training."""
    velocity = lambda setup: continuous_consistency.data_velocity()
    return _continuous(velocity, mean, std, sigma_data, warm_up or total // 5, c)


def _continuous(
    velocity, mean: float, std: float, sigma_data: float, warm_up: int, c: float
) -> Method:
    if warm_up < 0 or sigma_data <= 0 or c <= 0:
        raise ValueError(
            f"config.distill: warm_up={warm_up} must be 0 or more steps, sigma_data={sigma_data} a "
            f"standard deviation and c={c} a norm above 0"
        )

    def recipe(setup: Setup) -> Recipe:
        return continuous_consistency.continuous_consistency(
            setup.student, setup.init, velocity(setup), proposals.log_normal(mean, std), sigma_data,
            warm_up, c, condition_dropout=setup.dropout,
        )  # fmt: skip

    return Method(recipe, students.consistency)


def guidance_method(low: float = 1.0, high: float = 5.0) -> Method:
    """Guidance alone (``few_step.guidance_distillation``), for scales from low to high."""

    def recipe(setup: Setup) -> Recipe:
        teacher, extra_cond = teachers.guided(setup.teacher), teachers.guidance_scales(low, high)
        return guidance_distillation.guidance_distillation(
            setup.student, teacher, setup.init, proposals.uniform(), extra_cond=extra_cond
        )

    return Method(recipe, students.guided, (teachers.SCALE,))


def progressive_method(steps: int, scale: float = 1.0, distance: str = "") -> Method:
    """One stage of progressive distillation: a student of ``steps`` for a teacher of twice as many.

    The next stage is a run of its own, with this stage's student as its teacher.
    """
    check_at_least_1("progressive", steps=steps)
    loss_distance = make_distance(distance)
    recipe = lambda setup: progressive.progressive(
        setup.student, make_teacher(setup, scale), setup.init, condition_dropout=setup.dropout,
        distance=loss_distance,
    )  # fmt: skip
    return Method(recipe, students.plain, frozen=lambda: {progressive.STEPS: jnp.int32(steps)})


def reflow_method(
    steps: int = 8, scale: float = 1.0, solver: str = "flow_heun", distance: str = "",
    ends: float = 0.0,
) -> Method:  # fmt: skip
    """Reflow (``few_step.reflow``) on pairs of ``steps`` teacher steps, generated when needed.

    ``ends`` is the argument a of ``proposals.u_shaped``; 0 draws levels uniformly.
    """
    check_at_least_1("reflow", steps=steps)
    check_solver("reflow", solver)
    loss_distance = make_distance(distance)
    proposal = proposals.u_shaped(ends) if ends else proposals.uniform()

    def recipe(setup: Setup) -> Recipe:
        levels = grids.trailing(setup.student.process, steps)
        coupling = reflow.pairs_from_teacher(make_teacher(setup, scale), SOLVERS[solver](), levels)
        return reflow.reflow(
            setup.student,
            setup.init,
            coupling,
            proposal,
            distance=loss_distance,
            condition_dropout=setup.dropout,
        )

    return Method(recipe, students.plain)


METHODS: dict[str, Callable[..., Method]] = {
    "consistency_distillation": consistency_distillation_method,
    "consistency_training": consistency_training_method,
    "improved_consistency": improved_consistency_method,
    "easy": easy_method,
    "latent_consistency": latent_consistency_method,
    "continuous_distillation": continuous_distillation_method,
    "continuous_training": continuous_training_method,
    "guidance": guidance_method,
    "progressive": progressive_method,
    "mean_flow": two_levels.mean_flow_method,
    "improved_mean_flow": two_levels.improved_mean_flow_method,
    "shortcut": two_levels.shortcut_method,
    "moment_matching": two_levels.moment_matching_method,
    "trajectory": two_levels.trajectory_method,
    "reflow": reflow_method,
    "distribution_matching": several_networks.distribution_matching_method,
    "improved_distribution_matching": several_networks.improved_distribution_matching_method,
    "score_identity": several_networks.score_identity_method,
    "adversarial": several_networks.adversarial_method,
    "latent_adversarial": several_networks.latent_adversarial_method,
}
