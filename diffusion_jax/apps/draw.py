"""Inputs -> pixels: the one sampler, whatever the model was read from and whatever is edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import jax
from jaxtyping import Array

from diffusion_jax.apps.plan import Drawing, Edit, Generator, Inputs, Sampler, Weights, guided, plan
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.sampling import sample, trajectory
from diffusion_jax.core.types import Jump, Model, NoiseLevel

SamplerOf = Callable[[Model, Weights], Sampler]
"""(model, weights) -> Sampler; they matter to a learned schedule and to a reference model."""

Draw = Callable[[Weights, Array, Inputs], Array]
"""(weights, key, inputs) -> pixels [b, h, w, c], about [-1, 1], not clipped; pure, to be jitted.

The key is that of a stochastic solver, codec or decoder: what the noise in ``inputs`` leaves open.
"""


def make_sampler(generator: Generator, sampler_of: SamplerOf, edits: Sequence[Edit] = ()) -> Draw:
    """The sampler as one function of everything that varies.

    Jitted, it compiles once for a batch size and an image size: new prompts, seeds, scales, masks
    and pictures are data.

    Args:
        generator: its ``weights`` are not looked at; they are the function's first argument.
        sampler_of: how to draw.
        edits: in any order; ``inputs.arrays`` has the arrays of each.
    """

    def draw(weights: Weights, key: Array, inputs: Inputs) -> Array:
        solver_key, codec_key = jax.random.split(key)
        drawing, jump = _planned(generator, sampler_of, edits, weights, inputs, codec_key)
        sampler = drawing.sampler
        x = sample(
            solver_key,
            drawing.resample(sampler.solver),
            drawing.around(jump),
            start(drawing),
            sampler.levels,
            sampler.end,
            sampler.stepped,
        )
        return drawing.paste(sampler.contrast * drawing.decode(x))

    return draw


def make_trajectory(
    generator: Generator, sampler_of: SamplerOf
) -> Callable[[Weights, Array, Inputs], tuple[Array, Array, NoiseLevel]]:
    """As ``make_sampler``: (x_t, predicted x0) at every level, [n, b, ...] in x's space; levels."""

    def draw(weights: Weights, key: Array, inputs: Inputs) -> tuple[Array, Array, NoiseLevel]:
        solver_key, codec_key = jax.random.split(key)
        drawing, jump = _planned(generator, sampler_of, (), weights, inputs, codec_key)
        sampler = drawing.sampler
        way = trajectory(solver_key, sampler.solver, jump, start(drawing), sampler.levels)
        return *way, sampler.levels

    return draw


def start(drawing: Drawing) -> Array:
    """x at the first level: noise of its size there, or the picture with that noise added.

    The latter is image to image where the levels are the last part of a grid (SDEdit, Meng et al.
    2022).
    """
    first: NoiseLevel = jax.tree.map(lambda leaf: leaf[0], drawing.sampler.levels)
    if drawing.picture is not None:
        return corrupt(drawing.picture, drawing.noise, first)
    return drawing.noise * drawing.sampler.deviation(first)


def _planned(
    generator: Generator,
    sampler_of: SamplerOf,
    edits: Sequence[Edit],
    weights: Weights,
    inputs: Inputs,
    key: Array,
) -> tuple[Drawing, Jump]:
    """The edited drawing, and the guided model that its network slot evaluates."""
    model = generator.model_of(weights.params)
    sampler = sampler_of(model, weights)
    apply = lambda drawing, pair: pair[0].apply(drawing, pair[1])
    plain = plan(generator, weights, sampler, inputs, key)
    drawing = reduce(apply, zip(edits, inputs.arrays, strict=True), plain)
    used = inputs.scale if sampler.guided or model.student is not None else None

    def jump_of(cond, negative):
        return guided(model, *weights, cond, used, sampler.guidance, negative)

    return drawing, drawing.network(jump_of)(drawing.cond, drawing.negative)
