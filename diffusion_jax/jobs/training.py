"""The job that trains, whatever the config describes, with pictures on the way and at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion_jax.build import training
from diffusion_jax.build.buckets import check_sizes
from diffusion_jax.build.experiment import Experiment
from diffusion_jax.build.few_step import distillation
from diffusion_jax.build.first_stage import AutoencoderExperiment
from diffusion_jax.build.generator import describe
from diffusion_jax.build.weights import is_release
from diffusion_jax.core.types import Params
from diffusion_jax.jobs import autoencoding
from diffusion_jax.jobs.drawing import Samples, draw_requests, open_sampler
from diffusion_jax.jobs.image_files import labels_of, save_samples
from diffusion_jax.jobs.placing import cache_compilations, place_params
from diffusion_jax.jobs.requests import batch_size, requests_of, settings_of
from diffusion_jax.jobs.strips import save_strip
from diffusion_jax.spec import Config, parse, plain
from diffusion_jax.train import sharding, snapshots
from diffusion_jax.train.loop import Hook
from diffusion_jax.train.loop import train as run_loop
from diffusion_jax.train.state import TrainState
from diffusion_jax.train.symptoms import spread


def train(config: Config, workdir: str | os.PathLike) -> TrainState:
    """Train, or go on training; leave samples, the strip of both processes and what was tuned.

    Args:
        config: of an experiment, of a distillation (``configs/distill/``), or of the tuning of a
            model that is there already (``configs/checkpoints/``).
        workdir: the run's folder, made if need be.

    Returns:
        The state after the last step.

    Raises:
        FileNotFoundError: naming what a checkpoint lacks.
        ValueError: for a config, data or folder that does not fit, in one sentence.
        train.log.NonFinite: if the loss is not finite; the last good state is saved.
    """
    if is_release(workdir):
        raise ValueError(
            f"{workdir} is a release, whose training is not there to go on; name another --workdir"
        )
    cache_compilations()
    config = distillation.with_teacher(config)
    experiment = describe(config)
    settings = training.training(config)
    folder = Path(workdir) / "samples"
    frozen = place_params(config, {**experiment.frozen(), **experiment.training_only()})
    view = VIEWS[type(experiment)](config, experiment, frozen, folder)
    data = experiment.data()
    if experiment.sizes:
        check_sizes(experiment.recipe, frozen, next(iter(data(0))), experiment.sizes)
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
    left = _saved(experiment, average(state.ema), Path(workdir), int(state.step))
    if left is not None:
        print(f"{left} is what was trained; --mode=sample --workdir={workdir} draws with it")
    return state


def _saved(experiment: Any, params: Params, workdir: Path, step: int) -> Path | None:
    """What the experiment leaves beside the checkpoints; the first process writes."""
    host = jax.device_get(params)
    return experiment.save(host, workdir, step) if jax.process_index() == 0 else None


class View(NamedTuple):
    """The pictures of a run.

    Attributes:
        show: (step, params) -> name -> image, beside what it writes.
        finish: (params) -> None, after the last step.
    """

    show: Callable[[int, Params], Mapping[str, Any]]
    finish: Callable[[Params], Any] = lambda params: None


def _of_generator(config: Config, experiment: Experiment, frozen: Params, folder: Path) -> View:
    generator = experiment.generator
    settings = settings_of(config, folder.parent)
    sampler = open_sampler(settings, generator)
    # A tuning merges its factors here, once for all images, and not in the sampler.
    weights = jax.jit(sharding.on_mesh(experiment.weights, training.mesh(config)))
    sample_requests = requests_of(settings, generator) if config.train.sample_every else []

    def show(step, params):
        size = batch_size(settings, generator)
        images = draw_requests(sampler, sample_requests, size, weights(frozen, params))
        samples = Samples(images, labels_of(sample_requests))
        sheet = save_samples(folder / f"step_{step:07d}", samples)
        varied = {"sample_spread": spread(*samples)} if len(images) > 1 else {}
        return sheet | varied

    def finish(params):
        if generator.examples is not None:
            save_strip(sampler, folder / "strip.png", weights(frozen, params))

    return View(show, finish)


def _of_autoencoder(
    config: Config, experiment: AutoencoderExperiment, frozen: Params, folder: Path
) -> View:
    return View(autoencoding.reconstruction_view(config, experiment, folder))


# By what an experiment is.
VIEWS: dict[type, Callable[[Config, Any, Params, Path], View]] = {
    Experiment: _of_generator,
    AutoencoderExperiment: _of_autoencoder,
}
