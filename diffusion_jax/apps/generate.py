"""Condition -> pixels: the one composition that every sampler of images is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.flow_maps import to_clean
from diffusion_jax.core.guidance import GUIDANCES, Guidance, Weight
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.sampling import STARTS, prior, sample, trajectory
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Cond, Jump, Model, NoiseLevel, Params, Solver

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
    negative: Cond | None = None,
    end: NoiseLevel | None = None,
    start: Array | None = None,
) -> Array:
    """Draw x_T, walk it to x_0, decode it.  Pure: jit it over model, shape and solver.

    Args:
        key: randomness of x_T, of the solver and of the decoder.
        model: what params mean.
        params: usually the EMA.
        frozen: parameters of the codec and the encoders.
        cond: the wanted condition, leaves [b, ...].
        shape: of x, (b, ...).
        solver: see ``core.solvers``.
        levels: [n], see ``core.grids``.
        guidance_scale: None for the plain conditional model, which costs half.
        guidance: what the scale is of; classifier-free guidance unless another is given.
        negative: what not to show, in cond's shapes, in place of the empty condition.
        end: see ``core.sampling.sample``.
        start: x at levels[0], of shape, in place of a drawn one.

    Returns:
        Pixels in [-1, 1] (not clipped), [b, h, w, c].
    """
    of_x, of_solver = jax.random.split(key)
    denoise = guided(model, params, frozen, cond, guidance_scale, guidance, negative)
    x = prior(of_x, shape, levels) if start is None else start
    x = sample(of_solver, solver, denoise, x, levels, end)
    # A key beside the two above, which stay what they were.
    return model.codec.decode(frozen, x, jax.random.fold_in(key, 2))


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
    negative: Cond | None = None,
) -> Jump:
    """The model under guidance; there is no empty condition where the scale is None.

    A distilled model knows its guidance, or is told the scale.
    """
    if model.student is not None:
        return model.student(model, params, cond, guidance_scale)
    contrast = guidance_scale is not None and bool(jax.tree.leaves(cond))
    null = model.null(frozen, cond) if contrast and negative is None else negative
    return to_clean(guidance(denoiser(model, params), cond, null, guidance_scale))


def prompted(
    model: Model,
    shape: tuple[int, ...],
    solver: Solver,
    levels: NoiseLevel,
    guidance: Guidance = CFG,
    end: NoiseLevel | None = None,
    deviation: Callable[[NoiseLevel], Array] = STARTS["prior"],
) -> Callable[..., Array]:
    """Text to image as one function, to be jitted once for all prompts, seeds and scales.

    Args:
        model, solver, levels, guidance, end: as for ``generate``.
        shape: of x without the batch.
        deviation: of x at the first level, see ``core.sampling.STARTS``.

    Returns:
        (weights, key, request, negative, scale, start={}) -> uint8 [b, h, w, c].  weights has
        ``params`` and ``frozen``; request and negative are what ``model.condition`` reads, negative
        None for the empty prompt; scale is the guidance's, traced, or None for no guidance, at half
        the cost.  start may have "noise", N(0, 1) [b, *shape], in place of drawn noise, and
        "pixels", [b, h, w, c] in [-1, 1], which that noise is then added to at levels[0]: image to
        image, where levels are the last part of a grid (SDEdit, Meng et al. 2022;
        ``grids.truncate``).
    """

    def draw(
        weights: Any,
        key: Array,
        request: Cond,
        negative: Cond | None,
        scale: Weight,
        start: Mapping[str, Array] = MappingProxyType({}),
    ) -> Array:
        params, frozen = weights.params, weights.frozen
        cond = model.condition(frozen, request)
        avoid = None if negative is None else model.condition(frozen, negative)
        full = (jax.tree.leaves(request)[0].shape[0], *shape)
        key, of_codec, of_noise = jax.random.split(key, 3)
        x = start["noise"] if "noise" in start else jax.random.normal(of_noise, full)
        first = jax.tree.map(lambda leaf: leaf[0], levels)
        if "pixels" in start:
            x = corrupt(model.codec.encode(frozen, start["pixels"], of_codec), x, first)
        else:
            x = x * deviation(first)
        how = (solver, levels, scale, guidance, avoid, end, x)
        return to_uint8(generate(key, model, params, frozen, cond, full, *how))

    return draw


def to_uint8(pixels: Array) -> Array:
    """[-1, 1] -> 0 to 255, rounded and clipped."""
    return jnp.round((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
