"""What a command would run on a mesh whose devices need not be there: functions and shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.apps.generate import generate
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import training
from diffusion_jax.jobs import prompting
from diffusion_jax.jobs.drawing import sampling_function
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
    """What --mode runs: the step of the loop, or the sampler of a run or of a checkpoint.

    Raises:
        ValueError: for a config that does not fit the mesh, or that has no such mode.
    """
    if "checkpoint" in config:
        return PROMPTED[mode](config, mesh)
    return JOBS[mode](config, mesh)


def _training(config: Config, mesh: Mesh) -> Job:
    local = _on_one_axis(config)
    experiment, settings = experiments.experiment(local), training.training(local)
    shape = jax.ShapeDtypeStruct
    batch = {"image": shape((config.train.batch_size, *experiment.shape), jnp.float32)}
    for name, one in experiment.conditioning.example.items():
        batch[name] = shape((config.train.batch_size, *one.shape[1:]), one.dtype)
    settings |= {"batch": batch, "mesh": mesh}
    return Job(*abstract_step(experiment.recipe, **settings))


def _sampling(config: Config, mesh: Mesh) -> Job:
    if config.sampler.reference:
        raise ValueError(
            f"config.sampler.reference = {config.sampler.reference!r} needs a run's parameters; "
            "set it to '' and take another guidance"
        )
    local = _on_one_axis(config)
    experiment, shape = experiments.experiment(local), jax.ShapeDtypeStruct
    draw, reference = sampling_function(local, experiment, generate)
    key = jax.eval_shape(lambda: jax.random.key(0))
    example = experiment.conditioning.example
    one = {"image": shape((1, *experiment.shape), jnp.float32), **example}
    params = jax.eval_shape(experiment.recipe.init, key, one)
    places = sharding.of_params(params, mesh, training.rules(config))
    everywhere = NamedSharding(mesh, P())
    rows = config.sampler.batch_size
    split = sharding.of_rows(mesh, rows)
    request = {
        name: shape((rows, *a.shape[1:]), a.dtype, sharding=split) for name, a in example.items()
    }
    arguments = (
        reference,
        {},
        shape(key.shape, key.dtype, sharding=everywhere),
        with_shardings(params, places),
        request,
        shape((), jnp.float32, sharding=everywhere),
    )
    jitted = jax.jit(sharding.on_mesh(draw, mesh), out_shardings=everywhere)
    return Job(jitted, arguments)


def _drawing_prompts(config: Config, mesh: Mesh) -> Job:
    """The function of ``jobs.prompting``, with weights as shapes: the files are read for those."""
    if not config.prompt:
        config = config.copy_and_resolve_references()
        config.prompt = "a photo"
    made = prompting.load(config)
    size = prompting.image_size(config, made)
    chosen = prompting.with_defaults(_on_one_axis(config), made)
    draw = prompting.sampling_function(chosen, made, size)
    part = [prompting.Request(config.prompt, config.seed)] * config.batch_size
    rows, avoid = prompting.rows_of(config, made, part, size)
    noise = np.zeros((len(part), *prompting.latent_shape(made, size)), np.float32)
    split = sharding.of_rows(mesh, len(part))
    where = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)
    weights = with_shardings(made.weights, prompting.places(config, made.weights, mesh))
    everywhere = NamedSharding(mesh, P())
    key = jax.eval_shape(lambda: jax.random.key(0))
    one = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)
    scale = one((), jnp.float32) if prompting.guidance_scale(config, made) is not None else None
    rows, avoid, start = jax.tree.map(where, (rows, avoid, {"noise": noise}))
    jitted = jax.jit(sharding.on_mesh(draw, mesh), out_shardings=everywhere)
    return Job(jitted, (weights, one(key.shape, key.dtype), rows, avoid, scale, start))


def _no_training(config: Config, mesh: Mesh) -> Job:
    raise ValueError(
        f"config.checkpoint = {config.checkpoint!r} is drawn with here; compile it by --mode=sample"
    )


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


Make = Callable[[Config, Mesh], Job]
JOBS: dict[str, Make] = {"train": _training, "sample": _sampling}
PROMPTED: dict[str, Make] = {"train": _no_training, "sample": _drawing_prompts}
