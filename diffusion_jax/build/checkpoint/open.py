"""A Stable Diffusion checkpoint and what people add to it, as ``configs/sample.py`` says."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from diffusion_jax.apps.plan import Generator
from diffusion_jax.build.checkpoint.additions import file_and_scale, with_loras
from diffusion_jax.build.checkpoint.text_to_image import text_to_image
from diffusion_jax.convert.lora import lora_file
from diffusion_jax.convert.stable_diffusion import Checkpoint, read_checkpoint
from diffusion_jax.convert.textual_inversion import Word, bundled_words, read_word
from diffusion_jax.models.autoencoders.codec import Tiling
from diffusion_jax.spec import Config

DTYPES = ("float32", "bfloat16", "float16")


def read(source: str, settings: Config) -> Checkpoint:
    """The files of a folder or a file, with ``settings.lora`` merged into its weights."""
    checkpoint = read_checkpoint(source, settings.prediction_type or None, settings.variant or None)
    return with_loras(checkpoint, settings.lora)


def open_checkpoint(source: str, settings: Config) -> Generator:
    """The checkpoint as a ``Generator``.

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: for a file or a setting that does not fit.
    """
    if settings.dtype not in DTYPES:
        raise ValueError(f"config.dtype = {settings.dtype!r}; known are {', '.join(DTYPES)}")
    checkpoint = read(source, settings)
    least = 4 * checkpoint.autoencoder.module.factor
    if settings.tile and settings.tile < least:
        raise ValueError(f"config.tile = {settings.tile} must be 0, or at least {least} pixels")
    cells = settings.tile // least
    words = [_word(spec) for spec in settings.embeddings]
    words += _bundled(settings.lora, [word.name for word in words])
    return text_to_image(
        checkpoint,
        tuple(settings.tokenizers),
        settings.dtype,
        tiling=Tiling(4 * cells, cells) if cells else None,
        words=words,
        chunks=settings.chunks or None,
        clip_skip=settings.clip_skip,
    )


def _bundled(loras: Sequence[str], known: Sequence[str]) -> list[Word]:
    """The words that LoRA files bring along, but for those that are known already; it says so."""
    found = {}
    for spec in loras:
        path = lora_file(file_and_scale(spec)[0])
        if own := [w for w in bundled_words(path) if w.name not in (*known, *found)]:
            found |= {word.name: word for word in own}
            names = ", ".join(repr(word.name) for word in own)
            warnings.warn(f"{path} brings the words {names}, for prompts", stacklevel=3)
    return list(found.values())


def _word(spec: str) -> Word:
    """The word of "file", or of "<word>=file" where the file does not say its word."""
    name, equals, path = spec.rpartition("=")
    word = read_word(path)
    return word._replace(name=name) if equals else word
