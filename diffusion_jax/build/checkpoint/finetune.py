"""From a model that is there already to the training of a part of it, whatever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.apps.plan import Weights
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build.buckets import bucket_sizes
from diffusion_jax.build.checkpoint import own, training_data, tuning
from diffusion_jax.build.checkpoint.text_to_image import text_to_image
from diffusion_jax.build.checkpoint.tuning import Files, Plan
from diffusion_jax.build.few_step import distillation
from diffusion_jax.build.few_step.method import Setup
from diffusion_jax.build.releases import write_release
from diffusion_jax.build.runs import Run
from diffusion_jax.convert.checkpoint_folder import write_checkpoint
from diffusion_jax.convert.lora import low_rank, write_lora
from diffusion_jax.convert.stable_diffusion import Checkpoint, find_tokenizers
from diffusion_jax.core import seeds
from diffusion_jax.core.types import Context, Params, Recipe
from diffusion_jax.recipes.dreambooth import dreambooth
from diffusion_jax.spec import Config

Experiment = experiments.Experiment


class Base(NamedTuple):
    """What is tuned.

    Attributes:
        experiment: the training of all weights of its denoiser, on the config's data.
        weights: its arrays, with the parameters of the loss's terms beside those of the network.
        files: writers of the result.
    """

    experiment: Experiment
    weights: Weights
    files: Files


def experiment(config: Config, open_source: Callable[..., Any]) -> Experiment:
    """What a config of ``configs/checkpoints/`` describes: a part of a model, trained.

    Args:
        config: its ``checkpoint`` names what is tuned, its ``tuning`` which part.
        open_source: ``build.generator.open_source``.

    Raises:
        FileNotFoundError, ValueError: see there; or for a field that does not fit.
    """
    plan = tuning.plan(config)
    generator = open_source(config.checkpoint, config)
    if not isinstance(getattr(generator, "origin", None), tuple(BASES)):
        raise ValueError(
            f"config.checkpoint = {config.checkpoint!r} is a first stage; name a model that draws"
        )
    return tuned(config, BASES[type(generator.origin)](config, generator, plan), plan)


def tuned(config: Config, base: Base, plan: Plan) -> Experiment:
    """The base, of which ``plan`` trains a part.

    Raises:
        ValueError: for a field that names nothing.
    """
    weights = base.weights
    whole = base.experiment.recipe
    if config.get("distill"):
        whole = _distilled(config, base, plan)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights.params)
    # Training starts from the model's weights: ``init`` gives only their shapes.
    empty = lambda key, batch: jax.tree.map(_zeros, shapes)
    recipe = plan.recipe(whole._replace(init=empty), weights)
    return base.experiment._replace(
        recipe=dreambooth(recipe, config.prior.weight) if config.prior.data else recipe,
        frozen=lambda: plan.frozen(weights),
        start=lambda: plan.start(weights),
        training_only=dict,
        weights=plan.weights,
        save=lambda params, folder, step: plan.save(config, base.files, params, folder, step),
    )


def _of_checkpoint(config: Config, generator: Any, plan: Plan) -> Base:
    checkpoint: Checkpoint = generator.origin
    folders = find_tokenizers(tuple(config.tokenizers), checkpoint)
    if plan.words is not None:
        words = plan.words(config, checkpoint, generator.inputs.tokenizers)
        chunks = config.chunks or None
        skip = config.clip_skip
        generator = text_to_image(
            checkpoint, folders, config.dtype, words=words, chunks=chunks, clip_skip=skip
        )

    def lora(path, factors, alphas, metadata):
        bare = lambda of: {name.removeprefix("net/"): value for name, value in of.items()}
        write_lora(path, {"unet": low_rank(bare(factors), bare(alphas))}, checkpoint, metadata)

    def whole(folder, params, dtype):
        net = jax.tree.map(lambda x: np.asarray(x, dtype), params["net"])
        write_checkpoint(
            folder, checkpoint._replace(unet=checkpoint.unet._replace(params=net)), folders
        )

    size = training_data.size_of(config, generator)
    described = Experiment(
        generator=generator._replace(weights=None),
        recipe=experiments.regression_recipe(config, generator.model, _no_init),
        conditioning=training_data.conditioning(config, generator),
        data=lambda: training_data.training_data(config, generator),
        sizes=bucket_sizes(config, size),
    )
    return Base(described, _with_terms(generator.weights, [{}]), Files(lora, whole))


def _of_run(config: Config, generator: Any, plan: Plan) -> Base:
    run: Run = generator.origin
    _check_run(config, generator, plan)
    whole = _on_other_data(config, run.config)
    described = experiments.diffusion_experiment(whole)
    trained = described.generator._replace(sampling=generator.sampling, origin=run)
    terms = run.params.get("terms")
    if not jax.tree.leaves(terms):  # of a release, which has none
        key = seeds.key(config.seed)
        terms = [term.init(key) for term in experiments.terms(whole, trained.model)]

    def release(folder, params, dtype):
        write_release(folder, run, params, dtype)

    return Base(
        described._replace(generator=trained),
        _with_terms(generator.weights, terms),
        Files(own.write_lora, release),
    )


def _check_run(config: Config, generator: Any, plan: Plan) -> None:
    """Refuse what a run cannot be tuned by.

    Raises:
        ValueError: naming the field.
    """
    if generator.model.student is not None:
        raise ValueError(
            f"config.checkpoint = {config.checkpoint!r} is a student, and the loss of its "
            "distillation needs its teacher; tune the teacher, and distil that"
        )
    if plan.words is not None:
        raise ValueError(
            f"config.tuning = {config.tuning!r} teaches a word to a tokenizer, and the run in "
            f"{config.checkpoint} has none of its own; take 'lora()' or 'full()'"
        )
    for field, value in (("prompt", config.prompt), ("prior.data", config.prior.data)):
        if value:
            raise ValueError(
                f"config.{field} = {value!r} is for the tuning of a Stable Diffusion checkpoint; "
                "a run is trained on the labels or captions of config.data.name, and config.labels "
                "or config.prompts say what is drawn on the way: leave it empty"
            )
    size = tuple(config.image_size)
    if size and size != generator.geometry.size:
        raise ValueError(
            f"config.image_size = {size}: a run is tuned at the size that it was trained on, "
            f"{generator.geometry.size}; leave it empty"
        )


def _with_terms(weights: Weights, terms: Sequence[Params]) -> Weights:
    return weights._replace(params={**weights.params, "terms": terms})


def _on_other_data(config: Config, held: Config) -> Config:
    """A run's config with the training and the data of a tuning's config."""
    whole = held.copy_and_resolve_references().unlock()
    for section in ("seed", "profile", "train", "optimizer", "ema", "mesh"):
        whole[section] = config[section]
    for field in ("condition_dropout", "noise_offset"):
        whole.loss[field] = config.loss[field]
    if config.data.name:
        for field in ("name", "split", "dir", "flip", "crop", "balance", "buckets", "timeout"):
            whole.data[field] = config.data[field]
    return whole


def _distilled(config: Config, base: Base, plan: Plan) -> Recipe:
    """The distillation that ``config.distill`` names; the weights as they are its teacher.

    Raises:
        ValueError: for a method that needs more than the one network, or a tuning that keeps no
            weights as they were.
    """
    method, generator = distillation.read_method(config), base.experiment.generator
    if method.scalars or method.groups:
        lacks = (
            f"conditions its network on {method.scalars}"
            if method.scalars
            else "trains several networks"
        )
        raise ValueError(
            f"config.distill = {config.distill!r} {lacks}; a checkpoint takes one that does not, "
            "such as latent_consistency(scale=7.5) or consistency_distillation(scale=7.5)"
        )
    if "base" not in plan.frozen(base.weights):
        raise ValueError(
            f"config.distill = {config.distill!r} learns from the checkpoint's own weights, which "
            f"config.tuning = {config.tuning!r} changes; take 'lora(rank=64)'"
        )
    setup = Setup(
        generator.model, generator.model, _no_init, config.loss.condition_dropout,
        generator.networks[0], generator.net, dict, pixels=False, classes=0,
    )  # fmt: skip
    recipe = method.recipe(setup)

    def loss(params: Params, context: Context, batch: dict[str, Any], key: jax.Array):
        frozen = {**context.frozen, **method.frozen(), "teacher": context.frozen["base"]}
        return recipe.loss(params, context._replace(frozen=frozen), batch, key)

    return recipe._replace(loss=loss)


def _no_init(key: Any, x: Any, cond: Any) -> Params:
    raise AssertionError("the weights are the checkpoint's")


def _zeros(shape: Any) -> Any:
    return jax.numpy.zeros(shape.shape, jax.numpy.float32)  # as training keeps parameters


# By what a generator was read from.
BASES: dict[type, Callable[[Config, Any, Plan], Base]] = {
    Checkpoint: _of_checkpoint,
    Run: _of_run,
}
