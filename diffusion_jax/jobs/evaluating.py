"""Evaluation of a run: quality and class accuracy of its samples, likelihood of held-out data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from diffusion_jax.build import evaluation, first_stage
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build.runs import Run, open_run
from diffusion_jax.core import seeds
from diffusion_jax.core.types import Params
from diffusion_jax.data import load_images, to_unit
from diffusion_jax.evaluate.features import cached, extract
from diffusion_jax.evaluate.figures import Figure, mean_of, table
from diffusion_jax.evaluate.judge import Judge, accuracy
from diffusion_jax.evaluate.likelihoods import Terms
from diffusion_jax.evaluate.quality import quality
from diffusion_jax.files import whole
from diffusion_jax.jobs import autoencoding, captioning
from diffusion_jax.jobs.image_files import save_samples
from diffusion_jax.jobs.placing import cache_compilations, jitted, place_batch, place_params
from diffusion_jax.jobs.run_samples import draw_samples, sampler_of_run
from diffusion_jax.jobs.sets import cache_folder, images_of
from diffusion_jax.spec import Config

Figures = dict[str, Figure]


def evaluate(config: Config, workdir: str | os.PathLike) -> Figures:
    """Draw ``config.evaluate.n`` samples and print what they and the likelihood measure.

    Leaves the samples, evaluation.json and, of a likelihood, its table of terms.  Of a first stage,
    as many held-out images are reconstructed instead.

    With several processes all measure the same, the network's work shared; the first one writes.

    Returns:
        name -> Figure, value with spread and number of samples.

    Raises:
        ValueError: if the folder holds no run of this model, or nothing to evaluate is chosen.
    """
    cache_compilations()
    run = open_run(config, workdir)
    figures = FIGURES[type(run.experiment)](run, Path(workdir))
    if jax.process_index():
        return figures
    lines = {name: figure._asdict() for name, figure in figures.items()}
    with whole(Path(workdir) / "evaluation.json") as temporary:
        temporary.write_text(json.dumps({"step": run.step, "figures": lines}, indent=2) + "\n")
    print(f"Step {run.step} of {workdir}:\n{table(figures)}")
    return figures


def of_diffusion(run: Run, workdir: Path) -> Figures:
    """What ``config.evaluate`` chooses to measure of a diffusion model."""
    section = run.config.evaluate
    figures: Figures = {}
    # Its mistakes come before minutes of sampling.
    likelihood = None
    if section.likelihood:
        likelihood = evaluation.likelihood(run.config, run.experiment)
    if section.quality or section.class_accuracy:
        figures |= of_samples(run, workdir)
    if section.captions:
        figures |= captioning.figures(run, workdir)
    if likelihood:
        figures |= of_likelihood(run, workdir, *likelihood)
    if not figures:
        raise ValueError(
            "config.evaluate chooses nothing; set quality=True, class_accuracy=True, "
            "captions=200 or likelihood='variational_bound()'"
        )
    return figures


def of_samples(run: Run, workdir: Path) -> Figures:
    """Quality and class accuracy of fresh samples."""
    config, section = run.config, run.config.evaluate
    evaluation.check_images(config)
    if section.class_accuracy and not config.data.num_classes:
        raise ValueError(
            "config.evaluate.class_accuracy=True needs a class-conditional model; "
            "this one has config.data.num_classes = 0"
        )
    samples = draw_samples(sampler_of_run(run), section.n)
    save_samples(workdir / "samples" / f"evaluate_{run.step:07d}", samples)
    figures: Figures = {}
    if section.quality:
        net = evaluation.feature_net(config)
        real, _ = images_of(config, config.data.split, section.n)
        label = config.data.name.replace("/", "-").replace(":", "-")
        known = cached(net, real, cache_folder(config), label)
        figures |= quality(net, known, extract(net, samples.images), config.seed)
    if section.class_accuracy:
        judge = judge_of(config)
        figures["class accuracy"] = accuracy(
            judge.logits, judge.params, samples.images, samples.labels
        )
        figures["judge's own accuracy, held out"] = judge.held_out
    return figures


def of_likelihood(run: Run, workdir: Path, title: str, estimate: Callable[..., Terms]) -> Figures:
    """The likelihood of held-out data, with the table of its terms in likelihood.json."""
    config = run.config
    x0 = _held_out(config)
    rows = run.experiment.conditioning.held_out(config.data.test_split, len(x0))
    params = place_params(config, run.params)
    every = batched(jitted(config, estimate), config, params, x0, rows)
    save_terms(workdir / "likelihood.json", every)
    of_example = {name: term if term.ndim == 1 else term.sum(0) for name, term in every.items()}
    total = of_example.pop("total")
    figures = {f"bits/dim ({title})": mean_of(total)}
    figures |= {f"  of which {name}": mean_of(term) for name, term in of_example.items()}
    if x0.ndim == 2:
        figures["nats of a point"] = mean_of(total * x0.shape[1] * np.log(2))
    return figures


def batched(
    estimate: Callable[..., Terms], config: Config, params: Params, x0: np.ndarray, conditions: Any
) -> dict[str, np.ndarray]:
    """The terms of all of x0 by batches of one size; the last is filled up, and cut again."""
    size = min(config.evaluate.likelihood_batch_size, len(x0))
    count = -(-len(x0) // size)
    keys = jax.random.split(seeds.key(config.seed), count)
    parts: list[dict[str, np.ndarray]] = []
    silent = jax.process_index() > 0
    bar = tqdm(range(count), desc="likelihood", unit="batch", leave=False, disable=silent)
    for i in bar:
        rows = np.arange(i * size, (i + 1) * size) % len(x0)
        place = lambda part, rows=rows: place_batch(config, part[rows])
        terms = estimate(keys[i], params, jax.tree.map(place, conditions), place(x0))
        parts.append(jax.device_get(terms))
        bar.set_postfix_str(f"{np.mean([part['total'] for part in parts]):.3f} bits/dim")
    join = lambda *leaves: np.concatenate(leaves, -1)[..., : len(x0)]  # the batch is the last axis
    return jax.tree.map(join, *parts)


def save_terms(path: Path, terms: Mapping[str, np.ndarray]) -> None:
    """The table of terms: mean and standard error of each, bits/dim; a list of a term of steps."""
    if jax.process_index():
        return
    row = lambda x: {"mean": mean_of(x).value, "error": mean_of(x).spread}
    table = {name: row(x) if x.ndim == 1 else [row(x) for x in x] for name, x in terms.items()}
    with whole(path) as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n")


def _held_out(config: Config) -> np.ndarray:
    """Data in [-1, 1], or points, float32."""
    section, split = config.evaluate, config.data.test_split
    for name in ("likelihood_n", "likelihood_batch_size"):
        if section[name] < 1:
            raise ValueError(f"config.evaluate.{name} = {section[name]} must be at least 1")
    if len(experiments.data_shape(config)) == 3:
        return to_unit(images_of(config, split, section.likelihood_n)[0])
    return load_images(config.data.name, split, section.likelihood_n)[0]


def judge_of(config: Config) -> Judge:
    """The judge of a data set, trained once and kept beside the data."""
    load = lambda split: images_of(config, split, None)
    return evaluation.judge(config, load, cache_folder(config))


# By what an experiment is.
FIGURES: dict[type, Callable[[Run, Path], Figures]] = {
    experiments.Experiment: of_diffusion,
    first_stage.AutoencoderExperiment: autoencoding.figures,
}
