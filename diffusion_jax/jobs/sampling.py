"""The job that draws, from whatever there is to draw from, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.apps.plan import Generator
from diffusion_jax.build.generator import open_source
from diffusion_jax.build.runs import Run
from diffusion_jax.jobs import autoencoding
from diffusion_jax.jobs.drawing import Samples, draw_requests, open_sampler
from diffusion_jax.jobs.image_files import (
    Place,
    batch_places,
    labels_of,
    read_record,
    request_of,
    save_drawn,
)
from diffusion_jax.jobs.placing import cache_compilations
from diffusion_jax.jobs.requests import batch_size, requests_of, settings_of
from diffusion_jax.jobs.strips import save_strip
from diffusion_jax.spec import Config, plain


def sample(config: Config, workdir: str | os.PathLike) -> Any:
    """Draw what a config asks for; leave a PNG of each image, a sheet of all and their arrays.

    Args:
        config: of ``configs/sample.py``, or of a run or a tuning, whose folder is the source then.
        workdir: where samples/ is made, and the source if the config names none.

    Returns:
        ``Samples``; of a first stage reconstructions of held-out images, uint8 [n, h, w, c].

    Raises:
        FileNotFoundError: naming what a checkpoint lacks.
        ValueError: for a config, a source or a picture that does not fit.
    """
    cache_compilations()
    settings = settings_of(config, workdir)
    if settings.again:
        return _again(settings, Path(workdir))
    source = open_source(settings.checkpoint, settings, config if "train" in config else None)
    return SAMPLES[type(source)](source, settings, Path(workdir))


def _drawn(generator: Generator, settings: Config, workdir: Path) -> Samples:
    requests, size = requests_of(settings, generator), batch_size(settings, generator)
    sampler = open_sampler(settings, generator)
    images = draw_requests(sampler, requests, size)
    save_drawn(sampler, requests, images, batch_places(requests, size), workdir / "samples")
    if generator.examples is not None:
        save_strip(sampler, workdir / "samples" / "strip.png")
    return Samples(images, labels_of(requests))


def _again(settings: Config, workdir: Path) -> Samples:
    """The image of ``config.again`` once more: the same batch, of which it alone differs."""
    record = read_record(settings.again)
    held = {name: value for name, value in record.items() if name in settings}
    settings = ConfigDict({**plain(settings), **held})
    request, place = request_of(record), Place(*record["batch"])
    batch = [request._replace(seed=place.seed), *[request] * (place.size - 1)]
    batch[place.number] = request
    generator: Any = open_source(settings.checkpoint, settings)
    if generator.name != record["drawn_by"]:
        raise ValueError(
            f"{settings.checkpoint} was trained further since the picture was drawn: it is "
            f"{generator.name} now and was {record['drawn_by']}"
        )
    sampler = open_sampler(settings, generator)
    image = draw_requests(sampler, batch, place.size)[place.number : place.number + 1]
    save_drawn(sampler, [request], image, [place], workdir / "samples")
    return Samples(image, labels_of([request]))


def _reconstructed(run: Run, settings: Config, workdir: Path) -> Any:
    return autoencoding.reconstruct(run, workdir)


# By what a source turns out to be.
SAMPLES: dict[type, Callable[..., Any]] = {Generator: _drawn, Run: _reconstructed}
