"""Samples of a model: the compiled sampler, and batches of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from diffusion_jax.apps.generate import generate
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import sampling
from diffusion_jax.core.guidance import ALWAYS_GUIDED
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Params
from diffusion_jax.data import to_uint8
from diffusion_jax.jobs.placing import jitted, place_batch, place_params
from diffusion_jax.jobs.run import open_reference
from diffusion_jax.spec import Config, parse

Draw = Callable[[Array, Params, dict[str, Array], Array], Array]
"""Jitted (key, params, request [b, ...], guidance scale []) -> pixels [b, h, w, c] in [-1, 1].

The request is what ``Model.condition`` reads, such as {"label": int32 [b]}.
"""


class Samples(NamedTuple):
    """images: uint8 [n, h, w, c], or float32 [n, 2] of points.

    labels: int32 [n], the class of each, or which of ``config.sampler.prompts`` it shows.
    """

    images: np.ndarray
    labels: np.ndarray


def drawer(config: Config, experiment: experiments.Experiment) -> Draw:
    """The sampler that the config names, compiled once for each batch size."""
    draw, reference = sampling_function(config, experiment, generate)
    return partial(jitted(config, draw), reference, place_params(config, experiment.frozen()))


def sampling_function(
    config: Config, experiment: experiments.Experiment, generate: Callable[..., Any]
) -> tuple[Callable[..., Any], Params]:
    """What is to be jitted, and its first argument, the reference's parameters (None without one).

    Args:
        config: its sampler section says how.
        experiment: what the parameters mean.
        generate: ``apps.generate.generate``, or a function of the same arguments.

    Returns:
        (reference's params, frozen params, key, params, request [b, ...], guidance scale []) ->
        generate's result.
    """
    sampler_of = sampling.sampler_of(config, experiment)
    guided, reference = is_guided(config), open_reference(config)

    def draw(of_reference, frozen, key, params, request, scale):
        model, solver, levels = sampler_of(params)
        worse = reference and denoiser(reference.experiment.model_of(of_reference), of_reference)
        return generate(
            key,
            model,
            params,
            frozen,
            model.condition(frozen, request),
            (jax.tree.leaves(request)[0].shape[0], *experiment.shape),
            solver,
            levels,
            scale if guided else None,
            sampling.guidance(config, experiment.model, worse),
        )

    return draw, reference and reference.params


def is_guided(config: Config) -> bool:
    """Whether the guidance scale changes anything: 1 is the plain model, at half the cost."""
    name = parse(config.sampler.guidance, "sampler.guidance")[0]
    return config.sampler.guidance_scale != 1 or name in ALWAYS_GUIDED


def draw_many(
    config: Config, experiment: experiments.Experiment, draw: Draw, params: Params, n: int
) -> Samples:
    """n samples in batches of one size, with progress; a function of ``config.sampler.seed``.

    Raises:
        ValueError: if ``config.sampler.contrast`` is not above 0.
        FloatingPointError: if a sample is not finite.
    """
    size, contrast = min(config.sampler.batch_size, n), config.sampler.get("contrast", 1.0)
    if not contrast > 0:
        raise ValueError(f"config.sampler.contrast = {contrast} must be above 0; 1 changes nothing")
    request, labels = experiment.conditioning.request(-(-n // size) * size)
    scale = jnp.float32(config.sampler.guidance_scale)
    keys = jax.random.split(jax.random.key(config.sampler.seed), len(labels) // size)
    parts = []
    bar = tqdm(total=n, desc="sampling", unit="image", leave=False, disable=jax.process_index() > 0)
    with bar:
        for i, key in enumerate(keys):
            part = slice(i * size, (i + 1) * size)
            rows = {name: place_batch(config, array[part]) for name, array in request.items()}
            part = jax.device_get(draw(key, params, rows, scale))
            if not np.isfinite(part).all():
                raise FloatingPointError(
                    f"config.sampler.solver = {config.sampler.solver!r} on grid "
                    f"{config.sampler.grid!r} gave values that are not finite; take more "
                    "sampler.steps, another grid or solver, or an earlier checkpoint"
                )
            parts.append(part if part.ndim == 2 else to_uint8(contrast * part))
            bar.update(min(size, n - i * size))
    return Samples(np.concatenate(parts)[:n], labels[:n])
