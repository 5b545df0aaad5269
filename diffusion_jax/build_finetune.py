"""From a checkpoint and pictures to the training of a LoRA, or of DreamBooth's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax import build
from diffusion_jax.build_buckets import bucket_sizes
from diffusion_jax.build_checkpoint import TextToImage
from diffusion_jax.build_condition import Conditioning
from diffusion_jax.core.types import Params, Recipe
from diffusion_jax.data.pipeline import batches, make_dataset
from diffusion_jax.recipes import lora
from diffusion_jax.recipes.dreambooth import PRIOR, dreambooth
from diffusion_jax.spec import Config


def finetune(config: Config, made: TextToImage) -> build.Experiment:
    """A checkpoint whose LoRA is trained: params {"lora": factors}, all weights in ``frozen``.

    Args:
        config: of ``configs/stable_diffusion_lora.py``.
        made: the checkpoint.

    Raises:
        ValueError: for a field that names nothing.
    """
    frozen = frozen_weights(made)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), frozen["base"])
    whole = build.regression_recipe(config, made.model, _no_init)
    # Only its shapes are asked for: the weights are the checkpoint's.
    whole = whole._replace(init=lambda key, batch: jax.tree.map(_zeros, shapes))
    recipe = lora.adapted(whole, config.adapter.rank, config.adapter.targets, alpha(config))
    height, width = size_of(config, made)
    return build.Experiment(
        model=made.model,
        recipe=_with_prior(config, recipe),
        shape=(height // made.factor, width // made.factor, made.channels),
        process_of=lambda params: made.model.process,
        conditioning=conditioning(config, made),
        frozen=lambda: frozen,
    )


def frozen_weights(made: TextToImage) -> Params:
    """What training reads and leaves alone: {"base": the denoiser's, "autoencoder", "text"}."""
    return {"base": {**made.weights.params, "terms": [{}]}, **made.weights.frozen}


def adapted_params(config: Config, frozen: Params, params: Params) -> Params:
    """The denoiser's weights with a trained LoRA merged in."""
    return lora.merged(frozen["base"], params["lora"], 1.0, alpha(config))


def alpha(config: Config) -> float | None:
    """``config.adapter.alpha``; 0 means the rank."""
    return config.adapter.alpha or None


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

    With ``config.prior.data`` each has a second set under "prior_" (see ``recipes.dreambooth``).
    """
    own = _dataset(config, made, config.data.name, None)
    if config.prior.data and config.data.get("buckets", ()):
        raise ValueError(
            f"config.prior.data = {config.prior.data!r} gives each picture one of its kind, of the "
            "same size, and config.data.buckets has several sizes; set buckets = (), or prior.data "
            "= ''"
        )
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
    spec = build.data_spec(config, config.data.split)._replace(
        name=name, image_size=size, channels=3, captions=told.captions,
        buckets=sizes, framing=made.sized and bool(sizes),
    )  # fmt: skip
    return make_dataset(spec).map(told.attach)


def _with_prior(config: Config, recipe: Recipe) -> Recipe:
    return dreambooth(recipe, config.prior.weight) if config.prior.data else recipe


def _no_init(key: Any, x: Any, cond: Any) -> Params:
    raise AssertionError("the weights are the checkpoint's")


def _zeros(shape: Any) -> Any:
    return jax.numpy.zeros(shape.shape, shape.dtype)
