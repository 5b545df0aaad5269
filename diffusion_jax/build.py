"""The composition root: from a config to the values that jobs run.

With ``build_evaluation``, this is where the rooms meet.  A function here reads one section of the
config and returns one value; what a name means stands in the table of the room that owns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core import grids, network_io, process, schedules, targets, weighting
from diffusion_jax.core.ema import EMAS
from diffusion_jax.core.process import Process
from diffusion_jax.core.proposals import PROPOSALS
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Codec, Model, NoiseLevel, Recipe, Solver
from diffusion_jax.data.pipeline import DataSpec, batches, make_dataset
from diffusion_jax.models import MODELS
from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.recipes.diffusion import TERMS, diffusion
from diffusion_jax.spec import Config, build, parse
from diffusion_jax.train import optimizer
from diffusion_jax.train.loop import Plan
from diffusion_jax.train.sharding import AXES, make_mesh

IDENTITY = Codec(encode=lambda frozen, pixels, key: pixels, decode=lambda frozen, x: x)


class Experiment(NamedTuple):
    """What a config describes, before any data or parameter.

    Attributes:
        model: what its parameters mean.
        recipe: how to train it.
        shape: of one data point.
    """

    model: Model
    recipe: Recipe
    shape: tuple[int, ...]


def experiment(config: Config) -> Experiment:
    """The network, its meaning and its recipe.

    Raises:
        ValueError: for a field that names nothing, or fields that contradict one another.
    """
    shape = data_shape(config)
    module = network(config, shape[-1])
    bare = net_from_module(module)
    proc = noise_process(config)
    model = Model(
        net=lambda params, *args, **kwargs: bare(params["net"], *args, **kwargs),
        process=proc,
        target=build(targets.TARGETS, config.model.target, "model.target"),
        scale_in=build(network_io.SCALE_INPUTS, config.model.scale_input, "model.scale_input"),
        time_in=_time_input(config, proc),
        codec=IDENTITY,
        **_class_condition(config.data.num_classes),
    )
    check_ends(config, model)
    init = lambda key, x, cond: init_params(module, key, x.shape, cond)
    return Experiment(model, recipe(config, model, init), shape)


def data_shape(config: Config) -> tuple[int, ...]:
    """Of one example: (h, w, c) of images, (2,) of points in the plane."""
    if config.data.name.startswith("toy2d:"):
        return (2,)
    return (*config.data.image_size, config.data.channels)


def network(config: Config, channels: int) -> Any:
    """The flax module that ``config.model.name`` names, with the arguments beside it."""
    name = config.model.name
    if name not in MODELS:
        raise ValueError(f"config.model.name = {name!r}; known are {', '.join(sorted(MODELS))}")
    out = channels * (2 if config.loss.learned_variance else 1)
    fields = {key: _frozen(value) for key, value in config.model[name].items()}
    return MODELS[name](**fields, out_channels=out, num_classes=config.data.num_classes)


def noise_process(config: Config) -> Process:
    """Schedule, shift, terminal SNR and path."""
    section = config.process
    schedule = build(schedules.SCHEDULES, section.schedule, "process.schedule")
    if section.shift:
        schedule = schedules.shifted(schedule, section.shift)
    if section.zero_terminal_snr:
        schedule = schedules.zero_terminal_snr(schedule)
    if section.path not in process.PATHS:
        known = ", ".join(sorted(process.PATHS))
        raise ValueError(f"config.process.path = {section.path!r}; known are {known}")
    return Process(schedule, process.PATHS[section.path])


def recipe(config: Config, model: Model, init: Callable) -> Recipe:
    """How ``config.loss`` says to train."""
    section = config.loss
    context = {"process": model.process}
    weight = build(weighting.WEIGHTS, section.weight, "loss.weight", **context)
    build_term = lambda spec: build(TERMS, spec, "loss.terms", weight=weight)
    if not section.terms:
        raise ValueError(f"config.loss.terms is empty; known are {', '.join(sorted(TERMS))}")
    proposal = build(PROPOSALS, section.proposal, "loss.proposal")
    terms = [build_term(spec) for spec in section.terms]
    return diffusion(model, init, proposal, terms, section.condition_dropout)


def sampler(config: Config, model: Model) -> tuple[Solver, NoiseLevel]:
    """The solver and the levels that ``config.sampler`` names."""
    section = config.sampler
    context = {"process": model.process, "steps": section.steps}
    _check_order(section.solver, section.steps)
    solver = build(SOLVERS, section.solver, "sampler.solver", **context)
    grid = {"process": model.process, "n": section.steps}
    return solver, build(grids.GRIDS, section.grid, "sampler.grid", **grid)


def _check_order(spec: str, steps: int) -> None:
    name, args, given = parse(spec, "sampler.solver")
    if name not in SOLVERS or args or "order" not in (known := signature(SOLVERS[name]).parameters):
        return
    order = given.get("order", known["order"].default)
    if steps >= 1 and order > steps:
        raise ValueError(
            f"config.sampler.solver = {spec!r} is of order {order}, more than sampler.steps = "
            f"{steps}; ask for at least {order} steps, or a lower order"
        )


def training(config: Config) -> dict[str, Any]:
    """What ``train.loop.train`` takes beside the recipe, the data and the folder."""
    section, steps = config.optimizer, config.train.steps
    if steps < 1:  # before the decay, whose own complaint would name another field
        raise ValueError(f"config.train.steps = {steps} must be at least 1")
    decay = build(optimizer.SCHEDULES, section.schedule, "optimizer.schedule", steps=steps)
    rate = optimizer.learning_rate(section.learning_rate, decay, section.warmup)
    names = ("b1", "b2", "eps", "weight_decay", "clip")
    every = ("accumulate", "steps_per_call", "log_every", "checkpoint_every", "keep")
    return {
        "tx": optimizer.adamw(rate, **{name: section[name] for name in names}),
        "ema": build(EMAS, config.ema, "ema"),
        "plan": Plan(steps, **{name: config.train[name] for name in every}),
        "mesh": make_mesh({axis: config.mesh[axis] for axis in AXES}),
        "rules": tuple((pattern, tuple(axes)) for pattern, axes in config.mesh.rules),
        "seed": config.seed,
        "learning_rate": rate,
    }


def data_spec(config: Config, split: str) -> DataSpec:
    """The training pipeline of a split, for this process."""
    return DataSpec(
        name=config.data.name,
        split=split,
        batch_size=config.train.batch_size,
        image_size=tuple(config.data.image_size),
        channels=config.data.channels,
        flip=config.data.flip,
        crop=config.data.crop,
        seed=config.seed,
        data_dir=config.data.dir or None,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def training_data(config: Config) -> Callable[[int], Any]:
    """start_step -> iterator of this process's batches from that step on."""
    dataset = make_dataset(data_spec(config, config.data.split))
    return lambda start: batches(dataset, start)


def check_ends(config: Config, model: Model) -> None:
    """Refuse a target that says nothing of x0 at the level where sampling starts.

    Raises:
        ValueError: for an eps or score target where alpha is 0 at t = 1.
    """
    end = model.process.at(jnp.ones(()))
    p, q = model.target(end)
    if float(end.alpha) == 0.0 and float(end.alpha * q - end.sigma * p) == 0.0:
        raise ValueError(
            f"config.model.target = {config.model.target!r} says nothing of x0 at t = 1, where "
            "this process is pure noise; use 'v()', 'x0()' or 'flow()', or another process.schedule"
        )


def _time_input(config: Config, proc: Process) -> Callable[[NoiseLevel], jax.Array]:
    # A table's own length, unless the string gives another.
    length = {"steps": proc.schedule.steps} if proc.schedule.steps else {}
    return build(network_io.TIME_INPUTS, config.model.time_input, "model.time_input", **length)


def _class_condition(num_classes: int) -> Mapping[str, Callable]:
    if not num_classes:
        return {"condition": lambda frozen, batch: {}, "null": lambda frozen, cond: {}}
    return {
        "condition": lambda frozen, batch: {"label": batch["label"]},
        "null": lambda frozen, cond: jax.tree.map(lambda c: jnp.full_like(c, num_classes), cond),
    }


def _frozen(value: Any) -> Any:
    """Lists as tuples: a flax module's fields must be hashable."""
    return tuple(value) if isinstance(value, (list, tuple)) else value
