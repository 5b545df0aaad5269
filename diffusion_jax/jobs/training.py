"""Training, with its samples on the way and its pictures at the end."""

from __future__ import annotations

import os
from pathlib import Path

from diffusion_jax import build
from diffusion_jax.jobs.drawing import draw_many, drawer
from diffusion_jax.jobs.finetuning import finetune_lora
from diffusion_jax.jobs.run import cache_compilations, plain
from diffusion_jax.jobs.sampling import save_samples
from diffusion_jax.jobs.strips import save_strip
from diffusion_jax.spec import Config, parse
from diffusion_jax.train import snapshots
from diffusion_jax.train.loop import Hook
from diffusion_jax.train.loop import train as run_loop
from diffusion_jax.train.state import TrainState


def train(config: Config, workdir: str | os.PathLike) -> TrainState:
    """Train, or go on training, and leave samples and the strip of both processes.

    A config with an adapter trains a LoRA of its checkpoint instead (``jobs.finetuning``).

    Args:
        config: see ``configs/base.py``.
        workdir: the run's folder, made if need be.

    Returns:
        The state after the last step.

    Raises:
        ValueError: for a config, data or folder that does not fit, in one sentence.
        train.log.NonFinite: if the loss is not finite; the last good state is saved.
    """
    if "adapter" in config:
        return finetune_lora(config, workdir)
    cache_compilations()
    experiment = build.experiment(config)
    settings = build.training(config)
    draw = drawer(config, experiment)
    data = build.training_data(config)
    folder = Path(workdir) / "samples"
    average = settings["ema"].params

    def show(step: int, state: TrainState):
        samples = draw_many(config, experiment, draw, average(state.ema), config.sampler.n)
        return save_samples(folder / f"step_{step:07d}", samples)

    if config.train.snapshot_every and parse(config.ema, "ema")[0] != "power":
        raise ValueError(
            f"config.train.snapshot_every = {config.train.snapshot_every} is of averages that "
            f"config.ema = {config.ema!r} does not keep; take ema = 'power()', or 0 snapshots"
        )
    keep = lambda step, state: snapshots.save(workdir, step, state.ema)
    state = run_loop(
        experiment.recipe,
        data=data,
        folder=workdir,
        config=plain(config),
        frozen=experiment.frozen(),
        hooks=[Hook(config.train.sample_every, show), Hook(config.train.snapshot_every, keep)],
        **settings,
    )
    save_strip(config, experiment, average(state.ema), folder / "strip.png")
    return state
