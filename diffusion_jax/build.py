"""The composition root: from a config to the values that jobs run.

This is the only file that imports every room.  A function here reads one section of the config and
returns one value; what a name means stands in the table of the room that owns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.convert.tensors import read_safetensors
from diffusion_jax.convert.torch_pickle import read_state_dict
from diffusion_jax.core import grids, network_io, process, schedules, targets, weighting
from diffusion_jax.core import likelihood as bounds
from diffusion_jax.core.ema import EMAS
from diffusion_jax.core.guidance import condition
from diffusion_jax.core.likelihood import Bound
from diffusion_jax.core.process import Process
from diffusion_jax.core.proposals import PROPOSALS
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.solvers.ancestral import fixed_small, learned_range
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Codec, Model, NoiseLevel, Recipe, Solver
from diffusion_jax.data.pipeline import DataSpec, batches, make_dataset
from diffusion_jax.evaluate.features import FeatureNet
from diffusion_jax.evaluate.judge import Judge, cached_judge
from diffusion_jax.models import MODELS, efficientnet, inception
from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.recipes.diffusion import TERMS, diffusion
from diffusion_jax.spec import Config, build
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
    solver = build(SOLVERS, section.solver, "sampler.solver")
    if section.grid not in grids.GRIDS:
        known = ", ".join(sorted(grids.GRIDS))
        raise ValueError(f"config.sampler.grid = {section.grid!r}; known are {known}")
    return solver, grids.GRIDS[section.grid](model.process, section.steps)


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


def likelihood(config: Config, experiment: Experiment) -> Callable[..., Bound]:
    """(key, params, labels [b], x0 [b, ...]) -> Bound, as ``config.evaluate.likelihood`` says."""
    estimate = build(LIKELIHOODS, config.evaluate.likelihood, "evaluate.likelihood")
    model = experiment.model
    variance = learned_range if config.loss.learned_variance else fixed_small

    def bound(key, params, labels, x0):
        cond = model.condition({}, {"label": labels})
        denoise = condition(denoiser(model, params), cond)
        levels = grids.trailing(model.process, model.process.schedule.steps or estimate.steps)
        return estimate.bound(key, denoise, x0, levels, variance)

    return bound


class Likelihood(NamedTuple):
    """An estimate of the bound, and T where the schedule is continuous."""

    bound: Callable[..., Bound]
    steps: int


def variational_bound(n: int = 0, steps: int = 1000) -> Likelihood:
    """The discrete bound over all T levels, or an unbiased estimate of it by n of them.

    Args:
        n: levels drawn per image; 0 for all.
        steps: T of a continuous schedule.
    """
    if not n:
        return Likelihood(bounds.variational_bound, steps)
    estimate = lambda key, denoise, x0, levels, variance: bounds.estimate_bound(
        key, denoise, x0, levels, n, variance
    )
    return Likelihood(estimate, steps)


LIKELIHOODS = {"variational_bound": variational_bound}


def feature_net(config: Config) -> FeatureNet:
    """What images are compared through: Inception if its weights are given, else EfficientNet."""
    path = config.evaluate.inception_weights
    if path:
        params = inception.fold(_read_weights(path))
        apply = lambda x: dict.fromkeys(("frechet", "kernel"), inception.features(params, x))
        return FeatureNet("InceptionV3 pool3 2048-d, 299 px", "FID", apply)
    params = efficientnet.fold(read_state_dict(efficientnet.packaged_weights()))

    def apply(images):
        out = efficientnet.features(params, images)
        return {"frechet": out["pooled"], "kernel": out["head"]}

    return FeatureNet("EfficientNet-Lite0, 64 px", "Fréchet distance", apply)


def _read_weights(path: str) -> Mapping[str, Any]:
    if not Path(path).is_file():
        raise ValueError(
            f"config.evaluate.inception_weights = {path!r} is no file; give a local "
            "pt_inception-2015-12-05 as .pth or .safetensors, or '' for EfficientNet features"
        )
    return read_safetensors(path) if path.endswith(".safetensors") else read_state_dict(path)


def judge(config: Config, load: Callable[[str], Any], path: Path) -> Judge:
    """The classifier of a data set: read from ``path``, or trained and kept there.

    Args:
        config: names the splits to train and to hold out.
        load: split -> (images, labels).
        path: of the npz.
    """
    module = Classifier(config.data.num_classes)
    train, test = load(config.data.split), load(config.data.test_split)
    example = jnp.zeros((1, *train[0].shape[1:]))
    init = lambda key: module.init(key, example)["params"]

    def logits(params, x, key):
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, train=key is not None, rngs=rngs)

    return cached_judge(init, logits, train, test, path)


def check_images(config: Config) -> None:
    """Refuse to judge points in the plane as if they were images."""
    if len(data_shape(config)) != 3:
        raise ValueError(
            f"config.data.name = {config.data.name!r} has no images; evaluate quality, class "
            "accuracy and likelihood of image sets, and look at samples/ for points"
        )


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
