"""What people add to a checkpoint: LoRAs merged into its weights, and new words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_jax.convert.lora import read_lora
from diffusion_jax.convert.stable_diffusion import Checkpoint, Part
from diffusion_jax.convert.textual_inversion import Word
from diffusion_jax.data.tokenizers import Tokenizer
from diffusion_jax.data.words import ids_of as ids_of_word
from diffusion_jax.data.words import with_word
from diffusion_jax.recipes import lora


def with_words(
    checkpoint: Checkpoint, tokenizers: tuple[Tokenizer, ...], words: Sequence[Word]
) -> tuple[Checkpoint, tuple[Tokenizer, ...]]:
    """Token tables and tokenizers with words added after all others, in order.

    Raises:
        ValueError: for a word without a name, or one that is a token already, or for vectors that
            do not fit the text encoders.
    """
    texts = list(checkpoint.text_encoders)
    for word in words:
        widths = [part.params["token"]["embedding"].shape[1] for part in texts]
        given = [v.shape[1] for v in word.vectors]
        if not word.name or given != widths:
            kind = _WORDS_OF.get(tuple(given))
            said = f" (it is one of {kind})" if kind else ""
            raise ValueError(
                f"the embedding of {word.name!r} has vectors of {given}{said}, and the text "
                f"encoders' are of {widths}; name a word, and take one of this kind of model"
            )
        count = len(word.vectors[0])
        tokenizers = tuple(with_word(tokenizer, word.name, count) for tokenizer in tokenizers)
        for i, vectors in enumerate(word.vectors):
            texts[i] = _longer(texts[i], vectors, tokenizers[i], word.name)
    return checkpoint._replace(text_encoders=tuple(texts)), tokenizers


# Widths of the text encoders -> the models that have them.
_WORDS_OF = {(768,): "SD 1", (1024,): "SD 2", (768, 1280): "SDXL", (1280,): "SDXL, in part"}


def _longer(part: Part, vectors: np.ndarray, tokenizer: Tokenizer, word: str) -> Part:
    """A text encoder with vectors at the end of its token table."""
    table = np.asarray(part.params["token"]["embedding"])
    first = ids_of_word(tokenizer, word)[0]
    if first != len(table):
        raise ValueError(
            f"the tokenizer has {first} tokens and the text encoder {len(table)}: a word cannot be "
            "added to tables that differ"
        )
    longer = np.concatenate([table, vectors.astype(table.dtype)])
    # A new word has the largest id, so the end of a text must be found by its own.
    eos = tokenizer.suffix[0] if part.module.eos is None else part.module.eos
    module = part.module.clone(vocab=len(longer), eos=eos)
    return Part(module, {**part.params, "token": {"embedding": longer}})


def with_loras(checkpoint: Checkpoint, loras: Sequence[str]) -> Checkpoint:
    """The checkpoint with LoRA files merged into its weights, their sum rounded once.

    Args:
        checkpoint: the base.
        loras: "file.safetensors", or "file.safetensors:0.8" for 0.8 times its change.

    Raises:
        FileNotFoundError: if a file is absent.
        ValueError: if one does not fit (see ``convert.lora.read_lora``).
    """
    if isinstance(loras, str):
        raise ValueError(f"config.lora = {loras!r} must be a list of files: ('{loras}',)")
    changes: dict[str, dict[str, list[lora.Change]]] = {}
    for spec in loras:
        file, scale = file_and_scale(spec)
        for part, own in read_lora(file, checkpoint).items():
            for path, change in own.changes.items():
                of_part = changes.setdefault(part, {})
                of_part.setdefault(path, []).append(_scaled(change, scale))
    part = lambda name, old: _adapted(old, changes.get(name, {}))
    names = ("text_encoder", "text_encoder_2")
    texts = tuple(part(*pair) for pair in zip(names, checkpoint.text_encoders, strict=False))
    return checkpoint._replace(unet=part("unet", checkpoint.unet), text_encoders=texts)


def _scaled(change: lora.Change, scale: float) -> lora.Change:
    return lambda weight: np.float32(scale) * change(weight)


def _adapted(part: Part, changes: dict[str, list[lora.Change]]) -> Part:
    return part._replace(params=lora.changed(part.params, changes)) if changes else part


def file_and_scale(spec: str) -> tuple[str, float]:
    """("a/b", 0.8) of "a/b:0.8", ("a/b", 1.0) of "a/b"."""
    path, _, scale = spec.rpartition(":")
    try:
        return (path, float(scale)) if path else (spec, 1.0)
    except ValueError:  # a colon of the path itself
        return spec, 1.0
