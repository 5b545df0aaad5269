"""Evaluation of a run: quality and class accuracy of its samples, likelihood of held-out data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion_jax import build_evaluation
from diffusion_jax.core.likelihood import Bound
from diffusion_jax.data import load_images, to_unit
from diffusion_jax.data.catalog import data_root
from diffusion_jax.evaluate.features import cached, extract
from diffusion_jax.evaluate.figures import Figure, table
from diffusion_jax.evaluate.judge import Judge, accuracy
from diffusion_jax.evaluate.quality import quality
from diffusion_jax.files import whole
from diffusion_jax.jobs.run import Run, cache_compilations, open_run
from diffusion_jax.jobs.sampling import draw_many, drawer, save_samples
from diffusion_jax.spec import Config

Figures = dict[str, Figure]


def evaluate(config: Config, workdir: str | os.PathLike) -> Figures:
    """Draw ``config.evaluate.n`` samples and print what they and the likelihood measure.

    Leaves the samples, evaluation.json and, of a likelihood, its table of terms.

    Returns:
        name -> Figure, value with spread and number of samples.

    Raises:
        ValueError: if the folder holds no run of this model, or nothing to evaluate is chosen.
    """
    cache_compilations()
    section = config.evaluate
    run = open_run(config, workdir)
    figures: Figures = {}
    if section.quality or section.class_accuracy:
        figures |= of_samples(run, Path(workdir))
    if section.likelihood:
        figures |= of_likelihood(run, Path(workdir))
    if not figures:
        raise ValueError(
            "config.evaluate chooses nothing; set quality=True, class_accuracy=True, or "
            "likelihood='variational_bound()'"
        )
    lines = {name: figure._asdict() for name, figure in figures.items()}
    with whole(Path(workdir) / "evaluation.json") as temporary:
        temporary.write_text(json.dumps({"step": run.step, "figures": lines}, indent=2) + "\n")
    print(f"Step {run.step} of {workdir}:\n{table(figures)}")
    return figures


def of_samples(run: Run, workdir: Path) -> Figures:
    """Quality and class accuracy of fresh samples."""
    config, section = run.config, run.config.evaluate
    build_evaluation.check_images(config)
    if section.class_accuracy and not config.data.num_classes:
        raise ValueError(
            "config.evaluate.class_accuracy=True needs a class-conditional model; "
            "this one has config.data.num_classes = 0"
        )
    draw = drawer(config, run.experiment)
    samples = draw_many(config, draw, run.params, section.n)
    save_samples(workdir / "samples" / f"evaluate_{run.step:07d}", samples)
    figures: Figures = {}
    if section.quality:
        net = build_evaluation.feature_net(config)
        real, _ = images_of(config, config.data.split, section.n)
        label = config.data.name.replace("/", "-").replace(":", "-")
        known = cached(net, real, _cache(config), label)
        figures |= quality(net, known, extract(net, samples.images), config.seed)
    if section.class_accuracy:
        judge = judge_of(config)
        figures["class accuracy"] = accuracy(
            judge.logits, judge.params, samples.images, samples.labels
        )
        figures["judge's own accuracy, held out"] = judge.held_out
    return figures


def of_likelihood(run: Run, workdir: Path) -> Figures:
    """The bound of held-out images, with its table of terms in likelihood.json."""
    config = run.config
    build_evaluation.check_images(config)
    bound = jax.jit(build_evaluation.likelihood(config, run.experiment))
    images, labels = images_of(config, config.data.test_split, config.evaluate.likelihood_n)
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    size = min(config.evaluate.likelihood_batch_size, len(images))
    count = len(images) // size
    keys = jax.random.split(jax.random.key(config.seed), count)
    parts: list[Bound] = []
    for i in tqdm(range(count), desc="likelihood", unit="batch", leave=False):
        rows = slice(i * size, (i + 1) * size)
        here = (jnp.asarray(labels[rows]), to_unit(images[rows]))
        parts.append(jax.device_get(bound(keys[i], run.params, *here)))
    join = lambda *leaves: np.concatenate(leaves, -1)  # the batch is the last axis of each term
    every = jax.tree.map(join, *parts)
    save_terms(workdir / "likelihood.json", every)
    mean = lambda x: Figure(float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))), len(x))
    return {
        "bits/dim (variational bound)": mean(every.total),
        "  of which prior": mean(every.prior),
        "  of which steps": mean(every.steps.sum(0)),
        "  of which decoder": mean(every.decoder),
    }


def save_terms(path: Path, bound: Bound) -> None:
    """The table of terms: mean and standard error of each, bits/dim."""
    mean = lambda x: {"mean": float(x.mean()), "error": float(x.std(ddof=1) / np.sqrt(len(x)))}
    ends = {"total": mean(bound.total), "prior": mean(bound.prior), "decoder": mean(bound.decoder)}
    terms = {**ends, "steps": [mean(step) for step in bound.steps]}
    with whole(path) as temporary:
        temporary.write_text(json.dumps(terms, indent=1) + "\n")


def judge_of(config: Config) -> Judge:
    """The judge of a data set, trained once and kept beside the data."""
    load = lambda split: images_of(config, split, None)
    return build_evaluation.judge(config, load, _cache(config))


def images_of(
    config: Config, split: str, limit: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images of the config's data set at its size, with their labels."""
    data = config.data
    size = tuple(data.image_size)
    return load_images(data.name, split, limit, size, data.channels, data.dir or None)


def _cache(config: Config) -> Path:
    return data_root(config.data.dir or None) / "diffusion_jax_cache"
