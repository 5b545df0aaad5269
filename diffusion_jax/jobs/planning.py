"""What a command would run on a mesh whose devices need not be there: functions and shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.apps.draw import make_sampler
from diffusion_jax.apps.plan import Generator, Request
from diffusion_jax.build import training
from diffusion_jax.build.generator import abstract_generator, describe
from diffusion_jax.jobs.drawing import chosen_sampler, inputs_of
from diffusion_jax.jobs.placing import places_of
from diffusion_jax.jobs.requests import batch_size, requests_of, settings_of
from diffusion_jax.profiling.flops import Flops, count
from diffusion_jax.spec import Config
from diffusion_jax.train import sharding
from diffusion_jax.train.abstract import abstract_step
from diffusion_jax.train.state import with_shardings


class Job(NamedTuple):
    """A jitted function and what it is called with: shapes that say where they lie."""

    jitted: Any
    arguments: tuple[Any, ...]


def job(config: Config, mode: str, mesh: Mesh) -> Job:
    """What --mode runs: the step of the loop, or the sampler of whatever the config draws from.

    Raises:
        ValueError: for a config that does not fit the mesh, or that has no such mode.
    """
    return JOBS[mode](config, mesh)


def _training(config: Config, mesh: Mesh) -> Job:
    if config.get("checkpoint"):  # whose weights the step would read
        raise ValueError(
            f"config.checkpoint = {config.checkpoint!r} can be compiled to draw with, not to be "
            "tuned; take --mode=sample"
        )
    local = _on_one_axis(config)
    experiment, settings = describe(local), training.training(local)
    shape = jax.ShapeDtypeStruct
    batch = {"image": shape((config.train.batch_size, *experiment.shape), jnp.float32)}
    for name, one in experiment.conditioning.example.items():
        batch[name] = shape((config.train.batch_size, *one.shape[1:]), one.dtype)
    settings |= {"batch": batch, "mesh": mesh}
    return Job(*abstract_step(experiment.recipe, **settings))


def _sampling(config: Config, mesh: Mesh) -> Job:
    """The function of ``jobs.drawing``, with weights as shapes."""
    if config.sampler.reference:
        raise ValueError(
            f"config.sampler.reference = {config.sampler.reference!r} needs a run's parameters; "
            "set it to '' and take another guidance"
        )
    local = _on_one_axis(config)
    settings, generator = settings_of(local, ""), abstract_generator(local)
    chosen, generator, edits, sampler_of, _ = chosen_sampler(settings, generator)
    rows = batch_size(settings, generator)
    part = [_example(settings, generator)] * rows
    inputs = inputs_of(generator, chosen, edits, part)
    everywhere, split = NamedSharding(mesh, P()), sharding.of_rows(mesh, rows)
    shaped = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    scale = shaped(inputs.scale, everywhere)
    inputs = jax.tree.map(lambda x: shaped(x, split), inputs._replace(scale=()))
    key = jax.eval_shape(lambda: jax.random.key(0))
    where = places_of(config, generator.weights, generator.networks, mesh)
    weights = with_shardings(generator.weights, where)
    draw = make_sampler(generator, sampler_of, edits)
    jitted = jax.jit(sharding.on_mesh(draw, mesh), out_shardings=everywhere)
    return Job(jitted, (weights, shaped(key, everywhere), inputs._replace(scale=scale)))


def _example(settings: Config, generator: Generator) -> Request:
    """What the settings ask for first, or any prompt where they name none."""
    if not (settings.prompt or settings.prompts or generator.classes):
        settings.prompt = "a photo" if generator.reads_text else ""
    return requests_of(settings, generator)[0]


def _on_one_axis(config: Config) -> Config:
    """The config for the devices that are there, where only shapes are looked at."""
    local = config.copy_and_resolve_references()
    local.mesh.update({axis: -1 if axis == "data" else 1 for axis in sharding.AXES})
    return local


def useful_flops(config: Config, mode: str, mesh: Mesh, counted: Flops) -> float:
    """FLOPs without what rematerialisation computes twice."""
    if mode != "train" or config.model[config.model.name].get("remat", "none") == "none":
        return counted.total
    plain = config.copy_and_resolve_references()
    plain.model[config.model.name].remat = "none"
    step = _training(plain, mesh)
    return count(step.jitted.trace(*step.arguments).jaxpr).total


JOBS: dict[str, Callable[[Config, Mesh], Job]] = {"train": _training, "sample": _sampling}
