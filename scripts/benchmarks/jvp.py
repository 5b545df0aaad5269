"""What forward mode costs: a JVP of a network along (x, time) over a call of it.

    python scripts/benchmarks/jvp.py [--quick] [--rounds 12]

A JVP computes the call and its derivative, so it should cost two of them: sCM and MeanFlow take
one each step.  Calls and JVPs take turns within one run and the least time of each counts, so that
other work on the machine falls on both; processor time, over all threads, feels that work least.
Prints a markdown table; the last column is to stay below 2.5.
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

from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.transformers.dit import DiT
from diffusion_jax.models.unet.unet import UNet

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 12, "Rounds; each side runs once a round, and the least counts.")
flags.DEFINE_integer("batch", 16, "Examples of a call.")
flags.DEFINE_bool("quick", False, "Two rounds of two examples: does it run, not how fast.")

# The U-Net of configs/base.py and a small DiT, and what may be chosen of them.
SIDE, CLASSES = 28, 10
UNET = UNet(
    channels=32, channel_mults=(1, 2), num_res_blocks=1, attention_levels=(), head_dim=32, patch=2,
    num_classes=CLASSES, out_channels=1,
)  # fmt: skip
DIT = DiT(width=128, depth=4, heads=4, patch=2, num_classes=CLASSES, out_channels=1)
NETWORKS: dict[str, Any] = {
    "U-Net": UNET,
    "U-Net, attention at full size": UNET.clone(attention_levels=(0, 1)),
    "U-Net, bfloat16": UNET.clone(dtype="bfloat16"),
    "DiT": DIT,
    "DiT, chunked attention": DIT.clone(attention="chunked"),
    "DiT, rematerialised": DIT.clone(remat="full"),
}


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    rounds, batch = (2, 2) if FLAGS.quick else (FLAGS.rounds, FLAGS.batch)
    if min(rounds, batch) < 1:
        raise app.UsageError(f"--rounds={rounds} and --batch={batch} must be at least 1.")
    print(f"Batch {batch}, {SIDE}x{SIDE}x1, {jax.devices()[0].device_kind}, least of {rounds}.\n")
    print("| network | call, ms | JVP, ms | by the clock | of the processor |")
    print("|---|---|---|---|---|")
    for name, module in NETWORKS.items():
        (call, of_call), (jvp, of_jvp) = _seconds(_jobs(module, batch), rounds)
        cells = f"{1e3 * call:.1f} | {1e3 * jvp:.1f} | {jvp / call:.2f} | {of_jvp / of_call:.2f}"
        print(f"| {name} | {cells} |", flush=True)


def _jobs(module: Any, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A call, and a JVP along (x, time)."""
    draw = lambda seed: jax.random.normal(jax.random.key(seed), (batch, SIDE, SIDE, 1))
    x, dx, time_ = draw(0), draw(1), jnp.linspace(1.0, 999.0, batch)
    cond = {"label": jnp.zeros(batch, jnp.int32)}
    shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0), x.shape, cond))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), shapes)
    params = jax.device_put(params)
    net = net_from_module(module)
    call = jax.jit(lambda params, x, t: net(params, x, t, cond))
    along = (dx, jnp.ones_like(time_))
    jvp = jax.jit(lambda params, x, t: jax.jvp(lambda x, t: net(params, x, t, cond), (x, t), along))
    return (
        lambda: jax.block_until_ready(call(params, x, time_)),
        lambda: jax.block_until_ready(jvp(params, x, time_)),
    )


def _seconds(jobs: tuple[Callable[[], Any], ...], rounds: int) -> list[tuple[float, float]]:
    """Least seconds of each: by the clock, and of the processor."""
    times: list[list[tuple[float, float]]] = [[] for _ in jobs]
    for job in jobs:
        job()
    for _ in range(rounds):
        for job, own in zip(jobs, times, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            own.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [(min(w for w, _ in own), min(c for _, c in own)) for own in times]


if __name__ == "__main__":
    app.run(main)
