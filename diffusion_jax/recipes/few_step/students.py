"""How students are sampled: each as a ``Jump``, which solvers call, without its teacher."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import flow_maps
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Cond, Jump, Model, Params
from diffusion_jax.recipes.few_step.teachers import SCALE

Reading = Callable[[Model, Params, Cond, Array | None], Jump]
"""(model, params, cond, guidance scale or None) -> the student as a map between levels."""


def plain(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """A denoiser, which knows its guidance already."""
    del scale
    return flow_maps.to_clean(lambda x, level: denoiser(model, params)(x, level, cond))


def bounded(boundary: flow_maps.Boundary) -> Reading:
    """f of one level, kept at x where that is clean by a boundary."""

    def read(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
        del scale
        f = flow_maps.bounded(denoiser(model, params), boundary)
        return flow_maps.to_clean(lambda x, level: f(x, level, cond))

    return read


consistency: Reading = bounded(flow_maps.free())
"""f of one level, x itself where that is clean."""


def told(read: Reading) -> Reading:
    """As another, but told the scale."""
    return lambda model, params, cond, scale: read(model, params, _told(cond, scale), None)


def _told(cond: Cond, scale: Array | None) -> Cond:
    b = next(iter(cond.values())).shape[0] if cond else 1
    return {**cond, SCALE: jnp.full((b,), 1.0 if scale is None else scale, jnp.float32)}


guided: Reading = told(plain)
"""A denoiser that is told the scale."""


def two_levels(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """The network of two times."""
    del scale
    return flow_maps.condition(flow_maps.jumper(model, params), cond)
