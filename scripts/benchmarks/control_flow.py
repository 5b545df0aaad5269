"""What a branch and a loop cost the gradient of a convolution on this device: a markdown table.

    python scripts/benchmarks/control_flow.py [--rounds 5]

The gradient of a kernel, 3x3 of 64 channels on [64, 14, 14, 64], as it stands in a program's
outermost part, in ``jax.lax``'s branch and loop, and in those of ``core/control_flow.py``; the
least of several.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
from absl import app, flags

from diffusion_jax.core import control_flow

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 5, "Runs of each; the least counts.", lower_bound=1)
NUMBERS = ("NHWC", "HWIO", "NHWC")
LOOPS = 2


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    x, kernel = jnp.ones((64, 14, 14, 64)), jnp.full((3, 3, 64, 64), 0.01)

    def error(kernel, x):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)
        return jnp.sum(jnp.tanh(y))

    slope = jax.grad(error)
    rest = jnp.zeros_like(kernel)
    walk = lambda kernel, scale: (kernel - scale * slope(kernel, scale * x), None)
    forms = {
        "outermost": lambda on, k: slope(k, x),
        "jax.lax.cond": lambda on, k: jax.lax.cond(on, lambda: slope(k, x), lambda: rest),
        "control_flow.when": lambda on, k: control_flow.when(on, lambda: slope(k, x)),
        "jax.lax.scan": lambda on, k: jax.lax.scan(walk, k, jnp.ones(LOOPS))[0],
        "control_flow.scan": lambda on, k: control_flow.scan(walk, k, jnp.ones(LOOPS))[0],
    }
    print("| form | ms | times the outermost |\n|---|---|---|")
    first = None
    for name, form in forms.items():
        seconds = _least(jax.jit(form), jnp.bool_(True), kernel) / (LOOPS if "scan" in name else 1)
        first = first or seconds
        print(f"| {name} | {1e3 * seconds:.1f} | {seconds / first:.1f} |", flush=True)


def _least(run, *args) -> float:
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(FLAGS.rounds):
        began = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    app.run(main)
