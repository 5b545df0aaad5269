"""Samples of a run, for what measures it."""

from __future__ import annotations

from diffusion_jax.build.runs import Run
from diffusion_jax.jobs.drawing import ImageSampler, Samples, draw_requests, open_sampler
from diffusion_jax.jobs.image_files import labels_of
from diffusion_jax.jobs.requests import batch_size, requests_of, settings_of


def sampler_of_run(run: Run) -> ImageSampler:
    """A run ready to draw, as its config's sampler section says."""
    return open_sampler(settings_of(run.config, ""), run.generator())


def draw_samples(sampler: ImageSampler, n: int) -> Samples:
    """n samples, of all classes or prompts of the sampler's settings in turn."""
    settings = sampler.settings.copy_and_resolve_references()
    settings.n = n
    requests = requests_of(settings, sampler.generator)
    images = draw_requests(sampler, requests, batch_size(settings, sampler.generator))
    return Samples(images, labels_of(requests))
