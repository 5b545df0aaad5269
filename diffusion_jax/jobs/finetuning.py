"""The job that trains a LoRA of a checkpoint, with pictures on the way and its file at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import build, pictures
from diffusion_jax.build_additions import with_loras
from diffusion_jax.build_buckets import bucket_sizes, check_sizes
from diffusion_jax.build_checkpoint import TextToImage, Weights, text_to_image
from diffusion_jax.build_finetune import adapted_params, alpha, finetune, size_of, training_data
from diffusion_jax.convert.lora import Lora, write_lora
from diffusion_jax.convert.stable_diffusion import Checkpoint
from diffusion_jax.core.types import Params
from diffusion_jax.jobs import prompting
from diffusion_jax.jobs.placing import place_params
from diffusion_jax.jobs.run import cache_compilations, plain
from diffusion_jax.spec import Config
from diffusion_jax.train import sharding
from diffusion_jax.train.loop import Hook
from diffusion_jax.train.loop import train as run_loop
from diffusion_jax.train.state import TrainState

FILE = "lora.safetensors"


def finetune_lora(config: Config, workdir: str | os.PathLike) -> TrainState:
    """Train, or go on training; leave lora.safetensors, which the sampling command takes.

    Args:
        config: of ``configs/stable_diffusion_lora.py``.
        workdir: the run's folder, made if need be.

    Returns:
        The state after the last step.

    Raises:
        FileNotFoundError: naming what the checkpoint lacks.
        ValueError: for a config, checkpoint, data or folder that does not fit, in one sentence.
        train.log.NonFinite: if the loss is not finite; the last good state is saved.
    """
    if not config.checkpoint:
        raise ValueError(
            "config.checkpoint is empty; name a Stable Diffusion folder or .safetensors file"
        )
    cache_compilations()
    checkpoint = with_loras(prompting.read(config), config.lora)
    made = text_to_image(checkpoint, tuple(config.tokenizers), config.dtype)
    prompting.image_size(config, made)
    experiment, settings = finetune(config, made), build.training(config)
    frozen = place_params(config, experiment.frozen())
    data = training_data(config, made)
    if sizes := bucket_sizes(config, size_of(config, made)):
        check_sizes(experiment.recipe, frozen, next(iter(data(0))), sizes)
    average = settings["ema"].params
    show = _shower(config, made, frozen, Path(workdir) / "samples")
    hook = Hook(config.train.sample_every, lambda step, state: show(step, average(state.ema)))
    state = run_loop(
        experiment.recipe,
        data=data,
        folder=workdir,
        config=plain(config),
        frozen=frozen,
        hooks=[hook],
        **settings,
    )
    save(config, checkpoint, average(state.ema), Path(workdir) / FILE)
    return state


def save(config: Config, checkpoint: Checkpoint, params: Params, path: Path) -> None:
    """Write a trained LoRA in the layout of diffusers; the first process writes."""
    factors = jax.device_get(params["lora"])
    if jax.process_index():
        return
    factors = {name.removeprefix("net/"): pair for name, pair in factors.items()}
    own = alpha(config)
    alphas = {} if own is None else dict.fromkeys(factors, own)
    write_lora(path, {"unet": Lora(factors, alphas)}, checkpoint, {"prompt": config.prompt})
    print(f"The LoRA is {path}; draw with it by --config.lora=\"('{path}',)\"")


def _shower(config: Config, made: TextToImage, frozen: Params, folder: Path) -> Any:
    """(step, params) -> the images that the sampling command would draw, as one sheet."""
    chosen, size = prompting.with_defaults(config, made), size_of(config, made)
    mesh = build.mesh(config)
    draw = prompting.sampler(chosen, made, size)
    requests = prompting.requests_of(config) if config.train.sample_every else []

    def merge(frozen, params):
        rest = {name: frozen[name] for name in ("autoencoder", "text")}
        return Weights(adapted_params(config, frozen, params), rest)

    merge = jax.jit(sharding.on_mesh(merge, mesh))

    def show(step: int, params: Params) -> dict[str, np.ndarray]:
        images = prompting.draw_requests(config, made, draw, merge(frozen, params), requests)
        if jax.process_index():
            return {}
        sheet = pictures.grid(images)
        pictures.save_image(folder / f"step_{step:07d}.png", sheet)
        return {"samples": sheet}

    return show
