"""The composition root: from a config to the values that jobs run.

With ``build.sampling`` and ``build.evaluation``, this is where the rooms meet.  A function here
reads one section of the config and returns one value; what a name means stands in the table of the
room that owns it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configs import base
from diffusion_jax.build import first_stage
from diffusion_jax.build.conditioning import Conditioning, conditioning
from diffusion_jax.build.process import learned_schedule, noise_process
from diffusion_jax.core import network_io, targets, weighting
from diffusion_jax.core.continuous_bound import DECODERS
from diffusion_jax.core.learned_schedule import LearnedSchedule
from diffusion_jax.core.process import Process
from diffusion_jax.core.proposals import PROPOSALS
from diffusion_jax.core.types import Model, NoiseLevel, Params, Recipe
from diffusion_jax.models import MODELS
from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.autoencoders.autoencoder import AUTOENCODERS
from diffusion_jax.recipes.diffusion import TERMS, diffusion
from diffusion_jax.recipes.variational import variational
from diffusion_jax.spec import Config, build, parse


class Experiment(NamedTuple):
    """What a config describes, before any data or parameter.

    Attributes:
        model: what its parameters mean; of a learned schedule, with the process before training.
        recipe: how to train it.
        shape: of one data point.
        process_of: params -> Process: of a learned schedule theirs, else the one there is.
        conditioning: what the network is told beside x.
        frozen: () -> parameters that training leaves alone, read where they are kept.
        start: () -> parameters that training starts from; None for those of ``recipe.init``.
        taught: () -> more parameters that training alone reads, such as a teacher's.
    """

    model: Model
    recipe: Recipe
    shape: tuple[int, ...]
    process_of: Callable[[Params], Process]
    conditioning: Conditioning
    frozen: Callable[[], Params] = dict
    start: Callable[[], Params | None] = lambda: None
    taught: Callable[[], Params] = dict

    def model_of(self, params: Params) -> Model:
        """The model with the process that belongs to trained parameters."""
        return self.model._replace(process=self.process_of(params))


def experiment(config: Config) -> Any:
    """The network, its meaning and its recipe: an ``Experiment``, or what ``EXPERIMENTS`` makes.

    Raises a ValueError for a field that names nothing, or fields that contradict one another.
    """
    if "data" not in config:
        raise ValueError(
            "this config has no config.data: it draws from a checkpoint, with --mode=sample alone"
        )
    return EXPERIMENTS.get(config.model.name, diffusion_experiment)(config)


def diffusion_experiment(config: Config) -> Experiment:
    """A diffusion model."""
    stage, shape = first_stage.first_stage(config), data_shape(config)
    bare = net_from_module(network(config, shape[-1]))
    proc, told = noise_process(config), conditioning(config)
    model = Model(
        net=lambda params, *args, **kwargs: bare(params["net"], *args, **kwargs),
        process=proc,
        target=build(targets.TARGETS, config.model.target, "model.target"),
        scale_in=build(network_io.SCALE_INPUTS, config.model.scale_input, "model.scale_input"),
        time_in=_time_input(config, proc),
        codec=stage.codec,
        condition=told.condition,
        null=told.null,
    )
    check_ends(config, model)
    process_of = lambda params: noise_process(config, params["schedule"])
    fixed = learned_schedule(config) is None
    made = recipe(config, model, initialiser(config))
    of_params = (lambda params: proc) if fixed else process_of
    return Experiment(model, made, shape, of_params, told, stage.frozen)


def initialiser(config: Config) -> Callable[[jax.Array, jax.Array, Any], Params]:
    """(key, x [b, ...], cond) -> fresh parameters of the config's network."""
    module = network(config, data_shape(config)[-1])
    return lambda key, x, cond: init_params(module, key, x.shape, cond)


def data_shape(config: Config) -> tuple[int, ...]:
    """Of what is diffused: (h, w, c) of images, (h, w, z) of codes, (2,) of points."""
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
    weight = build(weighting.WEIGHTS, section.weight, "loss.weight", process=model.process)
    terms = [build(TERMS, spec, "loss.terms", weight=weight) for spec in section.terms]
    proposal = build(PROPOSALS, section.proposal, "loss.proposal")
    dropped, offset = section.condition_dropout, section.get("noise_offset", 0.0)
    return diffusion(model, init, proposal, terms, dropped, offset)


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
    # Neither asks the network: 8-bit images, and points of a density.
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
