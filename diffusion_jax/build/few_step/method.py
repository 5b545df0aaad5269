"""What a distillation method is, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffusion_jax.core.bounds import Shown, as_is, inside
from diffusion_jax.core.losses import DISTANCES, Distance
from diffusion_jax.core.types import Model, Params, Recipe
from diffusion_jax.recipes.few_step import students, teachers


class Pair(NamedTuple):
    """What a recipe is made of.

    Attributes:
        student, teacher: what their parameters mean.
        init: (key, x, cond) -> the student's network's parameters.
        dropout: share of examples whose condition is emptied.
        name, network: what ``config.model.name`` says, and the module that it names.
        frozen: () -> the parameters that codec and condition read.
        pixels: whether x0 is of pixels in [-1, 1], and no code or point.
        classes: of the data's labels; 0 for none.
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
    """One way to distill.

    Attributes:
        recipe: how a student is trained.
        reads: how it is sampled.
        scalars: what its network is told beside level and condition.
        frozen: () -> what the loss reads beside the teacher.
        groups: of ``train.optimizer.grouped``, of several players; () for one.
        copies: keys of params that start as the teacher's network.
    """

    recipe: Callable[[Pair], Recipe]
    reads: students.Reading
    scalars: tuple[str, ...] = ()
    frozen: Callable[[], Params] = dict
    groups: tuple[tuple[str, float, int], ...] = ()
    copies: tuple[str, ...] = ("net",)


def teacher_of(pair: Pair, scale: float) -> teachers.Teacher:
    """Under classifier-free guidance, unless the scale is 1."""
    if scale == 1:
        return teachers.plain(pair.teacher)
    return teachers.guided(pair.teacher, scale=jnp.float32(scale))


def leader(pair: Pair, name: str, follow: str, scale: float) -> teachers.Teacher | None:
    """The guided teacher whose flow a method follows; None where it follows the data it draws."""
    if follow == "teacher":
        return teacher_of(pair, scale)
    if follow != "data":
        raise ValueError(f"config.distill: {name}(follow={follow!r}); known are data, teacher")
    return None


def shown_of(pair: Pair) -> Shown:
    """How a student's x0 is seen in its loss: pixels in their range, all else as it is."""
    return inside() if pair.pixels else as_is


def followed(name: str, solver: str) -> None:
    """Refuse a method's ``solver`` that is not in ``FOLLOWED``."""
    if solver not in FOLLOWED:
        raise ValueError(
            f"config.distill: {name}(solver={solver!r}); known are {', '.join(FOLLOWED)}"
        )


def distance_of(name: str) -> Distance | None:
    """One of ``DISTANCES``; None, which is the method's own, for ""; or a refusal."""
    if not name:
        return None
    if name not in DISTANCES:
        raise ValueError(
            f"config.distill: distance={name!r} is not known; take one of {', '.join(DISTANCES)}"
        )
    return DISTANCES[name]()


def at_least_1(name: str, **given: int) -> None:
    """Refuse a method's arguments that are below 1."""
    for field, value in given.items():
        if value < 1:
            raise ValueError(f"config.distill: {name}({field}={value}) must be 1 or more")


# Solvers of one step without memory, which a teacher is followed by.
FOLLOWED = ("ddim", "flow_heun", "heun")
