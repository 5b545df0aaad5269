"""Condition -> pixels: the one composition that every sampler of images is."""

from __future__ import annotations

import jax
from jaxtyping import Array

from diffusion_jax.core.guidance import GUIDANCES, Guidance, Weight
from diffusion_jax.core.sampling import prior, sample, trajectory
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Cond, Denoise, Model, NoiseLevel, Params, Solver

CFG = GUIDANCES["cfg"]()


def generate(
    key: Array,
    model: Model,
    params: Params,
    frozen: Params,
    cond: Cond,
    shape: tuple[int, ...],
    solver: Solver,
    levels: NoiseLevel,
    guidance_scale: Weight | None = None,
    guidance: Guidance = CFG,
) -> Array:
    """Draw x_T, walk it to x_0, decode it.  Pure: jit it over model, shape and solver.

    Args:
        key: randomness of x_T and of the solver.
        model: what params mean.
        params: usually the EMA.
        frozen: parameters of the codec and the encoders.
        cond: the wanted condition, leaves [b, ...].
        shape: of x, (b, ...).
        solver: see ``core.solvers``.
        levels: [n], see ``core.grids``.
        guidance_scale: None for the plain conditional model, which costs half.
        guidance: what the scale is of; classifier-free guidance unless another is given.

    Returns:
        Pixels in [-1, 1] (not clipped), [b, h, w, c].
    """
    of_x, of_solver = jax.random.split(key)
    denoise = guided(model, params, frozen, cond, guidance_scale, guidance)
    x = sample(of_solver, solver, denoise, prior(of_x, shape, levels), levels)
    return model.codec.decode(frozen, x)


def generate_trajectory(
    key: Array,
    model: Model,
    params: Params,
    frozen: Params,
    cond: Cond,
    shape: tuple[int, ...],
    solver: Solver,
    levels: NoiseLevel,
    guidance_scale: Weight | None = None,
    guidance: Guidance = CFG,
) -> tuple[Array, Array]:
    """As ``generate``: (x_t, predicted x0) at every level, [n, b, ...], in the space of x."""
    of_x, of_solver = jax.random.split(key)
    denoise = guided(model, params, frozen, cond, guidance_scale, guidance)
    return trajectory(of_solver, solver, denoise, prior(of_x, shape, levels), levels)


def guided(
    model: Model,
    params: Params,
    frozen: Params,
    cond: Cond,
    guidance_scale: Weight | None,
    guidance: Guidance = CFG,
) -> Denoise:
    """The model under guidance; there is no empty condition where the scale is None."""
    contrast = guidance_scale is not None and bool(jax.tree.leaves(cond))
    null = model.null(frozen, cond) if contrast else None
    return guidance(denoiser(model, params), cond, null, guidance_scale)
