"""What each solver costs beyond its network evaluations, here and in k-diffusion and diffusers.

    pip install -r requirements-parity.txt && pip install --no-deps k-diffusion==0.1.1.post1
    python scripts/benchmarks/solvers.py --out=docs/benchmark_solvers.md

One U-Net of the size of configs/mnist.py, batch 16, 20 levels.  Ours: the whole jitted sampler over
a bare ``lax.scan`` of as many calls of the same network.  Theirs: the sampler's loop over as many
bare calls of a PyTorch network of the same structure.  Least of interleaved repeats, in one run.

"alone" is the sampler around a function of no cost in place of the network, over the same bare
calls: what a solver adds, without the noise of the network's time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from configs import mnist
from diffusion_jax import spec
from diffusion_jax.build import experiment as experiments
from diffusion_jax.core import grids, sampling
from diffusion_jax.core.guidance import condition
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Denoise, Prediction
from scripts.benchmarks import torch_solvers

FLAGS = flags.FLAGS
BATCH, LEVELS = 16, 20

# Ours -> calls a step, and the same method elsewhere.
ROWS: dict[str, tuple[int, str, str]] = {
    "ddim()": (1, "sample_euler", "DDIMScheduler"),
    "ddpm()": (1, "sample_euler_ancestral", "DDPMScheduler"),
    "heun()": (2, "sample_heun", "HeunDiscreteScheduler"),
    "lms()": (1, "sample_lms", "LMSDiscreteScheduler"),
    "plms()": (1, "", "PNDMScheduler"),
    "dpmpp_2m()": (1, "sample_dpmpp_2m", "DPMSolverMultistepScheduler"),
    "dpmpp_2m_sde()": (1, "sample_dpmpp_2m_sde", ""),
    "dpmpp_3m_sde()": (1, "sample_dpmpp_3m_sde", ""),
    "unipc(order=3)": (1, "", "UniPCMultistepScheduler"),
    "deis()": (1, "", "DEISMultistepScheduler"),
    "sa_solver()": (1, "", "SASolverScheduler"),
    "er_sde()": (1, "", ""),
}


Jobs = dict[str, Callable[[], Any]]


def ours() -> tuple[Jobs, Jobs, Jobs]:
    """(sampler of each row, the same without a network, bare scans of network calls by number)."""
    config = mnist.get_config()
    experiment = experiments.experiment(config)
    model = experiment.model
    batch = {"image": jnp.zeros((BATCH, *experiment.shape)), "label": jnp.zeros(BATCH, jnp.int32)}
    params = experiment.recipe.init(jax.random.key(0), batch)
    x = jax.random.normal(jax.random.key(1), batch["image"].shape)
    levels = grids.uniform_log_snr(model.process, LEVELS)
    cond = {"label": batch["label"]}

    def without_network(x, level):
        x0 = jnp.tanh(x)
        return Prediction(x0, x - x0)

    def sampler(name: str, denoise_of: Callable[..., Denoise]) -> Callable[[], Any]:
        context = {"process": model.process, "steps": LEVELS}
        solver = spec.build(SOLVERS, name, "solver", **context)

        @jax.jit
        def run(params, x, levels):
            return sampling.sample(jax.random.key(0), solver, denoise_of(params), x, levels)

        return lambda: run(params, x, levels).block_until_ready()

    def bare(calls: int) -> Callable[[], Any]:
        @jax.jit
        def run(params, x, levels):
            time = jnp.broadcast_to(model.time_in(levels)[:, None], (LEVELS, BATCH))
            times = jnp.resize(time, (calls, BATCH))
            # What comes out goes in, so that no call can be left out or moved.
            body = lambda x, t: (model.net(params, x, t, cond), None)
            return jax.lax.scan(body, x, times)[0]

        return lambda: run(params, x, levels).block_until_ready()

    counts = {calls_of(name) for name in ROWS}
    with_network = lambda params: condition(denoiser(model, params), cond)
    return (
        {name: sampler(name, with_network) for name in ROWS},
        {name: sampler(name, lambda params: without_network) for name in ROWS},
        {str(n): bare(n) for n in counts},
    )


def calls_of(name: str) -> int:
    """Network calls of a whole sample: the last step is one, PLMS's first is two."""
    return ROWS[name][0] * (LEVELS - 1) + 1 + (name == "plms()")


def least(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Least seconds of each, interleaved, after a first call."""
    for job in jobs.values():
        job()
    best = dict.fromkeys(jobs, np.inf)
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main(_: list[str]) -> None:
    """Measure and print the table."""
    kinds = zip(("ours", "alone", "bare"), ours(), strict=True)
    jobs = {f"{kind} {name}": job for kind, named in kinds for name, job in named.items()}
    jobs |= torch_solvers.jobs(ROWS, BATCH, LEVELS, FLAGS.threads)
    seconds = least(jobs, FLAGS.repeats)
    lines = [
        f"Batch {BATCH}, {LEVELS} levels, the U-Net of configs/mnist.py, {FLAGS.threads} threads; "
        "time of a sample over that of as many bare network evaluations.",
        "",
        "| solver | NFE | ours | alone | k-diffusion | diffusers | ours, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        bare = seconds[f"bare {calls_of(name)}"]
        cells = [f"{seconds[f'{kind} {name}'] / bare:.3f}" for kind in ("ours", "alone")]
        for side in ("k-diffusion", "diffusers"):
            key = f"{side} {name}"
            share = seconds.get(key, np.nan) / (seconds.get("torch call", np.nan) * calls_of(name))
            cells.append(f"{share:.3f}" if np.isfinite(share) else "")
        total = seconds[f"ours {name}"]
        lines.append(f"| {name} | {calls_of(name)} | " + " | ".join(cells) + f" | {total:.3f} |")
    table = "\n".join(lines) + "\n"
    print(table)
    if FLAGS.out:
        Path(FLAGS.out).write_text(table)


if __name__ == "__main__":
    flags.DEFINE_integer("repeats", 5, "Times of each, after a first.", lower_bound=1)
    flags.DEFINE_integer("threads", 2, "Of PyTorch; XLA takes all processors.")
    flags.DEFINE_string("out", "", "File of the table.")
    app.run(main)
