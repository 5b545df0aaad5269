"""The composition root: from a config to the values that jobs run.

This package is where the rooms meet.  A function here reads one section of the config and returns
one value; what a name means stands in the table of the room that owns it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configs import base
from diffusion_jax.apps.plan import Generator, Geometry, Weights
from diffusion_jax.build import first_stage
from diffusion_jax.build.buckets import bucket_sizes
from diffusion_jax.build.conditioning import Conditioning, conditioning
from diffusion_jax.build.process import learned_schedule, noise_process
from diffusion_jax.build.training import examples, training_data
from diffusion_jax.core import network_io, targets, weighting
from diffusion_jax.core.continuous_bound import DECODERS
from diffusion_jax.core.learned_schedule import LearnedSchedule
from diffusion_jax.core.process import Process
from diffusion_jax.core.proposals import PROPOSALS
from diffusion_jax.core.types import Model, NoiseLevel, Params, Recipe
from diffusion_jax.models import MODELS
from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.autoencoders.autoencoder import AUTOENCODERS
from diffusion_jax.recipes.diffusion import TERMS, Term, diffusion
from diffusion_jax.recipes.variational import variational
from diffusion_jax.spec import Config, build, parse


class Experiment(NamedTuple):
    """What a config describes, before any data or parameter: a ``Generator`` and how to train it.

    Attributes:
        generator: what draws with its parameters; its weights are None.
        recipe: how to train it.
        conditioning: what the network is conditioned on.
        data: () -> (start step -> iterator of batches).
        sizes: of aspect buckets, (height, width) each; () for none.
        frozen: () -> parameters that training leaves alone, read where they are kept.
        start: () -> parameters that training starts from; None for those of ``recipe.init``.
        training_only: () -> parameters that training alone reads, such as a teacher's.
        weights: (frozen, trained parameters) -> all that draws.
        save: (trained parameters, folder, step) -> the file that is left beside the checkpoints.
    """

    generator: Generator
    recipe: Recipe
    conditioning: Conditioning
    data: Callable[[], Callable[[int], Any]]
    sizes: tuple[tuple[int, int], ...] = ()
    frozen: Callable[[], Params] = dict
    start: Callable[[], Params | None] = lambda: None
    training_only: Callable[[], Params] = dict
    weights: Callable[[Params, Params], Weights] = lambda frozen, params: Weights(params, frozen)
    save: Callable[[Params, Path, int], Path | None] = lambda params, folder, step: None

    @property
    def model(self) -> Model:
        """What the parameters mean; of a learned schedule, with the process before training."""
        return self.generator.model

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one data point, as it is diffused."""
        return self.generator.geometry.shape

    def model_of(self, params: Params) -> Model:
        """The model with the process that belongs to trained parameters."""
        return self.generator.model_of(params)


def experiment(config: Config) -> Any:
    """The network, its meaning and its recipe: an ``Experiment``, or what ``EXPERIMENTS`` makes.

    Raises a ValueError for a field that names nothing, or fields that contradict one another.
    """
    if "model" not in config:
        raise ValueError(
            "this config has no config.model: it draws from a checkpoint, with --mode=sample alone"
        )
    return EXPERIMENTS.get(config.model.name, diffusion_experiment)(config)


def diffusion_experiment(config: Config) -> Experiment:
    """A diffusion model."""
    stage, shape = first_stage.first_stage(config), data_shape(config)
    module = network(config, shape[-1])
    bare = net_from_module(module)
    proc, condition = noise_process(config), conditioning(config)
    model = Model(
        net=lambda params, *args, **kwargs: bare(params["net"], *args, **kwargs),
        process=proc,
        target=build(targets.TARGETS, config.model.target, "model.target"),
        scale_in=build(network_io.SCALE_INPUTS, config.model.scale_input, "model.scale_input"),
        time_in=_time_input(config, proc),
        codec=stage.codec,
        condition=condition.condition,
        null=condition.null,
    )
    check_ends(config, model)
    learned = lambda params: noise_process(config, params["schedule"])
    generator = Generator(
        model=model,
        weights=None,
        inputs=condition.inputs,
        geometry=_geometry(config, module, shape),
        net=module,
        sampling=dict(config.sampler),
        process_of=None if learned_schedule(config) is None else learned,
        classes=config.data.num_classes,
        reads_text=bool(config.text.encoder),
        networks=(config.model.name,),
        examples=lambda n: examples(config, n),
    )
    return Experiment(
        generator,
        recipe(config, model, initialiser(config)),
        condition,
        data=lambda: training_data(config),
        sizes=bucket_sizes(config, tuple(config.data.image_size)),
        frozen=stage.frozen,
    )


def _geometry(config: Config, module: Any, shape: tuple[int, ...]) -> Geometry:
    size = tuple(config.data.image_size) if len(shape) == 3 else (1,)
    factor = size[0] // shape[0] if len(shape) == 3 else 1
    multiple = factor * getattr(module, "multiple", getattr(module, "patch", 1))
    return Geometry(shape, factor, multiple, config.data.channels)


def initialiser(config: Config) -> Callable[[jax.Array, jax.Array, Any], Params]:
    """(key, x [b, ...], cond) -> fresh parameters of the config's network."""
    module = network(config, data_shape(config)[-1])
    return lambda key, x, cond: init_params(module, key, x.shape, cond)


def data_shape(config: Config) -> tuple[int, ...]:
    """Of what is diffused: (h, w, c) of images, (h, w, z) of latents, (2,) of points.

    Raises:
        ValueError: for an image size that is none.
    """
    size = tuple(config.data.image_size)
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(
            f"config.data.image_size = {size} must be (height, width), such as (64, 64)"
        )
    if config.model.get("autoencoder", ""):
        return first_stage.code_shape(config)
    if config.data.name.startswith("toy2d:"):
        return (2,)
    return (*config.data.image_size, config.data.channels)


def network(config: Config, channels: int) -> Any:
    """The flax module that ``config.model.name`` names, with the arguments beside it."""
    name = config.model.name
    if name not in MODELS:
        known = sorted({*MODELS, *EXPERIMENTS})
        raise ValueError(f"config.model.name = {name!r}; known are {', '.join(known)}")
    out = channels * (2 if config.loss.learned_variance else 1)
    fields = {key: _frozen(value) for key, value in config.model[name].items()}
    return MODELS[name](**fields, out_channels=out, num_classes=config.data.num_classes)


def recipe(config: Config, model: Model, init: Callable) -> Recipe:
    """How ``config.loss`` says to train."""
    learned = learned_schedule(config)
    if learned is not None:
        return _learned_recipe(config, model, init, learned)
    return regression_recipe(config, model, init)


def regression_recipe(config: Config, model: Model, init: Callable) -> Recipe:
    """``recipe`` where the process is given: terms, weight, proposal and what is dropped.

    Raises:
        ValueError: for a field that names nothing.
    """
    section = config.loss
    if not section.terms:
        raise ValueError(f"config.loss.terms is empty; known are {', '.join(sorted(TERMS))}")
    proposal = build(PROPOSALS, section.proposal, "loss.proposal")
    dropped, offset = section.condition_dropout, section.get("noise_offset", 0.0)
    return diffusion(model, init, proposal, terms(config, model), dropped, offset)


def terms(config: Config, model: Model) -> list[Term]:
    """The summands of the loss, ``config.loss.terms``."""
    section = config.loss
    weight = build(weighting.WEIGHTS, section.weight, "loss.weight", process=model.process)
    return [build(TERMS, spec, "loss.terms", weight=weight) for spec in section.terms]


def _learned_recipe(
    config: Config, model: Model, init: Callable, learned: LearnedSchedule
) -> Recipe:
    section, uniform_in_t = config.loss, ("uniform", "stratified", "antithetic")
    if (
        tuple(section.terms) != ("regression()",)
        or parse(section.weight, "loss.weight")[0] != "elbo"
    ):
        raise ValueError(
            f"config.process.schedule = {config.process.schedule!r} is trained by the variational "
            "bound alone; set config.loss.weight = 'elbo()' and loss.terms = ('regression()',)"
        )
    if parse(section.proposal, "loss.proposal")[0] not in uniform_in_t:
        raise ValueError(
            f"config.loss.proposal = {section.proposal!r} does not draw t uniformly, as a learned "
            f"schedule needs; choose from {', '.join(uniform_in_t)}"
        )
    # Neither evaluates the network: 8-bit images, and points of a density.
    decoder = DECODERS["categorical" if len(data_shape(config)) == 3 else "gaussian_direct"]()
    return variational(
        model,
        init,
        learned.init,
        lambda params: noise_process(config, params),
        build(PROPOSALS, section.proposal, "loss.proposal"),
        decoder,
        section.condition_dropout,
    )


def defaults() -> Config:
    """The config before any experiment's difference."""
    return base.get_config()


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


def _frozen(value: Any) -> Any:
    """Lists as tuples: a flax module's fields must be hashable."""
    return tuple(value) if isinstance(value, (list, tuple)) else value


EXPERIMENTS: dict[str, Callable[[Config], Any]] = dict.fromkeys(
    AUTOENCODERS, first_stage.experiment
)
"""What is trained otherwise than a diffusion model, by ``config.model.name``."""
