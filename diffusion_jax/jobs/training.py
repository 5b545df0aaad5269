"""Training, with its samples on the way and its pictures at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import training
from diffusion_jax.build.buckets import bucket_sizes, check_sizes
from diffusion_jax.build.few_step import distillation
from diffusion_jax.build.first_stage import AutoencoderExperiment
from diffusion_jax.build.weights import is_release
from diffusion_jax.core.types import Params
from diffusion_jax.jobs import autoencoding
from diffusion_jax.jobs.drawing import draw_many, drawer
from diffusion_jax.jobs.finetuning import finetune_checkpoint
from diffusion_jax.jobs.run import cache_compilations, open_experiment, plain
from diffusion_jax.jobs.sampling import save_samples
from diffusion_jax.jobs.strips import save_strip
from diffusion_jax.spec import Config, parse
from diffusion_jax.train import snapshots
from diffusion_jax.train.loop import Hook
from diffusion_jax.train.loop import train as run_loop
from diffusion_jax.train.state import TrainState
from diffusion_jax.train.symptoms import spread


def train(config: Config, workdir: str | os.PathLike) -> TrainState:
    """Train, or go on training, and leave samples and the strip of both processes.

    A config with a teacher distills it (``build.few_step.distillation``); one with a tuning trains
    a part of its checkpoint instead (``jobs.finetuning``).

    Args:
        config: see ``configs/base.py``.
        workdir: the run's folder, made if need be.

    Returns:
        The state after the last step.

    Raises:
        ValueError: for a config, data or folder that does not fit, in one sentence.
        train.log.NonFinite: if the loss is not finite; the last good state is saved.
    """
    if "tuning" in config:
        return finetune_checkpoint(config, workdir)
    if is_release(workdir):
        raise ValueError(
            f"{workdir} is a release, whose training is not there to go on; name another --workdir"
        )
    cache_compilations()
    if "teacher" in config:
        config = distillation.with_teacher(config)
    experiment = open_experiment(config)
    settings = training.training(config)
    folder = Path(workdir) / "samples"
    view = VIEWS[type(experiment)](config, experiment, folder)
    data, frozen = training.training_data(config), {**experiment.frozen(), **experiment.taught()}
    if sizes := bucket_sizes(config, tuple(config.data.image_size)):
        check_sizes(experiment.recipe, frozen, next(iter(data(0))), sizes)
    average = settings["ema"].params
    show = lambda step, state: view.show(step, average(state.ema))

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
        frozen=frozen,
        start=experiment.start(),
        hooks=[Hook(config.train.sample_every, show), Hook(config.train.snapshot_every, keep)],
        **settings,
    )
    view.finish(average(state.ema))
    return state


class View(NamedTuple):
    """What is looked at of a run.

    Attributes:
        show: (step, params) -> name -> image, beside what it writes.
        finish: (params) -> None, after the last step.
    """

    show: Callable[[int, Params], Mapping[str, Any]]
    finish: Callable[[Params], Any] = lambda params: None


def _of_diffusion(config: Config, experiment: experiments.Experiment, folder: Path) -> View:
    draw = drawer(config, experiment)

    def show(step, params):
        samples = draw_many(config, experiment, draw, params, config.sampler.n)
        shown = save_samples(folder / f"step_{step:07d}", samples)
        return {**shown, "sample_spread": spread(*samples)}

    return View(show, lambda params: save_strip(config, experiment, params, folder / "strip.png"))


def _of_autoencoder(config: Config, experiment: AutoencoderExperiment, folder: Path) -> View:
    return View(autoencoding.shown(config, experiment, folder))


# By what an experiment is.
VIEWS: dict[type, Callable[[Config, Any, Path], View]] = {
    experiments.Experiment: _of_diffusion,
    AutoencoderExperiment: _of_autoencoder,
}
