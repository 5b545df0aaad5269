"""One sample's trajectory: the strip, the animation and the arrays of both processes."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax import pictures
from diffusion_jax.apps.draw import make_trajectory
from diffusion_jax.apps.plan import Weights
from diffusion_jax.core import seeds
from diffusion_jax.core.process import corrupt
from diffusion_jax.data import to_uint8
from diffusion_jax.files import whole
from diffusion_jax.jobs.drawing import ImageSampler, inputs_of, with_reference
from diffusion_jax.jobs.placing import jitted
from diffusion_jax.jobs.requests import requests_of

STRIP_COLUMNS = 9


def save_strip(sampler: ImageSampler, path: Path, weights: Weights | None = None) -> None:
    """The forward process of one data point, and the reverse process of one sample, side by side.

    Beside the picture, of the same name: the sample's trajectory as an animation, x_t and predicted
    x0, and as arrays, an .npz with ``x_t``, ``x0`` [n, h, w, c] in [-1, 1] and ``t`` [n].  Points
    in the plane are drawn as a cloud instead, beside the data.  Every process calls this, and the
    first one writes.

    Args:
        sampler: whose edits are left aside.
        path: of the picture.
        weights: in place of the generator's, while it is trained.
    """
    weights = with_reference(sampler, weights)
    if not sampler.generator.geometry.size:
        save_clouds(sampler, weights, path)
        return
    generator = sampler.generator
    xs, x0s, times = _reverse(sampler, weights, 1)
    model = generator.model_of(weights.params)
    columns = np.linspace(0, len(times) - 1, min(STRIP_COLUMNS, len(times))).round().astype(int)
    levels = model.process.at(jnp.asarray(times[columns]))
    x0 = jnp.repeat(_first_example(sampler, weights, x0s[-1]), len(columns), 0)
    eps = jax.random.normal(jax.random.key(0), x0[:1].shape)
    noised = corrupt(x0, jnp.repeat(eps, len(columns), 0), levels)
    # On the variance exploding path x_t leaves [-1, 1]: show it on the variance preserving scale.
    visible = lambda x: x / jnp.sqrt(levels.alpha**2 + levels.sigma**2)[:, None, None, None]
    decode = jitted(sampler.settings, model.codec.decode)
    key = jax.random.key(0)
    decoded = lambda x: np.asarray(to_uint8(decode(weights.frozen, x, key)))
    rows = [  # data to noise, then noise to data
        ("forward\nx_t", decoded(visible(noised))[::-1], times[columns][::-1]),
        ("reverse\nx_t", decoded(visible(xs[columns, 0])), times[columns]),
        ("reverse\nx_0", decoded(x0s[columns, 0]), times[columns]),
    ]
    every = model.process.at(jnp.asarray(times))
    visible_xs = (
        xs[:, 0] / np.sqrt(np.asarray(every.alpha**2 + every.sigma**2))[:, None, None, None]
    )
    frames = np.concatenate([decoded(visible_xs), decoded(x0s[:, 0])], 2)
    if jax.process_index():  # only now: the programs above are of all processes
        return
    pictures.save_strip(path, rows)
    zoom = max(1, 112 // frames.shape[1])
    pictures.save_animation(path.with_suffix(".gif"), list(frames), zoom=zoom)
    with whole(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, x_t=xs[:, 0], x0=x0s[:, 0], t=times)


def _first_example(sampler: ImageSampler, weights: Weights, sample: Array) -> Array:
    """One data point as the network sees it, [1, ...]: an image in [-1, 1], or its latent.

    Where the data is not prepared, as beside a release, the sample stands for it.
    """
    read = sampler.generator.examples
    image = None if read is None else read(1)
    if image is None:
        return jnp.asarray(sample)
    encode = jitted(sampler.settings, sampler.generator.model.codec.encode)
    return encode(weights.frozen, jnp.asarray(image), jax.random.key(0))


def save_clouds(sampler: ImageSampler, weights: Weights, path: Path) -> None:
    """Noise, half way, samples and data, as points."""
    n = 1000
    xs, x0s, times = _reverse(sampler, weights, n)
    read = sampler.generator.examples
    data = None if read is None else read(n)
    if jax.process_index():
        return
    middle = len(times) // 2
    panels = [
        (f"x_t, t = {times[0]:.2f}", xs[0], None),
        (f"x_t, t = {times[middle]:.2f}", xs[middle], None),
        ("samples", x0s[-1], None),
    ]
    pictures.save_scatter(path, [*panels, *([] if data is None else [("data", data, None)])])


def _reverse(
    sampler: ImageSampler, weights: Weights, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x_t [n, b, ...], predicted x0 [n, b, ...], times [n])."""
    settings, generator = sampler.settings, sampler.generator
    all_requests = requests_of(settings, generator)
    part = [
        all_requests[i % len(all_requests)]._replace(
            seed=(all_requests[0].seed + i) % seeds.COUNT, size=()
        )
        for i in range(n)
    ]
    inputs = inputs_of(generator, settings, (), part)
    draw = jitted(settings, make_trajectory(generator, sampler.sampler_of))
    xs, x0s, levels = jax.device_get(draw(weights, seeds.key(part[0].seed), inputs))
    return xs, x0s, levels.t
