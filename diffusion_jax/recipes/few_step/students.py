"""How students are sampled: each as a ``Jump``, which solvers call; no teacher is needed."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import flow_maps
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Cond, Jump, Model, Params
from diffusion_jax.recipes.few_step.teachers import SCALE

Student = Callable[[Model, Params, Cond, Array | None], Jump]
"""(model, params, cond, guidance scale or None) -> the student as a map between levels."""


def plain(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """A denoiser, without further guidance."""
    del scale
    return flow_maps.to_clean(lambda x, level: denoiser(model, params)(x, level, cond))


def bounded(boundary: flow_maps.Boundary) -> Student:
    """A consistency function of one level, which a boundary makes x itself at the clean level."""

    def student(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
        del scale
        f = flow_maps.bounded(denoiser(model, params), boundary)
        return flow_maps.to_clean(lambda x, level: f(x, level, cond))

    return student


consistency: Student = bounded(flow_maps.free())
"""A consistency function of one level, x itself at the clean level."""


def with_scale(student: Student) -> Student:
    """A student, conditioned on the guidance scale."""
    return lambda model, params, cond, scale: student(
        model, params, _with_scale_in_cond(cond, scale), None
    )


def _with_scale_in_cond(cond: Cond, scale: Array | None) -> Cond:
    b = next(iter(cond.values())).shape[0] if cond else 1
    return {**cond, SCALE: jnp.full((b,), 1.0 if scale is None else scale, jnp.float32)}


guided: Student = with_scale(plain)
"""A denoiser, conditioned on the guidance scale."""


def two_levels(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """A network of two times."""
    del scale
    return flow_maps.condition(flow_maps.jumper(model, params), cond)
