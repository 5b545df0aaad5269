"""Time this code against PyTorch eager, and the sampler against bare network evaluations.

    python scripts/benchmarks/unet.py [--quick] [--out FILE.md | FILE.json]

Both networks have one structure and the same weights (diffusers' ``UNet2DModel``, converted).  The
two sides take turns within one run, and each time is the least of several, so that other work on
the machine falls on both alike.  Needs ``requirements-parity.txt``; without it only our side runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from diffusion_jax.apps.plan import guided
from diffusion_jax.convert.diffusers_unet import from_diffusers_unet, unet_config
from diffusion_jax.core import grids, network_io, process, proposals, schedules, targets, weighting
from diffusion_jax.core.ema import EMAS
from diffusion_jax.core.sampling import prior, sample
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.types import Model
from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.autoencoders.codec import IDENTITY
from diffusion_jax.models.unet.unet import UNet
from diffusion_jax.recipes.diffusion import diffusion, regression
from diffusion_jax.train import optimizer
from diffusion_jax.train.state import init_state
from diffusion_jax.train.step import make_step
from scripts.benchmarks import torch_unet

FLAGS = flags.FLAGS
flags.DEFINE_bool("quick", False, "A small network and few repeats: does it run, not how fast.")
flags.DEFINE_string("out", None, "Also write the table here: .md, or .json with every number.")
flags.DEFINE_integer("repeats", 8, "Rounds; each side runs once a round, and the least counts.")
flags.DEFINE_integer("threads", 2, "CPU threads of each side.")

STEPS = 5  # of the sampler: the ratio to bare calls does not depend on it
CLASSES = 10


class Size(NamedTuple):
    """What is timed: batch, image side, base width, blocks a level, side of the peak's matrices."""

    batch: int
    side: int
    channels: int
    blocks: int
    matrix: int


class Times(NamedTuple):
    """Least seconds of a job: by the clock, and of the processor over all threads."""

    wall: float
    cpu: float


Jobs = dict[str, Callable[[], Any]]

SIZES = {False: Size(32, 32, 64, 2, 2048), True: Size(2, 16, 32, 1, 512)}


def main(argv: list[str]) -> None:
    """Measure, print, and write."""
    del argv
    if FLAGS.repeats < 1:
        raise app.UsageError(f"--repeats={FLAGS.repeats} must be at least 1.")
    if hasattr(os, "sched_setaffinity"):  # before the first computation, which sizes XLA's pool
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: FLAGS.threads])
    size = SIZES[FLAGS.quick]
    their_unet = torch_unet.torch_unet(_config(size), FLAGS.threads)
    if their_unet is None:
        print("PyTorch is not timed: torch or diffusers is absent; they are in requirements-parity")
    data = np.random.default_rng(0)
    image = data.uniform(-1, 1, (size.batch, size.side, size.side, 3)).astype(np.float32)
    label = data.integers(0, CLASSES, size.batch).astype(np.int32)
    unet, params = _our_unet(size, their_unet)
    model = _model(unet)
    jobs: Jobs = {"matmul": _matmul(size.matrix)}
    jobs |= {f"ours {name}": job for name, job in _ours(model, params, image, label).items()}
    flops = None
    if their_unet is not None:
        theirs = torch_unet.jobs(their_unet, image, label, model.process, STEPS)
        flops = torch_unet.flops(theirs)
        jobs |= {f"torch {name}": job for name, job in theirs.items()}
    firsts, times = _interleaved(jobs, 2 if FLAGS.quick else FLAGS.repeats)
    compiled = _programs_compiled(model, params, image.shape, label)
    report = _report(size, times, firsts, flops, compiled)
    table = _table(report)
    print(table)
    if FLAGS.out:
        text = json.dumps(report, indent=2) if FLAGS.out.endswith(".json") else table
        Path(FLAGS.out).write_text(text + "\n")


def _config(size: Size) -> dict[str, Any]:
    c = size.channels
    return {
        "sample_size": size.side,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": size.blocks,
        "block_out_channels": (c, 2 * c, 2 * c),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": c,
        "norm_num_groups": 32,
        "num_class_embeds": CLASSES + 1,
    }


def _our_unet(size: Size, torch_unet: Any) -> tuple[UNet, Any]:
    if torch_unet is None:
        unet = UNet(**unet_config(_config(size)))
        label = {"label": jnp.zeros(1, jnp.int32)}
        return unet, init_params(unet, jax.random.key(0), (1, size.side, size.side, 3), label)
    state = {name: tensor.numpy() for name, tensor in torch_unet.state_dict().items()}
    unet, params = from_diffusers_unet(state, dict(torch_unet.config))
    return unet, jax.tree.map(jnp.asarray, params)


def _model(unet: UNet) -> Model:
    return Model(
        net=net_from_module(unet),
        process=process.Process(schedules.linear(), process.PATHS["vp"]),
        target=targets.eps(),
        scale_in=network_io.unit(),
        time_in=network_io.discrete(1000),
        codec=IDENTITY,
        condition=lambda frozen, batch: {"label": batch["label"]},
        null=lambda frozen, cond: jax.tree.map(lambda c: jnp.full_like(c, CLASSES), cond),
    )


def _matmul(n: int) -> Callable[[], Any]:
    a = jnp.ones((n, n), jnp.float32)
    product = jax.jit(jnp.matmul)
    return lambda: product(a, a).block_until_ready()


def _ours(model: Model, params: Any, image: np.ndarray, label: np.ndarray) -> Jobs:
    """A training step, a bare network call, and STEPS steps of the scan sampler."""
    recipe = diffusion(
        model._replace(net=lambda p, *args, **kwargs: model.net(p["net"], *args, **kwargs)),
        lambda key, x, cond: params,
        proposals.uniform(),
        [regression(weighting.simple())],
    )
    tx, ema = optimizer.adamw(lambda step: jnp.float32(1e-4)), EMAS["constant"](0.9999)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label)}
    cell = [init_state(recipe, tx, ema, jax.random.key(0), batch)]
    step = jax.jit(make_step(recipe, tx, ema, seed=0), donate_argnums=0)
    time_, cond = jnp.full(len(label), 500.0), {"label": batch["label"]}
    net = jax.jit(model.net)
    levels, solver = grids.trailing(model.process, STEPS), ddim()

    @jax.jit
    def walk(params, x, cond):
        denoise = lambda x, level: targets.denoiser(model, params)(x, level, cond)
        return sample(jax.random.key(0), solver, denoise, x, levels)

    def train():
        cell[0], metrics = step(cell[0], {}, batch)
        return float(metrics["loss"])

    return {
        "train": train,
        "network": lambda: net(params, batch["image"], time_, cond).block_until_ready(),
        "sampler": lambda: walk(params, batch["image"], cond).block_until_ready(),
    }


def _interleaved(jobs: Jobs, rounds: int) -> tuple[dict[str, float], dict[str, Times]]:
    """(seconds of each first call, least times after)."""
    firsts, runs = {}, {name: [] for name in jobs}
    for name, job in jobs.items():
        start = time.perf_counter()
        job()
        firsts[name] = time.perf_counter() - start
    for _ in range(rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            runs[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return firsts, {
        name: Times(*(min(z) for z in zip(*r, strict=True))) for name, r in runs.items()
    }


def _programs_compiled(model: Model, params: Any, shape: tuple[int, ...], label: np.ndarray) -> int:
    """Programs that guided sampling compiles for new seeds, scales and etas; 1 is none anew."""
    levels = grids.trailing(model.process, 2)
    cond = {"label": jnp.asarray(label[:1])}

    traced = []

    @jax.jit
    def draw(seed, scale, eta):
        traced.append(seed)  # runs once for each program
        of_x, of_solver = jax.random.split(jax.random.key(seed))
        x = prior(of_x, (1, *shape[1:]), levels)
        return sample(of_solver, ddim(eta), guided(model, params, {}, cond, scale), x, levels)

    for seed, scale, eta in ((0, 1.5, 0.0), (1, 1.5, 0.0), (1, 4.0, 0.0), (1, 4.0, 0.7)):
        draw(seed, scale, eta).block_until_ready()
    return len(traced)


def _report(
    size: Size,
    times: dict[str, Times],
    firsts: dict[str, float],
    flops: dict[str, float] | None,
    compiled: int,
) -> dict[str, Any]:
    """Every number, plain data."""
    peak = 2 * size.matrix**3 / times["matmul"].wall
    report: dict[str, Any] = {
        "size": size._asdict(),
        "threads": FLAGS.threads,
        "peak_gflops": peak / 1e9,
        "seconds": {name: t._asdict() for name, t in times.items()},
        "first_call_seconds": firsts,
        "sampler_over_bare_calls": times["ours sampler"].wall
        / (STEPS * times["ours network"].wall),
        "recompiles": compiled - 1,
    }
    if flops is not None:
        names = ("train", "network", "sampler")
        report["ours_over_torch"] = {
            name: times[f"ours {name}"].wall / times[f"torch {name}"].wall for name in names
        }
        report["share_of_peak"] = {
            f"{side} {name}": flops[name] / times[f"{side} {name}"].wall / peak
            for side in ("ours", "torch")
            for name in names
        }
    return report


def _table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    size, ratios = report["size"], report.get("ours_over_torch", {})
    shares = report.get("share_of_peak", {})
    lines = [
        f"Batch {size['batch']}, {size['side']}x{size['side']}x3, width {size['channels']}, "
        f"float32, {report['threads']} threads; matmul peak {report['peak_gflops']:.0f} GFLOP/s.",
        "",
        "| | ours s | PyTorch s | ratio | share of peak, ours / PyTorch | first call s |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("train", "network", "sampler"):
        seconds = [report["seconds"].get(f"{side} {name}") for side in ("ours", "torch")]
        cells = [f"{z['wall']:.3f}" if z else "-" for z in seconds]
        ratio = f"{ratios[name]:.2f}" if ratios else "-"
        pair = [f"{shares[f'{side} {name}']:.2f}" for side in ("ours", "torch")] if shares else "-"
        first = report["first_call_seconds"][f"ours {name}"]
        lines.append(
            f"| {LABELS[name]} | {cells[0]} | {cells[1]} | {ratio} | {' / '.join(pair)} "
            f"| {first:.1f} |"
        )
    over = report["sampler_over_bare_calls"]
    return "\n".join(
        [
            *lines,
            "",
            f"Sampler over as many bare network evaluations: {over:.3f}.",
            f"Recompiles on a new seed, guidance scale and eta: {report['recompiles']}.",
        ]
    )


LABELS = {
    "train": "training step",
    "network": "network evaluation",
    "sampler": f"sampler, {STEPS} steps",
}


if __name__ == "__main__":
    app.run(main)
