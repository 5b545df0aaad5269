"""Methods of two levels: the student is told where to go as well as where it is.

Its network reads both (``core.flow_maps``); a solver calls it as a ``Jump``.
"""

from __future__ import annotations

from diffusion_jax.build.few_step.method import (
    Method,
    Pair,
    at_least_1,
    distance_of,
    followed,
    leader,
    teacher_of,
)
from diffusion_jax.core import flow_maps, proposals
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Recipe
from diffusion_jax.recipes.few_step import consistency, students, teachers, two_times
from diffusion_jax.recipes.few_step import continuous_consistency as continuous
from diffusion_jax.recipes.few_step import mean_flow as flow
from diffusion_jax.recipes.few_step import moment_matching as moments
from diffusion_jax.recipes.few_step import shortcut as doubling
from diffusion_jax.recipes.few_step import trajectory as meeting


def mean_flow(
    scale: float = 1.0, same: float = 0.75, mean: float = -0.4, std: float = 1.0,
    to_clean: float = 0.0, follow: str = "data", distance: str = "",
) -> Method:  # fmt: skip
    """MeanFlow (``recipes.mean_flow``), with guidance by ``scale`` in its target.

    ``follow="teacher"`` takes the guided teacher's velocity for v in place of the data's; as its
    errors are no noise, the paper's adaptive distance weighs the large ones down: name another.
    """
    times = two_times.ordered(proposals.logit_normal(mean, std), same, to_clean)
    return _mean_flow("mean_flow", flow.along_target, scale, times, follow, distance)


def improved_mean_flow(
    scale: float = 1.0, same: float = 0.5, mean: float = -0.4, std: float = 1.0,
    to_clean: float = 0.0, follow: str = "data", distance: str = "",
) -> Method:  # fmt: skip
    """Improved MeanFlow (``recipes.mean_flow``); ``follow`` as for ``mean_flow``."""
    times = two_times.ordered(proposals.logit_normal(mean, std), same, to_clean)
    return _mean_flow("improved_mean_flow", flow.along_own, scale, times, follow, distance)


def _mean_flow(
    name: str, along: flow.Along, scale: float, times: two_times.Times, follow: str, distance: str
) -> Method:
    own = distance_of(distance)

    def recipe(pair: Pair) -> Recipe:
        teacher = leader(pair, name, follow, scale)
        # A teacher is guided itself, the data's velocity by the target.
        mix = None if scale == 1 or teacher is not None else flow.mixed(scale)
        return flow.mean_flow(
            pair.student, pair.init, _velocity(teacher), times, along, mix, own,
            condition_dropout=pair.dropout,
        )  # fmt: skip

    return Method(recipe, students.two_levels, (flow_maps.END,))


def shortcut(
    finest: int = 128, bootstrap: float = 0.25, follow: str = "data", scale: float = 1.0
) -> Method:
    """Shortcut models (``recipes.shortcut``); ``scale`` is of the teacher that is followed."""
    _guides_a_teacher("shortcut", follow, scale)

    def recipe(pair: Pair) -> Recipe:
        velocity = _velocity(leader(pair, "shortcut", follow, scale))
        return doubling.shortcut(
            pair.student, pair.init, velocity, finest=finest, bootstrap=bootstrap,
            condition_dropout=pair.dropout,
        )  # fmt: skip

    return Method(recipe, students.two_levels, (flow_maps.END,))


def moment_matching(
    particles: int = 4, gap: float = 0.02, to_clean: float = 0.0,
    follow: str = "data", scale: float = 1.0,
) -> Method:  # fmt: skip
    """Inductive moment matching (``recipes.moment_matching``), r less than t by ``gap`` of time.

    ``to_clean`` is the share of jumps that end in clean data, as one call's does; ``scale`` is of
    the teacher, if its DDIM step leads from t to r in place of the data's own noise.
    """
    _guides_a_teacher("moment_matching", follow, scale)
    times = two_times.below(proposals.uniform(), to_clean)

    def recipe(pair: Pair) -> Recipe:
        teacher = leader(pair, "moment_matching", follow, scale)
        way = None if teacher is None else consistency.taught(teacher, SOLVERS["ddim"]())
        return moments.moment_matching(
            pair.student, pair.init, moments.less_time(gap), particles, times, way=way,
            condition_dropout=pair.dropout,
        )  # fmt: skip

    return Method(recipe, students.two_levels, (flow_maps.END,))


def _velocity(teacher: teachers.Teacher | None) -> continuous.Velocity:
    return continuous.of_data() if teacher is None else continuous.of_teacher(teacher)


def _guides_a_teacher(name: str, follow: str, scale: float) -> None:
    if scale != 1 and follow != "teacher":
        raise ValueError(
            f"config.distill: {name}(scale={scale}) guides a teacher; give follow='teacher' too"
        )


def trajectory(
    steps: int = 4, scale: float = 1.0, matching: float = 1.0, distance: str = "",
    to_clean: float = 0.1, solver: str = "flow_heun",
) -> Method:  # fmt: skip
    """Consistency trajectory models (``recipes.trajectory``), ``steps`` of the teacher at most."""
    at_least_1("trajectory", steps=steps)
    followed("trajectory", solver)
    times = two_times.below(proposals.uniform(), to_clean)
    own = distance_of(distance)
    recipe = lambda pair: meeting.trajectory(
        pair.student, pair.init, teacher_of(pair, scale), times, SOLVERS[solver](), steps, matching,
        condition_dropout=pair.dropout, distance=own,
    )  # fmt: skip
    return Method(recipe, students.two_levels, (flow_maps.END,))
