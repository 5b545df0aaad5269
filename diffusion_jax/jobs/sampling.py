"""Samples of a model, and the pictures of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from diffusion_jax import build, build_sampling, pictures
from diffusion_jax.apps.generate import generate, generate_trajectory
from diffusion_jax.core.guidance import ALWAYS_GUIDED, Guidance
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Params
from diffusion_jax.data import load_images, to_uint8, to_unit
from diffusion_jax.files import whole
from diffusion_jax.jobs.run import Run, cache_compilations, open_reference, open_run
from diffusion_jax.spec import Config, parse

Draw = Callable[[Array, Params, Array, Array], Array]
"""Jitted (key, params, labels int32 [b], guidance scale []) -> pixels [b, h, w, c] in [-1, 1]."""

STRIP_COLUMNS = 9


class Samples(NamedTuple):
    """images: uint8 [n, h, w, c], or float32 [n, 2] of points; labels: int32 [n]."""

    images: np.ndarray
    labels: np.ndarray


def sample(config: Config, workdir: str | os.PathLike) -> Samples:
    """Draw ``config.sampler.n`` samples from a run; leave a PNG, an .npz and the strip.

    Raises:
        ValueError: if the folder holds no run of this model.
    """
    cache_compilations()
    run = open_run(config, workdir)
    samples = draw_many(config, drawer(config, run.experiment), run.params, config.sampler.n)
    folder = Path(workdir) / "samples"
    stem = f"sample_{run.step:07d}_seed{config.sampler.seed}"
    save_samples(folder / stem, samples)
    save_strip(config, run.experiment, run.params, folder / "strip.png")
    print(f"{len(samples.images)} samples are in {folder / stem}.png and .npz")
    return samples


def drawer(config: Config, experiment: build.Experiment) -> Draw:
    """The sampler that the config names, compiled once for each batch size."""
    sampler_of = build_sampling.sampler_of(config, experiment)
    guided, reference = is_guided(config), open_reference(config)

    @jax.jit
    def draw(of_reference, key, params, labels, scale):
        model, solver, levels = sampler_of(params)
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
            _guidance(config, experiment, reference, of_reference),
        )

    return partial(draw, reference and reference.params)


def is_guided(config: Config) -> bool:
    """Whether the guidance scale changes anything: 1 is the plain model, at half the cost."""
    name = parse(config.sampler.guidance, "sampler.guidance")[0]
    return config.sampler.guidance_scale != 1 or name in ALWAYS_GUIDED


def _guidance(
    config: Config, experiment: build.Experiment, reference: Run | None, params: Params
) -> Guidance:
    """What the config names; params, the reference's, are traced."""
    worse = reference and denoiser(reference.experiment.model_of(params), params)
    return build_sampling.guidance(config, experiment.model, worse)


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
            part = draw(key, params, jnp.asarray(labels[i * size : (i + 1) * size]), scale)
            if not jnp.isfinite(part).all():
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


def save_samples(stem: Path, samples: Samples) -> dict[str, np.ndarray]:
    """Write stem.png, a grid, and stem.npz with ``images`` and ``labels``; return the grid."""
    with whole(stem.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=samples.images, labels=samples.labels)
    if samples.images.ndim == 2:
        pictures.save_scatter(stem.with_suffix(".png"), [("samples", samples.images, None)])
        return {}
    sheet = pictures.grid(samples.images[:100], 10 if len(samples.images) >= 100 else None)
    pictures.save_image(stem.with_suffix(".png"), sheet, zoom=max(1, 56 // samples.images.shape[1]))
    return {"samples": sheet}


def save_strip(config: Config, experiment: build.Experiment, params: Params, path: Path) -> None:
    """The forward process of one data point, and the reverse process of one sample, side by side.

    Beside the picture, of the same name: the sample's way as an animation, x_t and predicted x0,
    and as arrays, an .npz with ``x_t``, ``x0`` [n, h, w, c] in [-1, 1] and ``t`` [n].  Points in
    the plane are drawn as a cloud instead, beside the data.
    """
    if len(experiment.shape) == 1:
        save_clouds(config, experiment, params, path)
        return
    data, labels = load_images(
        config.data.name, config.data.split, 1, tuple(config.data.image_size), config.data.channels,
        config.data.dir or None,
    )  # fmt: skip
    labels = jnp.zeros(1, jnp.int32) if labels is None else jnp.asarray(labels)
    xs, x0s, times = _reverse(config, experiment, params, labels)
    columns = np.linspace(0, len(times) - 1, min(STRIP_COLUMNS, len(times))).round().astype(int)
    levels = experiment.process_of(params).at(jnp.asarray(times[columns]))
    x0 = jnp.repeat(jnp.asarray(to_unit(data)), len(columns), 0)
    eps = jax.random.normal(jax.random.key(config.sampler.seed), x0[:1].shape)
    noised = corrupt(x0, jnp.repeat(eps, len(columns), 0), levels)
    # On the variance exploding path x_t leaves [-1, 1]: show it on the variance preserving scale.
    visible = lambda x: x / jnp.sqrt(levels.alpha**2 + levels.sigma**2)[:, None, None, None]
    shown = lambda x: np.asarray(to_uint8(x))
    rows = [  # data to noise, then noise to data
        ("forward\nx_t", shown(visible(noised))[::-1], times[columns][::-1]),
        ("reverse\nx_t", shown(visible(xs[columns, 0])), times[columns]),
        ("reverse\nx_0", shown(x0s[columns, 0]), times[columns]),
    ]
    pictures.save_strip(path, rows)
    every = experiment.process_of(params).at(jnp.asarray(times))
    way = xs[:, 0] / np.sqrt(np.asarray(every.alpha**2 + every.sigma**2))[:, None, None, None]
    frames = np.concatenate([shown(way), shown(x0s[:, 0])], 2)
    pictures.save_animation(path.with_suffix(".gif"), list(frames), zoom=max(1, 112 // x0.shape[1]))
    with whole(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, x_t=xs[:, 0], x0=x0s[:, 0], t=times)


def save_clouds(config: Config, experiment: build.Experiment, params: Params, path: Path) -> None:
    """Noise, half way, samples and data, as points."""
    n = 1000
    xs, x0s, times = _reverse(config, experiment, params, jnp.asarray(labels_of(config, n)))
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
    config: Config, experiment: build.Experiment, params: Params, labels: Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x_t [n, b, ...], predicted x0 [n, b, ...], times [n])."""
    sampler_of = build_sampling.sampler_of(config, experiment)
    guided, reference = is_guided(config), open_reference(config)
    shape = (labels.shape[0], *experiment.shape)

    @jax.jit
    def run(of_reference, key, params, labels, scale):
        cond = condition_of(config, labels)
        model, solver, levels = sampler_of(params)
        xs, x0s = generate_trajectory(
            key,
            model,
            params,
            {},
            cond,
            shape,
            solver,
            levels,
            scale if guided else None,
            _guidance(config, experiment, reference, of_reference),
        )
        return xs, x0s, levels.t

    scale = jnp.float32(config.sampler.guidance_scale)
    key = jax.random.key(config.sampler.seed)
    made = run(reference and reference.params, key, params, labels, scale)
    xs, x0s, times = jax.device_get(made)
    return xs, x0s, times
