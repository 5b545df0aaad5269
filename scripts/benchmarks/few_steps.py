"""What few-step methods cost to train, and what their students save: two markdown tables.

    python scripts/benchmarks/few_steps.py [--teacher runs/mnist] [--batch 8] [--methods cd,scd]

One network, one batch: the step of each ``configs/distill/*.py`` as a multiple of the step of plain
diffusion, which is timed again beside each, in turns, the least of several; and its FLOPs as a
multiple, counted in what JAX traced, which no other work on the machine can blur.  Of several
players it is a step in which all of them move.  Then images a second of one call of a student
against its teacher's 50, with and without guidance, and against a VAE's decoder and a GAN's
generator of as many parameters (one_call_models.py).

Without a teacher the digits' network of configs/mnist.py with fresh parameters is taken: times do
not depend on what was learned.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from configs import mnist
from diffusion_jax.apps.draw import make_sampler
from diffusion_jax.apps.plan import Inputs, Sampler
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import training
from diffusion_jax.build.few_step import distillation
from diffusion_jax.core import grids
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.jobs.placing import cache_compilations
from diffusion_jax.profiling.flops import count
from diffusion_jax.spec import Config, plain
from diffusion_jax.train import workdir
from diffusion_jax.train.state import init_state
from diffusion_jax.train.step import make_step
from scripts.few_steps.one_call_models import OneCall, decoder, generator

METHODS = (
    "progressive", "guidance", "cd", "ct", "ict", "ect", "lcm", "scd", "sct", "mean_flow",
    "improved_mean_flow", "shortcut", "imm", "ctm", "reflow", "dmd", "dmd2", "sid", "add", "ladd",
)  # fmt: skip
STEPS = 50  # of the teacher's sampler

FLAGS = flags.FLAGS
flags.DEFINE_string("teacher", "", "Folder of a run; '' takes fresh parameters.")
flags.DEFINE_integer("batch", 8, "Examples of a step, images of a call.")
flags.DEFINE_integer("rounds", 4, "Rounds of each timing; the least counts.")
flags.DEFINE_list("methods", list(METHODS), "Names of configs/distill/*.py.")


class Job(NamedTuple):
    """Something to time, and its FLOPs."""

    run: Callable[[], Any]
    flops: float


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    if unknown := sorted(set(FLAGS.methods) - set(METHODS)):
        raise app.UsageError(f"--methods={','.join(unknown)} is unknown: known are {METHODS}.")
    if min(FLAGS.batch, FLAGS.rounds) < 1:
        raise app.UsageError(f"--batch={FLAGS.batch} and --rounds={FLAGS.rounds} must be above 0.")
    cache_compilations()
    with _teacher() as folder:
        config = workdir.read_config(folder)
        if "label" not in _batch(config) and config["data"]["num_classes"]:
            raise app.UsageError(f"--teacher={FLAGS.teacher} reads captions: name one of classes.")
        base = _step(_plain(folder), {})
        print(f"Batch {FLAGS.batch}, {jax.devices()[0].device_kind}, least of {FLAGS.rounds}.\n")
        print("| method | step, ms | plain step, ms | times the plain step | FLOPs, times |")
        print("|---|---|---|---|---|")
        for name in FLAGS.methods:
            own = _student(name, folder)
            job = _step(own, _frozen(own, folder))
            one, other = _seconds([job, base])
            cells = (name, f"{1e3 * one:.0f}", f"{1e3 * other:.0f}", f"{one / other:.2f}")
            print(f"| {' | '.join(cells)} | {job.flops / base.flops:.2f} |", flush=True)
        _print_speeds(_samplers(folder))


@contextmanager
def _teacher() -> Iterator[str]:
    """The run's folder; of fresh parameters one with a config alone."""
    if FLAGS.teacher:
        yield FLAGS.teacher
        return
    with tempfile.TemporaryDirectory() as folder:
        workdir.claim(folder, plain(mnist.get_config()))
        yield folder


def _plain(folder: str) -> tuple[Config, Any]:
    """(config, experiment) of the teacher's own training, at our batch."""
    config = distillation.with_teacher(_named("cd", folder)).unlock()
    del config["distill"], config["teacher"]
    return config, experiments.experiment(config)


def _student(name: str, folder: str) -> tuple[Config, Any]:
    config = distillation.with_teacher(_named(name, folder))
    return config, distillation.experiment(config)


def _named(name: str, folder: str) -> Config:
    config = importlib.import_module(f"configs.distill.{name}").get_config()
    config.teacher, config.train.batch_size = folder, FLAGS.batch
    return config


def _frozen(own: tuple[Config, Any], folder: str) -> Any:
    """What the loss reads: the run's parameters, or fresh ones."""
    config, experiment = own
    if FLAGS.teacher:
        return {**experiment.frozen(), **experiment.training_only()}
    _, teacher = _plain(folder)
    fresh = teacher.recipe.init(jax.random.key(0), _batch(config))
    return {**distillation.read_method(config).frozen(), "teacher": fresh}


def _batch(config: Any) -> dict[str, jax.Array]:
    """Noise of the data's shape, with labels where there are classes."""
    draw, data = np.random.default_rng(0), config["data"]
    shape = (FLAGS.batch, *data["image_size"], data["channels"])
    batch = {"image": jnp.asarray(draw.normal(size=shape), jnp.float32)}
    if data["num_classes"]:
        batch["label"] = jnp.asarray(draw.integers(0, data["num_classes"], FLAGS.batch), jnp.int32)
    return batch


def _step(own: tuple[Config, Any], frozen: Any) -> Job:
    """The training step as the loop calls it, its state given back to it."""
    config, experiment = own
    settings, batch = training.training(config), _batch(config)
    parts = (experiment.recipe, settings["tx"], settings["ema"])
    cell = [init_state(*parts, jax.random.key(0), batch)]
    traced = jax.jit(make_step(*parts, seed=0), donate_argnums=0).trace(cell[0], frozen, batch)
    compiled = traced.lower().compile()

    def run():
        cell[0], metrics = compiled(cell[0], frozen, batch)
        jax.block_until_ready(metrics)

    return Job(run, count(traced.jaxpr).total)


def _samplers(folder: str) -> dict[str, Job]:
    """One call, and the teacher's 50 steps without and with guidance."""
    config, experiment = _plain(folder)
    model, batch = experiment.model, _batch(config)
    params = experiment.recipe.init(jax.random.key(0), batch)
    weights, key = experiment.weights(experiment.frozen(), params), jax.random.key(0)
    noise = jax.random.normal(key, (FLAGS.batch, *experiment.shape))

    def job(solver: Any, n: int, scale: float | None) -> Job:
        how = Sampler(solver, grids.trailing(model.process, n), guided=scale is not None)
        draw = jax.jit(make_sampler(experiment.generator, lambda model, weights: how))
        inputs = Inputs(batch, None, noise, jnp.float32(scale or 1.0))
        traced = draw.trace(weights, key, inputs)
        compiled = traced.lower().compile()
        run = lambda: jax.block_until_ready(compiled(weights, key, inputs))
        return Job(run, count(traced.jaxpr).total)

    size = sum(leaf.size for leaf in jax.tree.leaves(params["net"]))
    return {
        "student, 1 call": job(SOLVERS["jump"](process=model.process, gamma=1.0), 1, None),
        f"teacher, {STEPS} steps": job(SOLVERS["ddim"](), STEPS, None),
        f"teacher, {STEPS} steps, guided": job(SOLVERS["ddim"](), STEPS, 2.0),
        "decoder of a VAE": _one_call(decoder(experiment.shape, size)),
        "generator of a GAN": _one_call(generator(experiment.shape, size)),
    }


def _one_call(model: OneCall) -> Job:
    draw = jax.jit(lambda params, key: model.draw(params, key, FLAGS.batch))
    traced = draw.trace(model.params, jax.random.key(0))
    compiled = traced.lower().compile()
    run = lambda: jax.block_until_ready(compiled(model.params, jax.random.key(0)))
    return Job(run, count(traced.jaxpr).total)


def _print_speeds(jobs: dict[str, Job]) -> None:
    seconds = dict(zip(jobs, _seconds(list(jobs.values())), strict=True))
    first, base = next(iter(seconds.values())), next(iter(jobs.values()))
    print("\n| sampler | images/s | time, times one call | FLOPs, times |")
    print("|---|---|---|---|")
    for name, job in jobs.items():
        cells = f"{FLAGS.batch / seconds[name]:.0f} | {seconds[name] / first:.1f}"
        print(f"| {name} | {cells} | {job.flops / base.flops:.1f} |")
    print(f"\nOne call of the student is {base.flops:.2e} FLOPs.")


def _seconds(jobs: list[Job]) -> list[float]:
    """Least seconds of each, run in turns."""
    times: list[list[float]] = [[] for _ in jobs]
    for job in jobs:
        job.run()
    for _ in range(FLAGS.rounds):
        for job, own in zip(jobs, times, strict=True):
            start = time.perf_counter()
            job.run()
            own.append(time.perf_counter() - start)
    return [min(own) for own in times]


if __name__ == "__main__":
    app.run(main)
