"""How students are sampled: each as a ``Jump``, which solvers call, without its teacher."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import flow_maps
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Cond, Jump, Model, Params
from diffusion_jax.recipes.teachers import SCALE

Reading = Callable[[Model, Params, Cond, Array | None], Jump]
"""(model, params, cond, guidance scale or None) -> the student as a map between levels."""


def plain(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """A denoiser, which knows its guidance already."""
    del scale
    return flow_maps.to_clean(lambda x, level: denoiser(model, params)(x, level, cond))


def consistency(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """f of one level, x itself where that is clean."""
    del scale
    f = flow_maps.bounded(denoiser(model, params), flow_maps.free())
    return flow_maps.to_clean(lambda x, level: f(x, level, cond))


def _told(cond: Cond, scale: Array | None) -> Cond:
    b = next(iter(cond.values())).shape[0] if cond else 1
    return {**cond, SCALE: jnp.full((b,), 1.0 if scale is None else scale, jnp.float32)}


def told(boundary: flow_maps.Boundary) -> Reading:
    """As ``consistency``, told the scale, with a boundary."""

    def read(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
        f = flow_maps.bounded(denoiser(model, params), boundary)
        return flow_maps.to_clean(lambda x, level: f(x, level, _told(cond, scale)))

    return read


latent_consistency: Reading = told(flow_maps.latent_consistency())
"""``told`` with LCM's boundary."""


def guided(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """A denoiser that is told the scale."""
    return plain(model, params, _told(cond, scale), None)


def two_levels(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """The network of two times."""
    del scale
    return flow_maps.condition(flow_maps.jumper(model, params), cond)
