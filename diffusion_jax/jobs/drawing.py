"""Images of requests: the compiled sampler of a generator, and batches of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion_jax.apps.draw import Draw, SamplerOf, make_sampler
from diffusion_jax.apps.plan import Edit, Generator, Inputs, Request, Weights, noise_of
from diffusion_jax.build.edits import edits_of, equipped
from diffusion_jax.build.runs import open_reference
from diffusion_jax.build.sampling import REFERENCE, sampler_of, settled
from diffusion_jax.core import seeds
from diffusion_jax.core.types import Params
from diffusion_jax.data import to_uint8
from diffusion_jax.jobs.placing import jitted, place_batch, place_params, place_weights
from diffusion_jax.spec import Config


class Samples(NamedTuple):
    """images: uint8 [n, h, w, c], or float32 [n, 2] of points.

    labels: int32 [n], the class of each, or the number of its prompt.
    """

    images: np.ndarray
    labels: np.ndarray


class ImageSampler(NamedTuple):
    """A generator ready to draw as some settings say.

    Attributes:
        settings: of ``configs/sample.py``, its sampler section settled.
        generator: equipped by the edits; its weights on the devices, None while it is trained.
        edits: those of the settings.
        draw: the sampler, jitted for the mesh.
        sampler_of: what ``draw`` samples by.
        reference: parameters of the worse model of autoguidance, on the devices; None without.
    """

    settings: Config
    generator: Generator
    edits: tuple[Edit, ...]
    draw: Draw
    sampler_of: SamplerOf
    reference: Params | None


def open_sampler(settings: Config, generator: Generator) -> ImageSampler:
    """A generator ready to draw; it compiles at the first image, once for a batch size.

    Raises:
        ValueError: for a sampler or an edit that names nothing, or that the model cannot take.
    """
    chosen, generator, edits, of, reference = chosen_sampler(settings, generator)
    if generator.weights is not None:
        placed = place_weights(settings, generator.weights, generator.networks)
        generator = generator._replace(weights=placed)
    draw = jitted(settings, make_sampler(generator, of, edits))
    return ImageSampler(chosen, generator, edits, draw, of, reference)


def chosen_sampler(
    settings: Config, generator: Generator
) -> tuple[Config, Generator, tuple[Edit, ...], SamplerOf, Params | None]:
    """What ``make_sampler`` takes, as the settings say, and a reference's parameters.

    Returns:
        (settings with their sampler settled, the generator equipped by the edits, edits, what
        samples, parameters of a reference).
    """
    chosen = settings.copy_and_resolve_references().unlock()
    chosen.sampler = settled(settings.sampler, generator)
    edits = edits_of(settings.edits)
    generator = equipped(generator, edits)
    run = open_reference(chosen.sampler, generator)
    of = sampler_of(chosen.sampler, generator, run and run.generator())
    return chosen, generator, edits, of, run and place_params(run.config, run.params)


def draw_requests(
    sampler: ImageSampler,
    requests: Sequence[Request],
    size: int,
    weights: Weights | None = None,
    done: list[np.ndarray] | None = None,
) -> np.ndarray:
    """Images of requests, in batches of one size, with progress.

    Args:
        sampler: see ``open_sampler``.
        requests: at least one, of one image size.
        size: images at once.
        weights: in place of the generator's, while it is trained.
        done: a list that gets each batch as it is finished, for what is to be kept of a job that
            is broken off.

    Returns:
        uint8 [n, h, w, c], or float32 [n, 2] of points.

    Raises:
        FloatingPointError: if a sample is not finite.
    """
    weights, size = with_reference(sampler, weights), min(size, len(requests))
    starts = range(0, len(requests), size)
    parts = [[requests[j % len(requests)] for j in range(i, i + size)] for i in starts]
    read = lambda part: inputs_of(sampler.generator, sampler.settings, sampler.edits, part)
    first, silent = read(parts[0]), jax.process_index() > 0  # mistakes before the bar
    images = [] if done is None else done
    with tqdm(
        total=len(requests), desc="sampling", unit="image", leave=False, disable=silent
    ) as bar:
        for i, part in enumerate(parts):
            inputs = read(part) if i else first
            place = lambda x: place_batch(sampler.settings, x)
            placed = jax.tree.map(place, inputs._replace(scale=()))._replace(scale=inputs.scale)
            pixels = jax.device_get(sampler.draw(weights, seeds.key(part[0].seed), placed))
            left = len(requests) - i * size
            images.append(_finite(pixels, sampler.settings.sampler)[:left])
            bar.update(min(size, left))
    return np.concatenate(images)


def with_reference(sampler: ImageSampler, weights: Weights | None = None) -> Weights:
    """The given weights, or the generator's, with those of a reference beside them."""
    weights = weights or sampler.generator.weights
    if weights is None:
        raise ValueError("this generator has no weights: give those that it is trained to")
    if sampler.reference is None:
        return weights
    return weights._replace(frozen={**weights.frozen, REFERENCE: sampler.reference})


def inputs_of(
    generator: Generator, settings: Config, edits: Sequence[Edit], part: Sequence[Request]
) -> Inputs:
    """What the sampler takes for requests of one size, as host arrays.

    Raises:
        ValueError: for what the model cannot read.
    """
    section, geometry = settings.sampler, generator.geometry
    rows, negative = generator.inputs(part)
    _check_negative(generator, section, part)
    shape = geometry.latent_shape(part[0].size or geometry.size)
    stack = lambda *leaves: np.stack(leaves)
    arrays = tuple(
        jax.tree.map(stack, *(edit.arrays(generator, request) for request in part))
        for edit in edits
    )
    return Inputs(
        rows, negative, noise_of(part, shape), jnp.float32(section.guidance_scale), arrays
    )


def _check_negative(generator: Generator, section: Config, part: Sequence[Request]) -> None:
    negative = next((r.negative_prompt for r in part if r.negative_prompt), "")
    student = generator.model.student is not None
    if negative and (student or section.guidance_scale <= 1):
        why = "this model has its guidance built in"
        why = why if student else f"guidance_scale is {section.guidance_scale}"
        raise ValueError(
            f"config.negative_prompt = {negative!r} changes nothing, as {why}; leave it away, or "
            "guide by sampler.guidance_scale above 1"
        )


def _finite(pixels: np.ndarray, section: Config) -> Any:
    if not np.isfinite(pixels).all():
        raise FloatingPointError(
            f"config.sampler.solver = {section.solver!r} on grid {section.grid!r} gave values that "
            "are not finite; take more sampler.steps, another grid or solver, or an earlier "
            "checkpoint"
        )
    return pixels if pixels.ndim == 2 else to_uint8(pixels)
