"""The job that draws, from whatever there is to draw from, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.apps.plan import Generator
from diffusion_jax.build.generator import open_source
from diffusion_jax.build.runs import Run
from diffusion_jax.jobs import autoencoding
from diffusion_jax.jobs.drawing import Samples, draw_requests, open_sampler
from diffusion_jax.jobs.image_files import (
    batch_places,
    check_writable,
    labels_of,
    save_drawn,
)
from diffusion_jax.jobs.placing import cache_compilations
from diffusion_jax.jobs.records import place_of, read_record, request_of, with_record
from diffusion_jax.jobs.requests import batch_size, requests_of, settings_of
from diffusion_jax.jobs.strips import save_strip
from diffusion_jax.spec import Config


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
    distinct = {request._replace(seed=0): request for request in requests}
    generator.inputs(list(distinct.values()))  # the last one's mistake too, before the first
    sampler, folder = open_sampler(settings, generator), workdir / "samples"
    check_writable(folder)
    places, done = batch_places(requests, size), []
    try:
        images = draw_requests(sampler, requests, size, done=done)
    except BaseException:  # what is drawn is kept, whatever broke off the rest
        if done:
            images = np.concatenate(done)
            n = len(images)
            save_drawn(sampler, requests[:n], images, places[:n], folder)
        raise
    save_drawn(sampler, requests, images, places, folder)
    if generator.examples is not None:
        save_strip(sampler, workdir / "samples" / "strip.png")
    return Samples(images, labels_of(requests))


def _again(settings: Config, workdir: Path) -> Samples:
    """The image of ``config.again`` once more: the same batch, of which it alone differs."""
    record = read_record(settings.again)
    settings = with_record(settings, record)
    request, place = request_of(record), place_of(record)
    batch = [request._replace(seed=place.seed), *[request] * (place.size - 1)]
    batch[place.number] = request
    generator: Any = open_source(settings.checkpoint, settings)
    if generator.name != record["drawn_by"]:
        raise ValueError(
            f"{settings.checkpoint} was trained further since the picture was drawn: it is "
            f"{generator.name} now and was {record['drawn_by']}"
        )
    sampler = open_sampler(settings, generator)
    check_writable(workdir / "samples")
    image = draw_requests(sampler, batch, place.size)[place.number : place.number + 1]
    save_drawn(sampler, [request], image, [place], workdir / "samples")
    return Samples(image, labels_of([request]))


def _reconstructed(run: Run, settings: Config, workdir: Path) -> Any:
    return autoencoding.reconstruct(run, workdir)


# By what a source turns out to be.
SAMPLES: dict[type, Callable[..., Any]] = {Generator: _drawn, Run: _reconstructed}
