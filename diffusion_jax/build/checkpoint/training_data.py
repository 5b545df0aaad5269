"""Pictures with their prompts, as the tuning of a checkpoint reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from diffusion_jax.apps.plan import Generator
from diffusion_jax.build import training
from diffusion_jax.build.buckets import bucket_sizes
from diffusion_jax.build.conditioning import Conditioning
from diffusion_jax.data.pipeline import batches, make_dataset
from diffusion_jax.recipes.dreambooth import PRIOR
from diffusion_jax.spec import Config


def size_of(config: Config, generator: Generator) -> tuple[int, int]:
    """(height, width) in pixels that pictures are brought to."""
    height, width = tuple(config.image_size) or generator.geometry.size
    return height, width


def conditioning(config: Config, generator: Generator, prompt: str | None = None) -> Conditioning:
    """Prompts as a training batch has them: of captions, or the one prompt of the config.

    Args:
        config: its ``prompt`` is every picture's, unless it is empty: then captions are read.
        generator: of a checkpoint.
        prompt: in place of ``config.prompt``.
    """
    one, whole = config.prompt if prompt is None else prompt, size_of(config, generator)
    rows = lambda texts: generator.inputs.rows(texts, whole, chunks=config.chunks or 1)

    def attach(batch: Mapping[str, Any]) -> dict[str, Any]:
        texts = [one] * len(batch["image"]) if one else [str(text) for text in batch["caption"]]
        rest = {n: x for n, x in batch.items() if n not in ("caption", "label", "framing")}
        size = batch["image"].shape[1:3]  # of a bucket, if there are some
        inputs = generator.inputs.rows(texts, size, config.chunks or 1, batch.get("framing"))
        return {**rest, **inputs}

    first = rows([one])
    shapes = {n: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for n, x in first.items()}
    return Conditioning(
        condition=lambda frozen, batch: generator.model.condition(frozen, dict(batch)),
        null=generator.model.null,
        captions=not one,
        attach=attach,
        inputs=generator.inputs,
        held_out=lambda split, n: rows([one] * n),
        example=shapes,
    )


def training_data(config: Config, generator: Generator) -> Callable[[int], Any]:
    """start_step -> iterator of this process's batches: pictures with their prompts' tokens.

    With ``config.prior.data`` each has a second set under "prior_" (see ``recipes.dreambooth``), of
    the same bucket.
    """
    own = _dataset(config, generator, config.data.name, None)
    if not config.prior.data:
        return lambda start: batches(own, start, timeout=config.data.timeout)
    if not config.prior.prompt:
        raise ValueError(
            "config.prior.prompt is empty; name the kind of the pictures in config.prior.data, "
            'such as --config.prior.prompt="a photo of a cat"'
        )
    kind = _dataset(config, generator, config.prior.data, config.prior.prompt)

    def start_from(start: int):
        pairs = zip(
            batches(own, start, timeout=config.data.timeout), batches(kind, start), strict=True
        )
        return ({**a, **{PRIOR + name: x for name, x in b.items()}} for a, b in pairs)

    return start_from


def _dataset(config: Config, generator: Generator, name: str, prompt: str | None) -> Any:
    conditions = conditioning(config, generator, prompt)
    size = size_of(config, generator)
    sizes = bucket_sizes(config, size)
    spec = training.data_spec(config, config.data.split)._replace(
        name=name, image_size=size, channels=3, captions=conditions.captions,
        buckets=sizes, beside=config.data.name if sizes and name != config.data.name else "",
        framing=generator.inputs.sized and bool(sizes),
    )  # fmt: skip
    return make_dataset(spec).map(conditions.attach)
