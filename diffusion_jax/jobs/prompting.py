"""The job that draws prompts by a Stable Diffusion checkpoint, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from diffusion_jax.apps.generate import prompted
from diffusion_jax.build import sampling, training
from diffusion_jax.build.checkpoint.additions import with_loras
from diffusion_jax.build.checkpoint.control import hints, steered
from diffusion_jax.build.checkpoint.text_to_image import (
    TextToImage,
    Weights,
    text_to_image,
)
from diffusion_jax.convert.mapped import forget
from diffusion_jax.convert.stable_diffusion import Checkpoint, read_checkpoint
from diffusion_jax.convert.textual_inversion import Word, read_word
from diffusion_jax.core.grids import truncate
from diffusion_jax.core.guidance import ALWAYS_GUIDED
from diffusion_jax.core.sampling import STARTS
from diffusion_jax.jobs.prompt_files import Request, read_picture, save
from diffusion_jax.jobs.run import cache_compilations
from diffusion_jax.models.autoencoders.codec import Tiling
from diffusion_jax.models.partition import PARTITIONS
from diffusion_jax.spec import Config, parse
from diffusion_jax.train import sharding

NETWORKS = ("text_unet", "clip_text", "autoencoder")


def draw_prompts(config: Config, workdir: str | os.PathLike) -> np.ndarray:
    """Draw every prompt of the config; leave a PNG of each image and one of all.

    A PNG holds its settings as text, under "parameters".  An image depends on its own seed alone
    where the solver is deterministic, whatever else is drawn beside it.

    Args:
        config: of ``configs/checkpoints/draw.py``.
        workdir: where samples/ is made.

    Returns:
        uint8 [n, h, w, 3].

    Raises:
        FileNotFoundError: naming what the checkpoint lacks.
        ValueError: for a config, a checkpoint or a picture that does not fit.
    """
    requests = requests_of(config)
    cache_compilations()
    made = load(config)
    size = image_size(config, made)
    chosen = with_defaults(config, made)
    draw = sampler(chosen, made, size)
    drawn = draw_requests(config, made, draw, place(config, made.weights), requests)
    save(chosen, Path(workdir) / "samples", requests, drawn)
    return drawn


def draw_requests(
    config: Config,
    made: TextToImage,
    draw: Callable[..., Any],
    weights: Weights,
    requests: list[Request],
) -> np.ndarray:
    """Images of requests, in batches of one size, with progress: uint8 [n, h, w, 3].

    Args:
        config: says how many at once, and the negative prompt and the guidance scale of all.
        made: the checkpoint.
        draw: of ``sampler``.
        weights: on the devices.
        requests: at least one.
    """
    mesh, size = training.mesh(config), image_size(config, made)
    start = _start(config, made, size)
    images = []
    count = min(config.batch_size, len(requests))
    with _progress(len(requests)) as bar:
        for i in range(0, len(requests), count):
            part = [requests[j % len(requests)] for j in range(i, i + count)]
            rows, avoid = rows_of(config, made, part, size)
            where = lambda x: sharding.from_host(np.asarray(x), sharding.of_rows(mesh, len(x)))
            arguments = jax.tree.map(where, (rows, avoid, start(part)))
            key = jax.random.key(part[0].seed)
            scale = guidance_scale(config, made)
            images.append(jax.device_get(draw(weights, key, *arguments[:2], scale, arguments[2])))
            bar.update(min(count, len(requests) - i))
    return np.concatenate(images)[: len(requests)]


def requests_of(config: Config) -> list[Request]:
    """The images that the config asks for.

    Raises:
        ValueError: if there is no prompt, or a number is too small.
    """
    if not config.checkpoint:
        raise ValueError(
            "config.checkpoint is empty; name a Stable Diffusion folder or .safetensors file"
        )
    if len(config.control) != len(config.control_image):
        raise ValueError(
            f"config.control names {len(config.control)} networks and config.control_image "
            f"{len(config.control_image)} pictures; give one picture for each"
        )
    for field in ("n", "batch_size"):
        if config[field] < 1:
            raise ValueError(f"config.{field} = {config[field]} must be at least 1")
    prompts = list(config.prompts) or [config.prompt]
    if prompts == [""]:
        raise ValueError("config.prompt is empty; say what to draw: --config.prompt='a red house'")
    wanted = [prompt for prompt in prompts for _ in range(config.n)]
    return [Request(prompt, config.seed + i) for i, prompt in enumerate(wanted)]


def guidance_scale(config: Config, made: TextToImage) -> np.float32 | None:
    """What the sampler is given; None for the prompt alone, by one call of the network.

    That is a scale of 1, and any below, as in diffusers: few-step checkpoints ask for 0.  A
    network that is told its guidance is told any.

    Raises:
        ValueError: for a negative prompt that then is not looked at.
    """
    told, scale = made.model.student is not None, config.sampler.guidance_scale
    name = parse(config.sampler.guidance, "sampler.guidance")[0]
    guided = not told and (scale > 1 or name in ALWAYS_GUIDED)
    if config.negative_prompt and not guided:
        why = "the checkpoint is told its guidance" if told else f"guidance_scale is {scale}"
        raise ValueError(
            f"config.negative_prompt = {config.negative_prompt!r} changes nothing, as {why}; leave "
            "it away, or guide by sampler.guidance_scale above 1"
        )
    return np.float32(scale) if guided or told else None


def load(config: Config) -> TextToImage:
    """The checkpoint that the config names."""
    if config.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"config.dtype = {config.dtype!r}; known are float32, bfloat16, float16")
    checkpoint = with_loras(read(config), config.lora)
    words = [_word(spec) for spec in config.embeddings]
    least = 4 * checkpoint.autoencoder.module.factor
    if config.tile and config.tile < least:
        raise ValueError(f"config.tile = {config.tile} must be 0, or at least {least} pixels")
    tiling = Tiling(4 * config.tile // least, config.tile // least) if config.tile else None
    made = text_to_image(
        checkpoint, tuple(config.tokenizers), config.dtype, tiling=tiling, words=words
    )
    return steered(made, checkpoint, config.control, config.dtype)


def _word(spec: str) -> Word:
    """The word of "file", or of "<word>=file" where the file does not say its word."""
    name, equals, path = spec.rpartition("=")
    word = read_word(path)
    return word._replace(name=name) if equals else word


def read(config: Config) -> Checkpoint:
    """The files that the config names, as they are."""
    return read_checkpoint(
        config.checkpoint, config.prediction_type or None, config.variant or None
    )


def image_size(config: Config, made: TextToImage) -> tuple[int, int]:
    """(height, width) in pixels.

    Raises:
        ValueError: for a size that the networks cannot halve often enough.
    """
    size = tuple(config.image_size) or (made.size, made.size)
    multiple = made.factor * 2 ** (len(made.net.channel_mults) - 1)
    if len(size) != 2 or any(n < multiple or n % multiple for n in size):
        raise ValueError(
            f"config.image_size = {size} must be (height, width), multiples of {multiple}"
        )
    return size


def with_defaults(config: Config, made: TextToImage) -> Config:
    """The config with the checkpoint's own sampler where it names none."""
    chosen = config.copy_and_resolve_references()
    own = made.sampling
    chosen.sampler.solver = config.sampler.solver or own.solver
    chosen.sampler.grid = config.sampler.grid or own.grid
    chosen.sampler.end = config.sampler.end or ("clean" if own.ends_clean else "first")
    chosen.sampler.start = config.sampler.get("start") or own.start
    if not config.sampler.solver:  # its author's solver bounds x0 after whatever else is done to it
        chosen.sampler.post = (*config.sampler.post, *own.post)
    return chosen


def sampler(config: Config, made: TextToImage, size: tuple[int, int]) -> Callable[..., Any]:
    """``sampling_function``, jitted for the mesh of the config."""
    mesh = training.mesh(config)
    draw = sharding.on_mesh(sampling_function(config, made, size), mesh)
    return jax.jit(draw, out_shardings=NamedSharding(mesh, P()))


def sampling_function(
    config: Config, made: TextToImage, size: tuple[int, int]
) -> Callable[..., Any]:
    """The function of ``apps.generate.prompted`` that the config describes."""
    solver, levels = sampling.sampler(config, made.model)
    if config.image:
        levels = truncate(levels, config.strength)
    process = made.model.process
    ends = {"clean": None, "first": process.at(jnp.asarray(1 / (process.schedule.steps or 1000)))}
    if config.sampler.end not in ends:
        raise ValueError(f"config.sampler.end = {config.sampler.end!r}; known are clean, first")
    if config.sampler.start not in STARTS:
        known = ", ".join(STARTS)
        raise ValueError(f"config.sampler.start = {config.sampler.start!r}; known are {known}")
    how = (sampling.weighing(config, made.model, made.net), ends[config.sampler.end])
    how += (STARTS[config.sampler.start],)
    return prompted(made.model, latent_shape(made, size), solver, levels, *how)


def latent_shape(made: TextToImage, size: tuple[int, int]) -> tuple[int, int, int]:
    """(h, w, c) of x."""
    return (size[0] // made.factor, size[1] // made.factor, made.channels)


def place(config: Config, weights: Weights) -> Weights:
    """Arrays to where ``config.mesh`` says that they lie; pages of mapped files are given back."""

    def one(x, place):
        x = np.asarray(x)
        placed = sharding.from_host(x, place).block_until_ready()
        forget(x)
        return placed

    return jax.tree.map(one, weights, places(config, weights, training.mesh(config)))


def places(config: Config, weights: Weights, mesh: Mesh) -> Weights:
    """Where each array lies on a mesh, by ``config.mesh.rules`` and the networks' own."""
    given = tuple((pattern, tuple(axes)) for pattern, axes in config.mesh.rules)
    own = [row for name in NETWORKS for row in PARTITIONS.get(name, ())]
    rules = (*given, *((pattern, sharding.where_it_fits(axes)) for pattern, axes in own))
    return sharding.of_params(weights, mesh, rules)


def rows_of(config: Config, made: TextToImage, part: list[Request], size: tuple[int, int]):
    """What ``model.condition`` reads: (of the requests, of the negative prompt or None)."""
    prompts, chunks = [request.prompt for request in part], config.chunks or None
    seen = [read_picture(path, size, "control_image") for path in config.control_image]
    steer = hints(seen, len(part))
    if not config.negative_prompt:
        return made.rows(prompts, size, chunks) | steer, None
    rows, avoid = made.pair(prompts, [config.negative_prompt] * len(part), size, chunks)
    return rows | steer, avoid | steer


def _start(
    config: Config, made: TextToImage, size: tuple[int, int]
) -> Callable[[list[Request]], dict[str, np.ndarray]]:
    """Requests -> what each image's way starts from: its own noise, and the picture if any."""
    shape = latent_shape(made, size)
    pixels = {} if not config.image else {"pixels": read_picture(config.image, size)[None]}

    def start(part):
        found = {"noise": _noise(np.array([request.seed for request in part], np.uint32), shape)}
        return found | {name: np.repeat(x, len(part), 0) for name, x in pixels.items()}

    return start


@partial(jax.jit, static_argnums=1)
def _noise(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)


def _progress(total: int) -> tqdm:
    silent = jax.process_index() > 0
    return tqdm(total=total, desc="drawing", unit="image", leave=False, disable=silent)
