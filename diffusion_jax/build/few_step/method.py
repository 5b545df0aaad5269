"""A distillation method, and the helpers that all methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffusion_jax.core.bounds import Clip, clip_to, no_clip
from diffusion_jax.core.losses import DISTANCES, Distance
from diffusion_jax.core.types import Model, Params, Recipe
from diffusion_jax.recipes.few_step import students, teachers


class Setup(NamedTuple):
    """What a method builds its recipe from.

    Attributes:
        student, teacher: the models of both.
        init: (key, x, cond) -> parameters of the student's network.
        dropout: share of examples that get the null condition.
        name, network: ``config.model.name``, and the Flax module that it names.
        frozen: () -> the frozen parameters of codec and condition.
        pixels: whether x0 is pixels in [-1, 1], not latents or points.
        classes: number of the data's classes; 0 for none.
    """

    student: Model
    teacher: Model
    init: Callable[..., Params]
    dropout: float
    name: str
    network: Any
    frozen: Callable[[], Params]
    pixels: bool
    classes: int


class Method(NamedTuple):
    """One way to distil.

    Attributes:
        recipe: how a student is trained.
        student: how it is sampled.
        scalars: names of scalars that its network is conditioned on, beside level and condition.
        frozen: () -> frozen parameters of the loss, beside the teacher's.
        groups: those of ``train.optimizer.grouped`` for several networks; () for one.
        copies: keys of params that start as copies of the teacher's network.
    """

    recipe: Callable[[Setup], Recipe]
    student: students.Student
    scalars: tuple[str, ...] = ()
    frozen: Callable[[], Params] = dict
    groups: tuple[tuple[str, float, int], ...] = ()
    copies: tuple[str, ...] = ("net",)


def make_teacher(setup: Setup, scale: float) -> teachers.Teacher:
    """The teacher, under classifier-free guidance unless the scale is 1."""
    if scale == 1:
        return teachers.unguided(setup.teacher)
    return teachers.guided(setup.teacher, scale=jnp.float32(scale))


def teacher_to_follow(
    setup: Setup, name: str, follow: str, scale: float
) -> teachers.Teacher | None:
    """The guided teacher whose velocity a method learns; None for the velocity of the data."""
    if follow == "teacher":
        return make_teacher(setup, scale)
    if follow != "data":
        raise ValueError(f"config.distill: {name}(follow={follow!r}); known are data, teacher")
    return None


def loss_clip(setup: Setup) -> Clip:
    """Clipping of a student's x0 in its loss: pixels to their range, other data not at all."""
    return clip_to() if setup.pixels else no_clip


def check_solver(name: str, solver: str) -> None:
    """Raise ValueError for a ``solver`` that is not one of ``TEACHER_SOLVERS``."""
    if solver not in TEACHER_SOLVERS:
        raise ValueError(
            f"config.distill: {name}(solver={solver!r}); known are {', '.join(TEACHER_SOLVERS)}"
        )


def make_distance(name: str) -> Distance | None:
    """The one of ``DISTANCES`` of this name; None, the method's default, for ""."""
    if not name:
        return None
    if name not in DISTANCES:
        raise ValueError(
            f"config.distill: distance={name!r} is not known; take one of {', '.join(DISTANCES)}"
        )
    return DISTANCES[name]()


def check_at_least_1(name: str, **given: int) -> None:
    """Raise ValueError for arguments of a method that are below 1."""
    for field, value in given.items():
        if value < 1:
            raise ValueError(f"config.distill: {name}({field}={value}) must be 1 or more")


# Solvers for the teacher's flow: each step needs no history.
TEACHER_SOLVERS = ("ddim", "flow_heun", "heun")
