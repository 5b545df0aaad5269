"""What of the settings of sampling can be told to be wrong before anything is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from diffusion_jax.build.edits import edits_of
from diffusion_jax.core import seeds
from diffusion_jax.spec import Config

ANY_SEED = -1
"""Of ``config.seed``: one that is drawn at random."""


class Rule(NamedTuple):
    """What a field may be.

    Attributes:
        field: its name, such as "sampler.steps".
        fits: whether a value is one.
        wanted: what it must be, for the message.
    """

    field: str
    fits: Callable[[Any], bool]
    wanted: str


def check(settings: Config) -> None:
    """Refuse settings that no source can be drawn by; no file is looked at.

    Args:
        settings: of ``configs/sample.py``; a field that is absent is not checked.

    Raises:
        ValueError: naming the field and what it must be.
    """
    for rule in RULES:
        section, _, name = rule.field.rpartition(".")
        held = settings[section] if section else settings
        if name in held and not rule.fits(held[name]):
            raise ValueError(f"config.{rule.field} = {held[name]!r:.200} must be {rule.wanted}")
    edits_of(settings.edits)


def _whole(value: Any, least: int, below: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < below


def _from(least: int) -> Callable[[Any], bool]:
    return lambda value: _whole(value, least)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _text(value: Any) -> bool:
    """Whether it is one that a file can hold, without halves of characters."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, (list, tuple)) and all(map(fits, values))


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _size(value: Any) -> bool:
    return _each(_from(1))(value) and len(value) in (0, 2)


_FILES = "a list of paths, such as ('a.safetensors',)"
RULES = (
    Rule("prompt", _text, "a text"),
    Rule("negative_prompt", _text, "a text"),
    Rule("prompts", _each(_text), "a list of texts, such as ('a red house',)"),
    Rule("labels", _each(_from(0)), "a list of whole numbers of at least 0, such as (3,)"),
    Rule("n", _from(0), "at least 1, or 0 for one of each prompt"),
    Rule("batch_size", _from(0), "at least 1, or 0 for the source's own"),
    Rule(
        "seed",
        _or_none(lambda value: _whole(value, ANY_SEED, seeds.COUNT)),
        f"at least 0 and below 2**64, or {ANY_SEED} for any",
    ),
    Rule("image_size", _size, "(height, width), such as (512, 512)"),
    Rule("chunks", _from(0), "at least 1, or 0 for all"),
    Rule("tile", _from(0), "a number of pixels, or 0 for no tiles"),
    Rule("edits", _each(_text), "a list of edits, such as ('variation(0.2)',)"),
    Rule("lora", _each(_text), _FILES),
    Rule("embeddings", _each(_text), _FILES),
    Rule("tokenizers", _each(_text), "a list of folders, such as ('tokenizer',)"),
    Rule("sampler.steps", _or_none(_from(1)), "at least 1"),
    Rule("sampler.guidance_scale", _or_none(_finite), "a finite number"),
    Rule("sampler.contrast", _or_none(_finite), "a finite number"),
    Rule("sampler.post", _each(_text), "a list of bounds, such as ('static()',)"),
)
"""Of the fields that a person writes."""
