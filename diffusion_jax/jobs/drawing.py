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

from diffusion_jax import build, build_sampling
from diffusion_jax.apps.generate import generate
from diffusion_jax.core.guidance import ALWAYS_GUIDED
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Params
from diffusion_jax.data import to_uint8
from diffusion_jax.jobs.placing import jitted, place_batch
from diffusion_jax.jobs.run import open_reference
from diffusion_jax.spec import Config, parse

Draw = Callable[[Array, Params, Array, Array], Array]
"""Jitted (key, params, labels int32 [b], guidance scale []) -> pixels [b, h, w, c] in [-1, 1]."""


class Samples(NamedTuple):
    """images: uint8 [n, h, w, c], or float32 [n, 2] of points; labels: int32 [n]."""

    images: np.ndarray
    labels: np.ndarray


def drawer(config: Config, experiment: build.Experiment) -> Draw:
    """The sampler that the config names, compiled once for each batch size."""
    draw, reference = sampling_function(config, experiment, generate)
    return partial(jitted(config, draw), reference)


def sampling_function(
    config: Config, experiment: build.Experiment, generate: Callable[..., Any]
) -> tuple[Callable[..., Any], Params]:
    """What is to be jitted, and its first argument, the reference's parameters (None without one).

    Args:
        config: its sampler section says how.
        experiment: what the parameters mean.
        generate: ``apps.generate.generate``, or a function of the same arguments.

    Returns:
        (reference's params, key, params, labels int32 [b], guidance scale []) -> generate's result.
    """
    sampler_of = build_sampling.sampler_of(config, experiment)
    guided, reference = is_guided(config), open_reference(config)

    def draw(of_reference, key, params, labels, scale):
        model, solver, levels = sampler_of(params)
        worse = reference and denoiser(reference.experiment.model_of(of_reference), of_reference)
        return generate(
            key,
            model,
            params,
            {},
            condition_of(config, labels),
            (labels.shape[0], *experiment.shape),
            solver,
            levels,
            scale if guided else None,
            build_sampling.guidance(config, experiment.model, worse),
        )

    return draw, reference and reference.params


def is_guided(config: Config) -> bool:
    """Whether the guidance scale changes anything: 1 is the plain model, at half the cost."""
    name = parse(config.sampler.guidance, "sampler.guidance")[0]
    return config.sampler.guidance_scale != 1 or name in ALWAYS_GUIDED


def condition_of(config: Config, labels: Array) -> dict[str, Array]:
    """{"label": labels}, or {} for a model without classes."""
    return {"label": labels} if config.data.num_classes else {}


def draw_many(config: Config, draw: Draw, params: Params, n: int) -> Samples:
    """n samples in batches of one size, with progress; a function of ``config.sampler.seed``.

    Raises:
        FloatingPointError: if a sample is not finite.
    """
    size = min(config.sampler.batch_size, n)
    labels = labels_of(config, -(-n // size) * size)
    scale = jnp.float32(config.sampler.guidance_scale)
    keys = jax.random.split(jax.random.key(config.sampler.seed), len(labels) // size)
    parts = []
    bar = tqdm(total=n, desc="sampling", unit="image", leave=False, disable=jax.process_index() > 0)
    with bar:
        for i, key in enumerate(keys):
            rows = place_batch(config, labels[i * size : (i + 1) * size])
            part = jax.device_get(draw(key, params, rows, scale))
            if not np.isfinite(part).all():
                raise FloatingPointError(
                    f"config.sampler.solver = {config.sampler.solver!r} on grid "
                    f"{config.sampler.grid!r} gave values that are not finite; take more "
                    "sampler.steps, another grid or solver, or an earlier checkpoint"
                )
            parts.append(np.asarray(part if part.ndim == 2 else to_uint8(part)))
            bar.update(min(size, n - i * size))
    return Samples(np.concatenate(parts)[:n], labels[:n])


def labels_of(config: Config, n: int) -> np.ndarray:
    """The n labels to sample: ``config.sampler.labels``, or all classes, in turn.

    Raises:
        ValueError: for a label that the model does not have.
    """
    classes = config.data.num_classes
    wanted = list(config.sampler.labels) or list(range(max(classes, 1)))
    wrong = [label for label in wanted if not 0 <= label < max(classes, 1)]
    if wrong:
        raise ValueError(
            f"config.sampler.labels has {wrong[0]}; the model's labels are 0 to {classes - 1}"
        )
    return np.resize(np.asarray(wanted, np.int32), n)
