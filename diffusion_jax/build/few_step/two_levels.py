"""Methods of two levels: the student is conditioned on the level it jumps to as well.

Its network takes both levels (``core.flow_maps``); a solver calls it as a ``Jump``.
"""

from __future__ import annotations

from diffusion_jax.build.few_step.method import (
    Method,
    Setup,
    check_at_least_1,
    check_solver,
    make_distance,
    make_teacher,
    teacher_to_follow,
)
from diffusion_jax.core import flow_maps, proposals
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Recipe
from diffusion_jax.recipes.few_step import (
    consistency,
    continuous_consistency,
    mean_flow,
    moment_matching,
    shortcut,
    students,
    teachers,
    trajectory,
    two_times,
)


def mean_flow_method(
    scale: float = 1.0, same: float = 0.75, mean: float = -0.4, std: float = 1.0,
    to_clean: float = 0.0, follow: str = "data", distance: str = "",
) -> Method:  # fmt: skip
    """MeanFlow (``few_step.mean_flow``), with guidance by ``scale`` in its target.

    ``follow="teacher"`` takes the guided teacher's velocity for v in place of the data's.  Errors
    are then not noise, and the paper's adaptive distance down-weights the large ones: choose
    another.
    """
    times = two_times.ordered(proposals.logit_normal(mean, std), same, to_clean)
    return _mean_flow("mean_flow", mean_flow.target_tangent, scale, times, follow, distance)


def improved_mean_flow_method(
    scale: float = 1.0, same: float = 0.5, mean: float = -0.4, std: float = 1.0,
    to_clean: float = 0.0, follow: str = "data", distance: str = "",
) -> Method:  # fmt: skip
    """Improved MeanFlow (``few_step.mean_flow``); ``follow`` as for ``mean_flow``."""
    times = two_times.ordered(proposals.logit_normal(mean, std), same, to_clean)
    return _mean_flow(
        "improved_mean_flow", mean_flow.network_tangent, scale, times, follow, distance
    )


def _mean_flow(
    name: str,
    tangent: mean_flow.Tangent,
    scale: float,
    times: two_times.Times,
    follow: str,
    distance: str,
) -> Method:
    loss_distance = make_distance(distance)

    def recipe(setup: Setup) -> Recipe:
        teacher = teacher_to_follow(setup, name, follow, scale)
        # A teacher's velocity is guided already; for the data's, the target is.
        guided = scale != 1 and teacher is None
        guidance = mean_flow.constant_guidance(scale) if guided else None
        return mean_flow.mean_flow(
            setup.student, setup.init, _velocity(teacher), times, tangent, guidance,
            loss_distance, condition_dropout=setup.dropout,
        )  # fmt: skip

    return Method(recipe, students.two_levels, (flow_maps.END,))


def shortcut_method(
    finest: int = 128, bootstrap: float = 0.25, follow: str = "data", scale: float = 1.0
) -> Method:
    """Shortcut models (``few_step.shortcut``); ``scale`` guides ``follow="teacher"``."""
    _check_scale("shortcut", follow, scale)

    def recipe(setup: Setup) -> Recipe:
        velocity = _velocity(teacher_to_follow(setup, "shortcut", follow, scale))
        return shortcut.shortcut(
            setup.student, setup.init, velocity, finest=finest, bootstrap=bootstrap,
            condition_dropout=setup.dropout,
        )  # fmt: skip

    return Method(recipe, students.two_levels, (flow_maps.END,))


def moment_matching_method(
    particles: int = 4, gap: float = 0.02, to_clean: float = 0.0,
    follow: str = "data", scale: float = 1.0,
) -> Method:  # fmt: skip
    """Inductive moment matching (``few_step.moment_matching``), with a ``gap`` in time from t to r.

    ``to_clean`` is the share of jumps that end in clean data, as one-step samples do; ``scale`` is
    the teacher's guidance, if its DDIM step leads from t to r in place of the same noise.
    """
    _check_scale("moment_matching", follow, scale)
    times = two_times.uniform_end(proposals.uniform(), to_clean)

    def recipe(setup: Setup) -> Recipe:
        teacher = teacher_to_follow(setup, "moment_matching", follow, scale)
        ddim = SOLVERS["ddim"]()
        transition = None if teacher is None else consistency.teacher_step(teacher, ddim)
        return moment_matching.moment_matching(
            setup.student, setup.init, moment_matching.less_time(gap), particles, times,
            transition=transition, condition_dropout=setup.dropout,
        )  # fmt: skip

    return Method(recipe, students.two_levels, (flow_maps.END,))


def _velocity(teacher: teachers.Teacher | None) -> continuous_consistency.Velocity:
    if teacher is None:
        return continuous_consistency.data_velocity()
    return continuous_consistency.teacher_velocity(teacher)


def _check_scale(name: str, follow: str, scale: float) -> None:
    if scale != 1 and follow != "teacher":
        raise ValueError(
            f"config.distill: {name}(scale={scale}) guides a teacher; give follow='teacher' too"
        )


def trajectory_method(
    steps: int = 4, scale: float = 1.0, matching: float = 1.0, distance: str = "",
    to_clean: float = 0.1, solver: str = "flow_heun",
) -> Method:  # fmt: skip
    """Consistency trajectory models (``few_step.trajectory``), with ``steps`` of the teacher."""
    check_at_least_1("trajectory", steps=steps)
    check_solver("trajectory", solver)
    times = two_times.uniform_end(proposals.uniform(), to_clean)
    loss_distance = make_distance(distance)
    recipe = lambda setup: trajectory.trajectory(
        setup.student, setup.init, make_teacher(setup, scale), times, SOLVERS[solver](), steps,
        matching, condition_dropout=setup.dropout, distance=loss_distance,
    )  # fmt: skip
    return Method(recipe, students.two_levels, (flow_maps.END,))
