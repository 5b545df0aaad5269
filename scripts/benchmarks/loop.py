"""What the training loop costs beyond its compiled step, on the digits' U-Net.

    python scripts/benchmarks/loop.py --steps=60

The same steps on the same batches: called in a bare loop, and by ``train.loop.train`` with its
data feed, metrics, logs and a checkpoint at the end (whose time is left out).  In turns; the median
step of each and the fastest fifth's, and their ratio.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from absl import app, flags

from configs import mnist
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import training
from diffusion_jax.jobs.placing import cache_compilations
from diffusion_jax.spec import plain
from diffusion_jax.train import sharding
from diffusion_jax.train.loop import train
from diffusion_jax.train.program import Program
from diffusion_jax.train.state import init_state
from diffusion_jax.train.step import make_step

FLAGS = flags.FLAGS


def batches(start: int):
    """The same batch of noise for ever."""
    del start
    draw = np.random.default_rng(0)
    image = draw.normal(size=(64, 28, 28, 1)).astype(np.float32)
    label = draw.integers(0, 10, 64).astype(np.int32)
    while True:
        yield {"image": image, "label": label}


def bare(settings, recipe, steps: int) -> list[float]:
    """Seconds of each call of the compiled step, waited for."""
    mesh, seed = settings["mesh"], settings["seed"]
    parts = (recipe, settings["tx"], settings["ema"])
    batch = sharding.global_batch(next(batches(0)), sharding.of_batch(mesh))
    places = sharding.of_state(init_state(*parts, jax.random.key(0), batch), mesh)
    state = init_state(*parts, jax.random.key(0), batch, places)
    call = Program(make_step(*parts, seed), places, mesh)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        state, metrics = call(state, {}, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    return seconds[3:]


def looped(settings, recipe, config, steps: int) -> list[float]:
    """Seconds from step to step inside the loop: between two batches that it takes.

    A hook would make it wait for the device, which it does not do between checkpoints.
    """
    times: list[float] = []

    def timed(start: int):
        for batch in batches(start):
            times.append(time.perf_counter())
            yield batch

    with tempfile.TemporaryDirectory() as folder:
        plan = settings["plan"]._replace(steps=steps, checkpoint_every=0, log_every=20)
        train(
            recipe, data=timed, folder=folder, config=plain(config),
            **(settings | {"plan": plan}),
        )  # fmt: skip
    return list(np.diff(times)[4:-1])


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    cache_compilations()
    config = mnist.get_config()
    recipe, settings = experiments.experiment(config).recipe, training.training(config)
    alone, inside = [], []
    for _ in range(FLAGS.rounds):
        alone += bare(settings, recipe, FLAGS.steps)
        inside += looped(settings, recipe, config, FLAGS.steps)
    # On a machine with other work the fastest fifth tells more than the median.
    for name, share in (("median", 50), ("fastest fifth", 20)):
        a, b = np.percentile(alone, share), np.percentile(inside, share)
        print(f"{name}: bare step {a:.4f} s, in the loop {b:.4f} s, ratio {b / a:.3f}")
    print(f"{len(alone)} steps of each")


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 40, "Steps of a round.", lower_bound=8)
    flags.DEFINE_integer("rounds", 3, "Rounds of each.", lower_bound=1)
    app.run(main)
