"""The job that trains a part of a checkpoint, with pictures on the way and its file at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from diffusion_jax import pictures
from diffusion_jax.build import training
from diffusion_jax.build.buckets import bucket_sizes, check_sizes
from diffusion_jax.build.checkpoint import tuning
from diffusion_jax.build.checkpoint.additions import with_loras
from diffusion_jax.build.checkpoint.finetune import (
    finetune,
    opened,
    size_of,
    training_data,
)
from diffusion_jax.build.checkpoint.text_to_image import TextToImage
from diffusion_jax.build.checkpoint.tuning import Plan
from diffusion_jax.core.types import Params
from diffusion_jax.jobs import prompting
from diffusion_jax.jobs.placing import place_params
from diffusion_jax.jobs.run import cache_compilations, plain
from diffusion_jax.spec import Config
from diffusion_jax.train import sharding
from diffusion_jax.train.loop import Hook
from diffusion_jax.train.loop import train as run_loop
from diffusion_jax.train.state import TrainState


def finetune_checkpoint(config: Config, workdir: str | os.PathLike) -> TrainState:
    """Train, or go on training; leave the file or folder that the sampling command takes.

    Args:
        config: of ``configs/checkpoints/lora.py``.
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
    plan = tuning.plan(config)
    checkpoint = with_loras(prompting.read(config), config.lora)
    made = opened(config, checkpoint, plan)
    prompting.image_size(config, made)
    experiment, settings = finetune(config, made, plan), training.training(config)
    frozen = place_params(config, experiment.frozen())
    data = training_data(config, made)
    if sizes := bucket_sizes(config, size_of(config, made)):
        check_sizes(experiment.recipe, frozen, next(iter(data(0))), sizes)
    average = settings["ema"].params
    show = _shower(config, made, plan, frozen, Path(workdir) / "samples")
    hook = Hook(config.train.sample_every, lambda step, state: show(step, average(state.ema)))
    state = run_loop(
        experiment.recipe,
        data=data,
        folder=workdir,
        config=plain(config),
        frozen=frozen,
        start=experiment.start(),
        hooks=[hook],
        **settings,
    )
    params = jax.device_get(average(state.ema))
    if jax.process_index() == 0:
        left = plan.save(config, checkpoint, params, Path(workdir), int(state.step))
        print(f"{left} is what was trained; --mode=sample --workdir={workdir} draws with it")
    return state


def _shower(
    config: Config, made: TextToImage, plan: Plan, frozen: Params, folder: Path
) -> Callable[[int, Params], dict[str, np.ndarray]]:
    """(step, params) -> the images that the sampling command would draw, as one sheet."""
    chosen, size = prompting.with_defaults(config, made), size_of(config, made)
    mesh = training.mesh(config)
    draw = prompting.sampler(chosen, made, size)
    requests = prompting.requests_of(config) if config.train.sample_every else []

    merge = jax.jit(sharding.on_mesh(plan.weights, mesh))

    def show(step: int, params: Params) -> dict[str, np.ndarray]:
        images = prompting.draw_requests(config, made, draw, merge(frozen, params), requests)
        if jax.process_index():
            return {}
        sheet = pictures.grid(images)
        pictures.save_image(folder / f"step_{step:07d}.png", sheet)
        return {"samples": sheet}

    return show
