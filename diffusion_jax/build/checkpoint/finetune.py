"""From a checkpoint and pictures to the training of a part of it, DreamBooth's prior if wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import training
from diffusion_jax.build.buckets import bucket_sizes
from diffusion_jax.build.checkpoint.text_to_image import TextToImage, text_to_image
from diffusion_jax.build.checkpoint.tuning import Plan
from diffusion_jax.build.conditioning import Conditioning
from diffusion_jax.build.few_step import distillation
from diffusion_jax.build.few_step.method import Setup
from diffusion_jax.convert.stable_diffusion import Checkpoint, find_tokenizers
from diffusion_jax.core.types import Context, Params, Recipe
from diffusion_jax.data.pipeline import batches, make_dataset
from diffusion_jax.data.tokenizers import load_tokenizer
from diffusion_jax.recipes.dreambooth import PRIOR, dreambooth
from diffusion_jax.spec import Config


def finetune(config: Config, made: TextToImage, plan: Plan) -> experiments.Experiment:
    """A checkpoint of which ``plan`` trains a part.

    Args:
        config: of ``configs/checkpoints/lora.py``.
        made: the checkpoint, with the words of the plan (``opened``).
        plan: of ``build.checkpoint.tuning.plan``.

    Raises:
        ValueError: for a field that names nothing.
    """
    weights = made.weights
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights.params)
    if config.get("distill"):
        whole = _distilled(config, made, plan)
    else:
        whole = experiments.regression_recipe(config, made.model, _no_init)
    # Of the weights only shapes are asked for: their values are the checkpoint's.
    empty = lambda key, batch: {**jax.tree.map(_zeros, shapes), "terms": [{}]}
    recipe = plan.recipe(whole._replace(init=empty), made)
    height, width = size_of(config, made)
    return experiments.Experiment(
        model=made.model,
        recipe=_with_prior(config, recipe),
        shape=(height // made.factor, width // made.factor, made.channels),
        process_of=lambda params: made.model.process,
        conditioning=conditioning(config, made),
        frozen=lambda: plan.frozen(weights),
        start=lambda: plan.start(weights),
    )


def _distilled(config: Config, made: TextToImage, plan: Plan) -> Recipe:
    """What ``config.distill`` names, taught by the weights as the checkpoint has them.

    Raises:
        ValueError: for a method that the checkpoint's network, alone and told nothing more, cannot
            learn, or a tuning that keeps no weights as they were.
    """
    how = distillation.read_method(config)
    if how.scalars or how.groups:
        lacks = f"tells its network {how.scalars}" if how.scalars else "trains several networks"
        raise ValueError(
            f"config.distill = {config.distill!r} {lacks}; a checkpoint takes one that does not, "
            "such as latent_consistency(scale=7.5) or consistency_distillation(scale=7.5)"
        )
    if "base" not in plan.frozen(made.weights):
        raise ValueError(
            f"config.distill = {config.distill!r} learns from the checkpoint's own weights, which "
            f"config.tuning = {config.tuning!r} changes; take 'lora(rank=64)'"
        )
    pair = Setup(
        made.model, made.model, _no_init, config.loss.condition_dropout, config.model.name,
        made.net, dict, pixels=False, classes=0,
    )  # fmt: skip
    recipe = how.recipe(pair)

    def loss(params: Params, context: Context, batch: dict[str, Any], key: jax.Array):
        frozen = {**context.frozen, **how.frozen(), "teacher": context.frozen["base"]}
        return recipe.loss(params, context._replace(frozen=frozen), batch, key)

    return recipe._replace(loss=loss)


def opened(config: Config, checkpoint: Checkpoint, plan: Plan) -> TextToImage:
    """The checkpoint, ready to draw, with the words that a plan teaches."""
    folders = find_tokenizers(tuple(config.tokenizers), checkpoint)
    words = plan.words(config, checkpoint, [load_tokenizer(folder) for folder in folders])
    return text_to_image(checkpoint, folders, config.dtype, words=words)


def size_of(config: Config, made: TextToImage) -> tuple[int, int]:
    """(height, width) in pixels that pictures are brought to."""
    height, width = tuple(config.image_size) or (made.size, made.size)
    return height, width


def conditioning(config: Config, made: TextToImage, prompt: str | None = None) -> Conditioning:
    """Prompts as a training batch has them: of captions, or the one prompt of the config.

    Args:
        config: its ``prompt`` is every picture's, unless it is empty: then captions are read.
        made: the checkpoint.
        prompt: in place of ``config.prompt``.
    """
    one, size = config.prompt if prompt is None else prompt, size_of(config, made)
    rows = lambda texts: made.rows(texts, size, chunks=config.chunks or 1)

    def attach(batch: Mapping[str, Any]) -> dict[str, Any]:
        texts = [one] * len(batch["image"]) if one else [str(text) for text in batch["caption"]]
        rest = {n: x for n, x in batch.items() if n not in ("caption", "label", "framing")}
        shown = batch["image"].shape[1:3]  # of a bucket, if there are some
        told = made.rows(texts, shown, config.chunks or 1, batch.get("framing"))
        return {**rest, **told}

    def request(n: int):
        return rows([one] * n), np.arange(n, dtype=np.int32)

    first = rows([one])
    shapes = {n: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for n, x in first.items()}
    return Conditioning(
        condition=lambda frozen, batch: made.model.condition(frozen, dict(batch)),
        null=made.model.null,
        captions=not one,
        attach=attach,
        request=request,
        held_out=lambda split, n: rows([one] * n),
        example=shapes,
    )


def training_data(config: Config, made: TextToImage) -> Callable[[int], Any]:
    """start_step -> iterator of this process's batches: pictures with their prompts' tokens.

    With ``config.prior.data`` each has a second set under "prior_" (see ``recipes.dreambooth``), of
    the same bucket.
    """
    own = _dataset(config, made, config.data.name, None)
    if not config.prior.data:
        return lambda start: batches(own, start, timeout=config.data.timeout)
    if not config.prior.prompt:
        raise ValueError(
            "config.prior.prompt is empty; name the kind of the pictures in config.prior.data, "
            'such as --config.prior.prompt="a photo of a cat"'
        )
    kind = _dataset(config, made, config.prior.data, config.prior.prompt)

    def start_from(start: int):
        pairs = zip(
            batches(own, start, timeout=config.data.timeout), batches(kind, start), strict=True
        )
        return ({**a, **{PRIOR + name: x for name, x in b.items()}} for a, b in pairs)

    return start_from


def _dataset(config: Config, made: TextToImage, name: str, prompt: str | None) -> Any:
    told = conditioning(config, made, prompt)
    size = size_of(config, made)
    sizes = bucket_sizes(config, size)
    spec = training.data_spec(config, config.data.split)._replace(
        name=name, image_size=size, channels=3, captions=told.captions,
        buckets=sizes, beside=config.data.name if sizes and name != config.data.name else "",
        framing=made.sized and bool(sizes),
    )  # fmt: skip
    return make_dataset(spec).map(told.attach)


def _with_prior(config: Config, recipe: Recipe) -> Recipe:
    return dreambooth(recipe, config.prior.weight) if config.prior.data else recipe


def _no_init(key: Any, x: Any, cond: Any) -> Params:
    raise AssertionError("the weights are the checkpoint's")


def _zeros(shape: Any) -> Any:
    return jax.numpy.zeros(shape.shape, jax.numpy.float32)  # as training keeps parameters
