"""Every method of few steps, as a config names it: how a student is trained, and how sampled.

Here are those of one level, f(x, now): x0, or x itself where now is clean.  ``two_levels`` has
those of two, ``several_networks`` those that train several.  Solvers call all as a ``Jump``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.build.few_step import several_networks as several
from diffusion_jax.build.few_step import two_levels as jumps
from diffusion_jax.build.few_step.method import (
    Method,
    Pair,
    at_least_1,
    distance_of,
    followed,
    shown_of,
    teacher_of,
)
from diffusion_jax.core import flow_maps, grids, proposals
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Recipe
from diffusion_jax.recipes.few_step import consistency as one_function
from diffusion_jax.recipes.few_step import continuous_consistency as continuous
from diffusion_jax.recipes.few_step import guidance_distillation as of_guidance
from diffusion_jax.recipes.few_step import progressive as halving
from diffusion_jax.recipes.few_step import reflow as straight
from diffusion_jax.recipes.few_step import students, teachers
from diffusion_jax.recipes.few_step.latent_consistency import latent_consistency as latent


def _of_one_level(setting: Callable[[Pair], one_function.Setting], distance: str = "") -> Method:
    own = distance_of(distance)

    def recipe(pair: Pair) -> Recipe:
        made = setting(pair)
        made = made._replace(distance=own or made.distance)
        return one_function.consistency(
            pair.student, pair.init, made, condition_dropout=pair.dropout, shown=shown_of(pair)
        )

    return Method(recipe, students.consistency)


def consistency_distillation(
    levels: int = 18, solver: str = "flow_heun", scale: float = 1.0, distance: str = ""
) -> Method:
    """Consistency distillation (``consistency.distillation``) of a teacher under guidance.

    The paper's Heun, in sigma, is for grids of sigma; from pure noise its first step is far off.
    """
    at_least_1("consistency_distillation", levels=levels)
    followed("consistency_distillation", solver)
    made = lambda pair: one_function.distillation(teacher_of(pair, scale), solver, levels)
    return _of_one_level(made, distance)


def consistency_training(total: int, first: int = 2, last: int = 150, distance: str = "") -> Method:
    """Consistency training (``consistency.training``)."""
    return _of_one_level(lambda pair: one_function.training(total, first, last), distance)


def improved_consistency(
    total: int, first: int = 10, last: int = 1280, mean: float = -1.1, std: float = 2.0,
    distance: str = "",
) -> Method:  # fmt: skip
    """Improved consistency training (``consistency.improved``); no distance is its pseudo-Huber."""
    made = lambda pair: one_function.improved(total, first, last, None, mean, std)
    return _of_one_level(made, distance)


def easy(
    total: int,
    stages: int = 8,
    q: float = 2.0,
    k: float = 8.0,
    mean: float = -1.1,
    std: float = 2.0,
    distance: str = "",
) -> Method:
    """Easy consistency tuning (``consistency.easy``), stages of equal length; no distance: norm."""
    at_least_1("easy", stages=stages)
    stage = -(-total // stages)
    made = lambda pair: one_function.easy(stage, q, k, 1.0, mean, std)
    return _of_one_level(made, distance)


def latent_consistency(
    levels: int = 50, low: float = 1.0, high: float = 5.0, distance: str = "", scale: float = 0.0
) -> Method:
    """Latent consistency (``recipes.latent_consistency``).

    Args:
        levels: steps of the teacher's DDIM.
        low, high: scales that are drawn, and that the student is told.
        distance: d, of ``losses.DISTANCES``; none is pseudo-Huber.
        scale: of all examples instead, which the student is not told (LCM-LoRA); 0 for none.
    """
    at_least_1("latent_consistency", levels=levels)
    own, boundary = distance_of(distance), flow_maps.latent_consistency()
    tell = teachers.nothing if scale else teachers.scales(low, high)
    reads = students.bounded(boundary)

    def recipe(pair: Pair) -> Recipe:
        teacher = teacher_of(pair, scale) if scale else teachers.guided(pair.teacher)
        return latent(
            pair.student, teacher, pair.init, levels, tell, boundary, own,
            shown=shown_of(pair),
        )  # fmt: skip

    if scale:
        return Method(recipe, reads)
    return Method(recipe, students.told(reads), (teachers.SCALE,))


def continuous_distillation(
    mean: float = -0.8, std: float = 1.6, sigma_data: float = 0.5, warm_up: int = 0,
    scale: float = 1.0, c: float = 0.1, total: int = 0,
) -> Method:  # fmt: skip
    """sCD (``recipes.continuous_consistency``); warm_up = 0 is a fifth of the training."""
    velocity = lambda pair: continuous.of_teacher(teacher_of(pair, scale))
    return _continuous(velocity, mean, std, sigma_data, warm_up or total // 5, c)


def continuous_training(
    mean: float = -1.0, std: float = 1.4, sigma_data: float = 0.5, warm_up: int = 0,
    c: float = 0.1, total: int = 0,
) -> Method:  # fmt: skip
    """sCT (``recipes.continuous_consistency``); warm_up = 0 is a fifth of the training."""
    of_data = lambda pair: continuous.of_data()
    return _continuous(of_data, mean, std, sigma_data, warm_up or total // 5, c)


def _continuous(
    velocity, mean: float, std: float, sigma_data: float, warm_up: int, c: float
) -> Method:
    if warm_up < 0 or sigma_data <= 0 or c <= 0:
        raise ValueError(
            f"config.distill: warm_up={warm_up} must be 0 or more steps, sigma_data={sigma_data} a "
            f"deviation and c={c} a norm above 0"
        )

    def recipe(pair: Pair) -> Recipe:
        return continuous.continuous_consistency(
            pair.student, pair.init, velocity(pair), proposals.log_normal(mean, std), sigma_data,
            warm_up, c, condition_dropout=pair.dropout,
        )  # fmt: skip

    return Method(recipe, students.consistency)


def guidance(low: float = 1.0, high: float = 5.0) -> Method:
    """Guidance alone (``recipes.guidance_distillation``), told scales from low to high."""

    def recipe(pair: Pair) -> Recipe:
        teacher, tell = teachers.guided(pair.teacher), teachers.scales(low, high)
        made = of_guidance.guidance_distillation
        return made(pair.student, teacher, pair.init, proposals.uniform(), tell=tell)

    return Method(recipe, students.guided, (teachers.SCALE,))


def progressive(steps: int, scale: float = 1.0, distance: str = "") -> Method:
    """One stage of progressive distillation: ``steps`` of the student for twice as many.

    The next stage is a run of its own, whose teacher is this one's student.
    """
    at_least_1("progressive", steps=steps)
    own = distance_of(distance)
    recipe = lambda pair: halving.progressive(
        pair.student, teacher_of(pair, scale), pair.init, condition_dropout=pair.dropout,
        distance=own,
    )  # fmt: skip
    return Method(recipe, students.plain, frozen=lambda: {halving.STEPS: jnp.int32(steps)})


def reflow(
    steps: int = 8, scale: float = 1.0, solver: str = "flow_heun", distance: str = "",
    ends: float = 0.0,
) -> Method:  # fmt: skip
    """Reflow (``recipes.reflow``): pairs by ``steps`` of the teacher, made as they are needed.

    ``ends`` is a of ``proposals.u_shaped``; 0 draws levels evenly.
    """
    at_least_1("reflow", steps=steps)
    followed("reflow", solver)
    own = distance_of(distance)
    drawn = proposals.u_shaped(ends) if ends else proposals.uniform()

    def recipe(pair: Pair) -> Recipe:
        levels = grids.trailing(pair.student.process, steps)
        coupling = straight.solved(teacher_of(pair, scale), SOLVERS[solver](), levels)
        return straight.reflow(
            pair.student, pair.init, coupling, drawn, distance=own, condition_dropout=pair.dropout
        )

    return Method(recipe, students.plain)


METHODS: dict[str, Callable[..., Method]] = {
    "consistency_distillation": consistency_distillation,
    "consistency_training": consistency_training,
    "improved_consistency": improved_consistency,
    "easy": easy,
    "latent_consistency": latent_consistency,
    "continuous_distillation": continuous_distillation,
    "continuous_training": continuous_training,
    "guidance": guidance,
    "progressive": progressive,
    "mean_flow": jumps.mean_flow,
    "improved_mean_flow": jumps.improved_mean_flow,
    "shortcut": jumps.shortcut,
    "moment_matching": jumps.moment_matching,
    "trajectory": jumps.trajectory,
    "reflow": reflow,
    "distribution_matching": several.distribution_matching,
    "improved_distribution_matching": several.improved_distribution_matching,
    "score_identity": several.score_identity,
    "adversarial": several.adversarial,
    "latent_adversarial": several.latent_adversarial_distillation,
}
