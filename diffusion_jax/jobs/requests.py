"""From a config, ``configs/sample.py`` or one of training, to the requests for images."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from configs import sample
from diffusion_jax.apps.plan import Generator, Geometry, Request
from diffusion_jax.core import seeds
from diffusion_jax.jobs.settings import ANY_SEED, check
from diffusion_jax.spec import Config

_FIELDS = ("prompts", "negative_prompt", "labels", "n", "seed", "image_size", "batch_size")


def settings_of(config: Config, workdir: str | os.PathLike) -> Config:
    """The fields of ``configs/sample.py``, of a config of whatever kind.

    A config of training says in its sampler section what is drawn of it; its folder is the source.

    Raises:
        ValueError: for a field that no source could take (``settings.check``).
    """
    if "train" not in config:
        settings = config.copy_and_resolve_references()
        settings.checkpoint = settings.checkpoint or str(workdir)
        check(settings)
        return settings
    settings: Config = sample.get_config().unlock()
    for name in settings:
        # Of a run, "seed" and the like say how it is trained; what is drawn stands beside the rest
        # of the sampler.
        held = config.sampler if name in config.sampler else config
        if name in held and name not in ("sampler", "mesh", "data", "workdir"):
            settings[name] = held[name]
    settings.sampler.update({k: v for k, v in config.sampler.items() if k in settings.sampler})
    settings.mesh = config.mesh
    settings.data.dir = config.data.dir
    settings.checkpoint = str(workdir)
    check(settings)
    return settings


def requests_of(settings: Config, generator: Generator) -> list[Request]:
    """The images that the settings ask for; what they leave open is the generator's own.

    Raises:
        ValueError: for a size that the networks cannot take.
    """
    chosen = {name: _chosen(settings, generator, name) for name in _FIELDS}
    one = (settings.prompt,) if settings.prompt else ()
    prompts = settings.prompts or one or chosen["prompts"] or ()
    labels = chosen["labels"] or ()
    labels = tuple(labels) or (() if prompts else tuple(range(generator.classes)))
    size = size_of(chosen["image_size"] or (), generator.geometry)
    first = _seed(chosen["seed"] or 0)
    request = lambda i, prompt, label: Request(
        prompt, chosen["negative_prompt"] or "", label, (first + i) % seeds.COUNT, size
    )
    count = chosen["n"] or max(len(prompts), len(labels), 1)
    turn = lambda values, i, default: values[i % len(values)] if values else default
    return [request(i, turn(prompts, i, ""), turn(labels, i, None)) for i in range(count)]


def batch_size(settings: Config, generator: Generator) -> int:
    """Images at once."""
    return _chosen(settings, generator, "batch_size") or 4


def size_of(size: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    """(height, width) in pixels, or () for the model's own.

    Raises:
        ValueError: for a size that the networks cannot halve often enough.
    """
    size, multiple = tuple(size), geometry.multiple
    if not size or not geometry.size:
        return ()
    if any(n % multiple for n in size):
        down, up = (
            tuple(max(1, rounded(n / multiple)) * multiple for n in size)
            for rounded in (math.floor, math.ceil)
        )
        raise ValueError(
            f"config.image_size = {size} must be (height, width), multiples of {multiple}, such "
            f"as {down}{f' or {up}' if up != down else ''}"
        )
    return size


def _seed(seed: int) -> int:
    """The first seed; one that is drawn at random, the same on every process, for any."""
    if seed == ANY_SEED:
        drawn = np.uint32(secrets.randbits(32))
        return int(multihost_utils.broadcast_one_to_all(drawn))
    return seed


def _chosen(settings: Config, generator: Generator, name: str) -> Any:
    """A field of the settings; where it is left open, what the generator's author says, or None."""
    value = settings[name]
    is_open = value is None or (value in ("", 0, ()) and name not in _ANY)
    return generator.sampling.get(name) if is_open else value


# Fields of which every value but None is a choice.
_ANY = ("seed",)
