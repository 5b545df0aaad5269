"""Samples of a text-conditioned model, compared with its texts: retrieval, adherence, diversity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diffusion_jax.build import evaluation
from diffusion_jax.build.conditioning import text_encoder
from diffusion_jax.build.runs import Run
from diffusion_jax.core import seeds
from diffusion_jax.data import load_captions, to_uint8
from diffusion_jax.data.captions import encoded
from diffusion_jax.data.catalog import LATENTS
from diffusion_jax.evaluate.contrast import CaptionJudge, adherence, diversity, retrieval
from diffusion_jax.evaluate.features import cached, extract
from diffusion_jax.evaluate.figures import Figure
from diffusion_jax.evaluate.judge import augment, to_unit_range
from diffusion_jax.jobs.drawing import ImageSampler
from diffusion_jax.jobs.run_samples import draw_samples, sampler_of_run
from diffusion_jax.jobs.sets import cache_folder, images_of
from diffusion_jax.pictures import grid, save_image
from diffusion_jax.spec import Config

VIEWS = 4  # of each training image: itself, and moved a little three times


class Captions(NamedTuple):
    """Texts, their features [n, e], and the images they belong to, uint8 [n, h, w, c]."""

    texts: list[str]
    features: np.ndarray
    images: np.ndarray


class Judged(NamedTuple):
    """A judge of captions and the features that it reads images by."""

    judge: CaptionJudge
    features: Callable[[np.ndarray], np.ndarray]

    def similarity(self, images: np.ndarray, captions: Captions) -> np.ndarray:
        """Of images uint8 [n, h, w, c] with captions, [n, m]."""
        return self.judge.similarity(self.features(images), captions.features)


def figures(run: Run, workdir: Path) -> dict[str, Figure]:
    """Retrieval of ``config.evaluate.captions`` training and held-out captions, and of real images.

    Raises:
        ValueError: if the model reads no texts.
    """
    config = run.config
    if not config.text.encoder:
        raise ValueError(
            f"config.evaluate.captions = {config.evaluate.captions} needs a model that reads "
            "texts; this one has config.text.encoder = ''"
        )
    if config.evaluate.captions < 2:
        raise ValueError(
            f"config.evaluate.captions = {config.evaluate.captions} must be at least 2: a caption "
            "is found among the others"
        )
    judged, sampler, found = judge_of(config), sampler_of_run(run), {}
    for split, name in ((config.data.split, "trained"), (config.data.test_split, "held-out")):
        captions = captions_of(config, split, config.evaluate.captions)
        images = drawn(sampler, captions.texts, 1)[0]
        save_pairs(captions, images, workdir / "samples" / f"captions_{name}.png")
        found |= retrieval(judged.similarity(images, captions), f"samples of {name} captions")
        found |= retrieval(judged.similarity(captions.images, captions), f"{name} images")
    return found


def save_pairs(captions: Captions, images: np.ndarray, path: Path) -> None:
    """Write pairs of columns: the real image, and a sample of its caption."""
    if jax.process_index():
        return
    pairs = np.stack([captions.images, images], 1)[:50]
    sheet = grid(pairs.reshape(-1, *images.shape[1:]), 10)
    text = {"captions": "\n".join(captions.texts[:50])}
    save_image(path, sheet, zoom=max(1, 56 // images.shape[1]), text=text)


def judge_of(config: Config) -> Judged:
    """The judge that is trained on the images and captions of the training split."""
    net = evaluation.feature_net(config)
    known = captions_of(config, config.data.split, None)
    folder, label = cache_folder(config), config.data.name.removeprefix(LATENTS).replace("/", "-")
    keys = jax.random.split(seeds.key(config.seed), VIEWS - 1)
    move = jax.jit(lambda key, x: to_uint8(augment(key, to_unit_range(x))))
    views = [known.images, *(np.asarray(move(key, known.images)) for key in keys)]
    features = [cached(net, view, folder, f"{label}-view")["frechet"] for view in views]
    judge = evaluation.caption_judge(np.stack(features), known.features, config.seed)
    return Judged(judge, lambda images: extract(net, images)["frechet"])


def captions_of(config: Config, split: str, n: int | None) -> Captions:
    """N captions of a split, each once, drawn by the config's seed; None for all, in order."""
    texts = load_captions(config.data.name, split, None, config.data.dir or None)
    images, _ = images_of(config, split, None)
    rows = np.arange(len(texts))
    if n is not None:
        first = np.unique(np.asarray(texts), return_index=True)[1]
        rows = np.random.default_rng(config.seed).permutation(first)[:n]
    chosen, encoder = [texts[i] for i in rows], text_encoder(config)
    states = encoded(texts, encoder.encode, encoder.name, config.data.dir or None).of(chosen)
    mask = states["context_mask"][..., None]
    mean = (states["context"].astype(np.float32) * mask).sum(1) / mask.sum(1)
    return Captions(chosen, mean, images[rows])


def drawn(sampler: ImageSampler, texts: Sequence[str], each: int, scale: float | None = None):
    """Images uint8 [each, n, h, w, c] of n texts.

    Args:
        sampler: of the run.
        texts: the prompts.
        each: images of each.
        scale: of guidance; None for the config's.
    """
    settings = sampler.settings.copy_and_resolve_references()
    settings.prompts = tuple(texts)
    if scale is not None:
        settings.sampler.guidance_scale = scale
    images = draw_samples(sampler._replace(settings=settings), each * len(texts)).images
    return images.reshape(each, len(texts), *images.shape[1:])


class Compromise(NamedTuple):
    """Samples at a guidance scale: the figures, and the images uint8 [each, n, h, w, c]."""

    adherence: Figure
    diversity: Figure
    images: np.ndarray


def compromise(
    sampler: ImageSampler, captions: Captions, judged: Judged, each: int, scale: float
) -> Compromise:
    """Samples of captions at a guidance scale, several of each, as the judge measures them."""
    images = drawn(sampler, captions.texts, each, scale)
    features = np.stack([judged.features(part) for part in images])
    similar = [judged.judge.similarity(part, captions.features) for part in features]
    agrees = adherence(np.mean(similar, 0))
    return Compromise(agrees, diversity(features.swapaxes(0, 1)), images)
