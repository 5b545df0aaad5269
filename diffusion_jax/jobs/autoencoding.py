"""Reconstructions of a first stage while it trains, and its evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import pictures
from diffusion_jax.build import evaluation
from diffusion_jax.build.first_stage import AutoencoderExperiment
from diffusion_jax.build.runs import Run
from diffusion_jax.data import load_images, to_uint8, to_unit
from diffusion_jax.evaluate.distances import frechet_distance
from diffusion_jax.evaluate.features import extract
from diffusion_jax.evaluate.figures import Figure, bootstrap, mean_of
from diffusion_jax.evaluate.reconstruction import psnr, ssim
from diffusion_jax.jobs.placing import jitted, place_batch
from diffusion_jax.recipes.bottleneck import perplexity, shares
from diffusion_jax.spec import Config

_COLUMNS = 8
_BATCH = 32


def reconstruction_view(
    config: Config, experiment: AutoencoderExperiment, folder: Path
) -> Callable[..., Any]:
    """(step, params) -> images for TensorBoard: held-out originals over their reconstructions.

    They are written to folder/step_N.png; ``config.sampler.n`` says how many.
    """
    originals = _images(config, config.data.test_split, config.sampler.n)
    rebuild = reconstructor(config, experiment)

    def show(step, params):
        reconstructions, _ = rebuild(params, originals)
        return save_pairs(folder / f"step_{step:07d}.png", originals, reconstructions)

    return show


def save_pairs(
    path: Path, originals: np.ndarray, reconstructions: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows of originals, uint8 [n, h, w, c], each over the row of its reconstructions."""
    if jax.process_index():
        return {}
    columns = min(_COLUMNS, len(originals))
    starts = range(0, len(originals) // columns * columns, columns)
    rows = [part[i : i + columns] for i in starts for part in (originals, reconstructions)]
    sheet = pictures.grid(np.concatenate(rows), columns)
    pictures.save_image(path, sheet)
    return {"reconstructions": sheet}


def reconstructor(config: Config, experiment: AutoencoderExperiment) -> Callable[..., Any]:
    """(params, uint8 [n, h, w, c]) -> (reconstructions uint8, indices [n, h, w] or None).

    Of the posterior's mode, in batches of one size.
    """
    module = experiment.module

    def rebuild(params, pixels):
        run = lambda x, method: module.apply({"params": params["autoencoder"]}, x, method=method)
        posterior = run(pixels, "encode")
        return run(posterior.mode(), "decode"), getattr(posterior, "indices", ())

    compiled = jitted(config, rebuild)

    def many(params, images):
        parts = []
        for i in range(0, len(images), _BATCH):
            rows = np.arange(i, i + _BATCH) % len(images)
            batch = place_batch(config, to_unit(images[rows]))
            pixels, indices = jax.device_get(compiled(params, batch))
            parts.append((to_uint8(pixels), indices))
        reconstructions = np.concatenate([part[0] for part in parts])[: len(images)]
        if not experiment.entries:
            return reconstructions, None
        return reconstructions, np.concatenate([part[1] for part in parts])[: len(images)]

    return many


def figures(run: Run, workdir: Path) -> dict[str, Figure]:
    """PSNR, SSIM and Fréchet distance of held-out reconstructions; use of a codebook."""
    config, experiment = run.config, run.experiment
    originals = _images(config, config.data.test_split, config.evaluate.n)
    reconstructions, indices = reconstructor(config, experiment)(run.params, originals)
    save_pairs(
        workdir / "samples" / f"evaluate_{run.step:07d}.png", originals[:64], reconstructions[:64]
    )
    pair = (jnp.asarray(originals), jnp.asarray(reconstructions))
    out = {
        "PSNR of reconstructions, dB": mean_of(np.asarray(psnr(*pair))),
        "SSIM of reconstructions": mean_of(np.asarray(ssim(*pair))),
    }
    if config.evaluate.quality:
        net = evaluation.feature_net(config)
        a, b = (extract(net, images)["frechet"] for images in (originals, reconstructions))
        spread = bootstrap(frechet_distance, a, b, resamples=10, seed=config.seed)
        name = f"{net.distance} of reconstructions ({net.name})"
        out[name] = Figure(frechet_distance(a, b), spread, len(a))
    if indices is not None:
        share = shares(jnp.asarray(indices), experiment.entries)
        used, varied = float((share > 0).mean()), float(perplexity(share))
        out["entries used"] = Figure(used, float("nan"), indices.size)
        out["perplexity of entries"] = Figure(varied, float("nan"), indices.size)
    return out


def reconstruct(run: Run, workdir: Path) -> np.ndarray:
    """In place of samples, ``config.sampler.n`` reconstructions of held-out images, uint8."""
    originals = _images(run.config, run.config.data.test_split, run.config.sampler.n)
    reconstructions, _ = reconstructor(run.config, run.experiment)(run.params, originals)
    path = workdir / "samples" / f"sample_{run.step:07d}.png"
    save_pairs(path, originals, reconstructions)
    if jax.process_index() == 0:
        print(f"{len(reconstructions)} reconstructions, below their originals, are in {path}")
    return reconstructions


def _images(config: Config, split: str, limit: int) -> np.ndarray:
    data = config.data
    size = tuple(data.image_size)
    return load_images(data.name, split, limit, size, data.channels, data.dir or None)[0]
