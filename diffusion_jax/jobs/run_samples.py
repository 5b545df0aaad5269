"""Samples of a run, for what measures it."""

from __future__ import annotations

from diffusion_jax.build.runs import Run
from diffusion_jax.jobs.drawing import Drawer, Samples, draw_requests, open_drawer
from diffusion_jax.jobs.image_files import labels_of
from diffusion_jax.jobs.requests import batch_size, requests_of, settings_of


def drawer_of(run: Run) -> Drawer:
    """A run ready to draw, as its config's sampler section says."""
    return open_drawer(settings_of(run.config, ""), run.generator())


def draw_samples(drawer: Drawer, n: int) -> Samples:
    """n samples, of all classes or prompts of the drawer's settings in turn."""
    settings = drawer.settings.copy_and_resolve_references()
    settings.n = n
    requests = requests_of(settings, drawer.generator)
    images = draw_requests(drawer, requests, batch_size(settings, drawer.generator))
    return Samples(images, labels_of(requests))
