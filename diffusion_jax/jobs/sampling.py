"""The job that samples from a run, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import pictures
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import first_stage
from diffusion_jax.build.checkpoint import tuning
from diffusion_jax.files import whole
from diffusion_jax.jobs import autoencoding
from diffusion_jax.jobs.drawing import Samples, draw_many, drawer
from diffusion_jax.jobs.prompting import draw_prompts
from diffusion_jax.jobs.run import Run, cache_compilations, open_run
from diffusion_jax.jobs.strips import save_strip
from diffusion_jax.spec import Config


def sample(config: Config, workdir: str | os.PathLike) -> Any:
    """Draw ``config.sampler.n`` samples from a run; leave a PNG, an .npz and the strip.

    A config with a checkpoint draws its prompts instead (``jobs.prompting``), that of a fine-tuning
    with what it left in the folder.  Of a first stage: reconstructions of held-out images,
    uint8 [n, h, w, c].

    Raises:
        ValueError: if the folder holds no run of this model.
    """
    if "checkpoint" in config:
        used = tuning.plan(config).used if "tuning" in config else lambda config, _: config
        drawn = draw_prompts(used(config, Path(workdir)), workdir)
        return Samples(drawn, np.arange(len(drawn), dtype=np.int32))
    cache_compilations()
    run = open_run(config, workdir)
    return SAMPLES[type(run.experiment)](run, Path(workdir))


def _of_diffusion(run: Run, workdir: Path) -> Samples:
    config = run.config
    draw = drawer(config, run.experiment)
    samples = draw_many(config, run.experiment, draw, run.params, config.sampler.n)
    folder = workdir / "samples"
    stem = f"sample_{run.step:07d}_seed{config.sampler.seed}"
    save_samples(folder / stem, samples)
    save_strip(config, run.experiment, run.params, folder / "strip.png")
    if jax.process_index() == 0:
        print(f"{len(samples.images)} samples are in {folder / stem}.png and .npz")
    return samples


def save_samples(stem: Path, samples: Samples) -> dict[str, np.ndarray]:
    """Write stem.png, a grid, and stem.npz with ``images`` and ``labels``; return the grid.

    The first process writes; the others return {}.
    """
    if jax.process_index():
        return {}
    with whole(stem.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=samples.images, labels=samples.labels)
    if samples.images.ndim == 2:
        pictures.save_scatter(stem.with_suffix(".png"), [("samples", samples.images, None)])
        return {}
    sheet = pictures.grid(samples.images[:100], 10 if len(samples.images) >= 100 else None)
    pictures.save_image(stem.with_suffix(".png"), sheet, zoom=max(1, 56 // samples.images.shape[1]))
    return {"samples": sheet}


# By what an experiment is.
SAMPLES: dict[type, Callable[[Run, Path], Any]] = {
    experiments.Experiment: _of_diffusion,
    first_stage.AutoencoderExperiment: autoencoding.reconstruct,
}
