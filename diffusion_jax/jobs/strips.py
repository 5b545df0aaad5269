"""One sample's way: the strip, the animation and the arrays of both processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax import pictures
from diffusion_jax.apps.generate import generate_trajectory
from diffusion_jax.build import training
from diffusion_jax.build.experiment import Experiment
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.types import Params
from diffusion_jax.data import DataMissing, load_images, make_dataset, to_uint8
from diffusion_jax.files import whole
from diffusion_jax.jobs.drawing import sampling_function
from diffusion_jax.jobs.placing import jitted, place_params
from diffusion_jax.spec import Config

STRIP_COLUMNS = 9


def save_strip(config: Config, experiment: Experiment, params: Params, path: Path) -> None:
    """The forward process of one data point, and the reverse process of one sample, side by side.

    Beside the picture, of the same name: the sample's way as an animation, x_t and predicted x0,
    and as arrays, an .npz with ``x_t``, ``x0`` [n, h, w, c] in [-1, 1] and ``t`` [n].  Points in
    the plane are drawn as a cloud instead, beside the data.  Every process calls this, and the
    first one writes.
    """
    if len(experiment.shape) == 1:
        save_clouds(config, experiment, params, path)
        return
    xs, x0s, times = _reverse(config, experiment, params, 1)
    process = experiment.process_of(params)
    columns = np.linspace(0, len(times) - 1, min(STRIP_COLUMNS, len(times))).round().astype(int)
    levels = process.at(jnp.asarray(times[columns]))
    frozen = place_params(config, experiment.frozen())
    x0 = jnp.repeat(_first_example(config, experiment, frozen, x0s[-1]), len(columns), 0)
    eps = jax.random.normal(jax.random.key(config.sampler.seed), x0[:1].shape)
    noised = corrupt(x0, jnp.repeat(eps, len(columns), 0), levels)
    # On the variance exploding path x_t leaves [-1, 1]: show it on the variance preserving scale.
    visible = lambda x: x / jnp.sqrt(levels.alpha**2 + levels.sigma**2)[:, None, None, None]
    decode = jitted(config, experiment.model.codec.decode)
    of_decoder = jax.random.key(config.sampler.seed)
    shown = lambda x: np.asarray(to_uint8(decode(frozen, x, of_decoder)))
    rows = [  # data to noise, then noise to data
        ("forward\nx_t", shown(visible(noised))[::-1], times[columns][::-1]),
        ("reverse\nx_t", shown(visible(xs[columns, 0])), times[columns]),
        ("reverse\nx_0", shown(x0s[columns, 0]), times[columns]),
    ]
    every = process.at(jnp.asarray(times))
    way = xs[:, 0] / np.sqrt(np.asarray(every.alpha**2 + every.sigma**2))[:, None, None, None]
    frames = np.concatenate([shown(way), shown(x0s[:, 0])], 2)
    if jax.process_index():  # only now: the programs above are of all processes
        return
    pictures.save_strip(path, rows)
    zoom = max(1, 112 // frames.shape[1])
    pictures.save_animation(path.with_suffix(".gif"), list(frames), zoom=zoom)
    with whole(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, x_t=xs[:, 0], x0=x0s[:, 0], t=times)


def _first_example(config: Config, experiment: Experiment, frozen: Params, sample: Array) -> Array:
    """One data point as the network sees it, [1, ...]: an image in [-1, 1], or its code.

    Where the data is not prepared, as beside a release, the sample stands for it.
    """
    spec = training.data_spec(config, config.data.split)
    one = spec._replace(batch_size=1, shuffle=False, process_index=0, process_count=1)
    try:
        batch: Any = make_dataset(one)[0]
    except DataMissing:
        return jnp.asarray(sample)
    encode = jitted(config, experiment.model.codec.encode)
    return encode(frozen, jnp.asarray(batch["image"]), jax.random.key(0))


def save_clouds(config: Config, experiment: Experiment, params: Params, path: Path) -> None:
    """Noise, half way, samples and data, as points."""
    n = 1000
    xs, x0s, times = _reverse(config, experiment, params, n)
    if jax.process_index():
        return
    data, labels = load_images(config.data.name, "train", n)
    middle = len(times) // 2
    pictures.save_scatter(
        path,
        [
            (f"x_t, t = {times[0]:.2f}", xs[0], None),
            (f"x_t, t = {times[middle]:.2f}", xs[middle], None),
            ("samples", x0s[-1], None),
            ("data", data, labels),
        ],
    )


def _reverse(
    config: Config, experiment: Experiment, params: Params, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x_t [n, b, ...], predicted x0 [n, b, ...], times [n])."""
    draw, reference = sampling_function(config, experiment, _way)
    scale = jnp.float32(config.sampler.guidance_scale)
    key = jax.random.key(config.sampler.seed)
    request, _ = experiment.conditioning.request(n)
    frozen = place_params(config, experiment.frozen())
    way = jitted(config, draw)(reference, frozen, key, params, request, scale)
    xs, x0s, times = jax.device_get(way)
    return xs, x0s, times


def _way(key, model, params, frozen, cond, shape, solver, levels, scale, guidance):
    way = generate_trajectory(
        key, model, params, frozen, cond, shape, solver, levels, scale, guidance
    )
    return *way, levels.t
