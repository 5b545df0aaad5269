"""What each way to save memory saves, on the compiled training step of a config.

    python scripts/benchmarks/compare_memory.py --config=configs/mnist.py --devices=4 --mesh=fsdp=4

Compiles the step for virtual CPU devices with every remat x accumulate x split x offload, or only
those given, and prints the bytes of a device as a table: arguments (state and batch), those of them
that lie on the host, and temporaries by the compiler's plan.  A CPU's plan is not a TPU's, but what
must be held is the same; ``scripts/compile_for_tpu.py`` asks the TPU's compiler.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
from jax.sharding import Mesh

from diffusion_jax import ending
from diffusion_jax.profiling.compiled import memory
from diffusion_jax.profiling.report import table
from diffusion_jax.spec import Config
from diffusion_jax.train.offload import HOST
from diffusion_jax.train.state import QUICK
from scripts.compile_for_tpu import job, load_config, mesh_of

# Option -> values compared by default.
CHOICES: dict[str, tuple[str, ...]] = {
    "remat": ("none", "dots", "full"),
    "accumulate": ("1", "4"),
    "split": ("all", "optimizer"),
    "offload": ("none", "ema"),
}


def changed(config: Config, remat: str, accumulate: str, split: str, offload: str) -> Config:
    """A copy of the config with these choices."""
    made = config.copy_and_resolve_references()
    made.model[made.model.name].remat = remat
    made.train.accumulate = int(accumulate)
    made.mesh.update(split=split, offload=offload)
    return made


def row(config: Config, mesh: Mesh) -> dict[str, str]:
    """MB of a device, for one choice of each."""
    made = job(config, "train", mesh)
    compiled = made.jitted.lower(*made.arguments).compile(compiler_options=QUICK)
    plan, host = memory(compiled), on_host(made.arguments)
    return {
        "arguments MB": f"{(plan.arguments - host) / 1e6:.1f}",
        "on the host MB": f"{host / 1e6:.1f}",
        "temporaries MB": f"{plan.temporaries / 1e6:.1f}",
    }


def on_host(arguments: Any) -> int:
    """Bytes of a device's arguments in the host's memory."""
    leaves = [a for a in jax.tree.leaves(arguments) if a.sharding.memory_kind == HOST]
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and the config's."""
    describe = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=describe, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/mnist.py", help="the experiment")
    parser.add_argument("--devices", type=int, default=4, help="virtual CPU devices")
    parser.add_argument("--mesh", default="fsdp=4", help="as data=2,fsdp=2")
    for name, values in CHOICES.items():
        parser.add_argument(f"--{name}", default=",".join(values), help="to compare")
    return parser.parse_known_args()


def main() -> None:
    """Compile each, and print the table; a mistake is one sentence and exit code 2."""
    given, overrides = parse()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", given.devices)
    with ending.sentences():
        config = load_config(given.config, overrides)
        mesh, rows = mesh_of(config, given.mesh, jax.devices()), []
        for chosen in itertools.product(*(getattr(given, n).split(",") for n in CHOICES)):
            said = dict(zip(CHOICES, chosen, strict=True))
            rows.append({**said, **row(changed(config, *chosen), mesh)})
            print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
