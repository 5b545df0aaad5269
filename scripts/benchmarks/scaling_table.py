"""Work and communication of a device, from one device to eight and from one process to four.

    python scripts/benchmarks/scaling_table.py --config=configs/mnist.py

Compiles the config's training step for virtual CPU devices, the same batch on more of them, copied
(data) and split (fsdp), in one process and in several that meet on this machine.  For P bytes of
gradients and n devices the least that each has to send is, by rings,

    data: 2(n - 1)/n·P (all-reduce)      fsdp: 3(n - 1)/n·P (two gathers, reduce-scatter).

XLA has no reduce-scatter on CPUs and reduces to all in its place, which sends twice as much; the
column "scattered" counts each reduction of fsdp as the scatter that TPUs and GPUs make of it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax

from diffusion_jax.jobs import hosts
from diffusion_jax.profiling.compiled import costs
from diffusion_jax.profiling.flops import count
from diffusion_jax.profiling.report import table
from diffusion_jax.train.state import QUICK
from scripts.compile_for_tpu import job, load_config, mesh_of


class Case(NamedTuple):
    """The devices of all processes together lie along one axis."""

    processes: int
    devices: int
    axis: str


# Times that P·(n - 1)/n has to be sent.
LEAST = {"data": 2, "fsdp": 3}
CASES = (
    *(Case(1, n, "data") for n in (1, 2, 4, 8)),
    *(Case(1, n, "fsdp") for n in (2, 4, 8)),
    *(Case(n, 8, axis) for n in (2, 4) for axis in ("data", "fsdp")),
)


class Found(NamedTuple):
    """Of a compiled step: FLOPs that a device executes, bytes it sends and of these in reductions.

    ``params`` is P.
    """

    executed: float
    sent: float
    reduced: float
    params: int


def compiled(given: argparse.Namespace, overrides: list[str]) -> Found:
    """The step on this process's devices and its peers'."""
    config = load_config(given.config, overrides)
    mesh = mesh_of(config, f"{given.axis}={given.devices}", jax.devices())
    made = job(config, "train", mesh)
    traced = made.jitted.trace(*made.arguments)
    program = traced.lower().compile(compiler_options=QUICK)
    found = costs(program, count(traced.jaxpr), mesh.size)
    reductions = found.collectives.get("all-reduce")
    params = sum(4 * p.size for p in jax.tree.leaves(made.arguments[0].params))
    return Found(found.executed, found.sent, reductions.wire if reductions else 0.0, params)


def row(case: Case, found: Found, alone: float) -> dict[str, str]:
    """The cells of a case; ``alone`` is what one device by itself executes."""
    n, share = case.devices, (case.devices - 1) / case.devices
    least = LEAST[case.axis] * share * found.params
    scattered = found.sent - (found.reduced / 2 if case.axis == "fsdp" else 0.0)
    ratio = lambda sent: f"{sent / least:.3f}" if least else "none"
    return {
        "processes": str(case.processes),
        "devices": str(n),
        "axis": case.axis,
        "GFLOP a device": f"{found.executed / 1e9:.3f}",
        "of its share": f"{found.executed * n / alone:.3f}",
        "MB sent": f"{found.sent / 1e6:.3f}",
        "least MB": f"{least / 1e6:.3f}",
        "ratio": ratio(found.sent),
        "scattered": ratio(scattered),
    }


def start(case: Case) -> list[subprocess.Popen]:
    """The processes of a case, this script with --process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(case.devices // case.processes)}
    command = [sys.executable, *sys.argv, f"--axis={case.axis}", f"--devices={case.devices}"]
    command += [f"--processes={case.processes}", f"--coordinator=127.0.0.1:{port}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    each = [[*command, f"--process={i}"] for i in range(case.processes)]
    return [subprocess.Popen(c, env={**os.environ, **own}, **pipes) for c in each]


def measure(case: Case) -> Found:
    """What the first process of a case tells.

    Raises:
        RuntimeError: if a process fails, with its last words.
    """
    processes = start(case)
    ended = [process.communicate() for process in processes]
    for process, (_, said) in zip(processes, ended, strict=True):
        if process.returncode:
            raise RuntimeError(f"{case} failed: {said[-500:]}")
    return Found(**json.loads(ended[0][0].splitlines()[-1]))


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and the config's."""
    describe = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=describe, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/mnist.py", help="the experiment")
    for name in ("axis", "coordinator"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    for name in ("devices", "processes", "process"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    return parser.parse_known_args()


def main() -> None:
    """Print the table, or as one process of a case what its step costs."""
    given, overrides = parse()
    if given.devices:
        if given.processes > 1:
            own = hosts.Hosts("", given.coordinator, given.processes, given.process)
            hosts.connect(own)
        print(json.dumps(compiled(given, overrides)._asdict()))
        return
    rows, alone = [], 0.0
    for case in CASES:
        found = measure(case)
        alone = alone or found.executed
        rows.append(row(case, found, alone))
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
