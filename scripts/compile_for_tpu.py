"""Compile a config's training step or sampler for TPUs that are not there, and say what it costs.

    python scripts/compile_for_tpu.py --config=configs/cifar10.py --topology=v5e:4x4
    python scripts/compile_for_tpu.py --config=configs/cifar10.py --topology=v5e:4x4,v6e:4x4 \
        --mesh=data=16 --mesh=data=4,fsdp=4 --compare --config.train.batch_size=1024
    python scripts/compile_for_tpu.py --config=configs/cifar10.py --platform=cuda --devices=8

It is the program that the job would run, on the mesh of the config (or of --mesh) over the devices
of the topology.  Compiling takes minutes and no TPU, only ``requirements-tpu.txt``.  docs/scale.md
says how to read the output.  A checkpoint's sampler: --config=configs/sample.py
--config.checkpoint=DIR --mode=sample --topology=v5e:1x1.  With --platform=cuda the program is
lowered, not compiled.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
from absl import flags
from jax import export
from jax.sharding import Mesh
from ml_collections import config_flags

from diffusion_jax import ending
from diffusion_jax.jobs.planning import JOBS, job, useful_flops
from diffusion_jax.profiling import report
from diffusion_jax.profiling.chips import GIB, Chip
from diffusion_jax.profiling.compiled import Costs, bytes_of, costs, out_of_memory
from diffusion_jax.profiling.flops import count
from diffusion_jax.profiling.topology import slice_of
from diffusion_jax.spec import Config
from diffusion_jax.train import sharding

# Several times faster to compile; the plan of memory is up to twice as large.
QUICK = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}


class Result(NamedTuple):
    """What became of a compilation: costs, or (bytes needed, bytes there) of a refusal.

    ``batch`` is how many examples the program takes at once.
    """

    costs: Costs | None
    refused: tuple[float, float]
    useful: float
    text: str
    batch: int


def compile_for(config: Config, mode: str, mesh: Mesh, options: dict[str, Any]) -> Result:
    """Compile for the mesh, and read the costs.

    Raises:
        ValueError: for a config that does not fit the mesh.
    """
    made = job(config, mode, mesh)
    traced = made.jitted.trace(*made.arguments)
    counted, drawn = count(traced.jaxpr), jax.tree.leaves(made.arguments[-1])[0].shape[0]
    batch = config.train.batch_size if mode == "train" else drawn
    useful = useful_flops(config, mode, mesh, counted)
    try:
        compiled = traced.lower().compile(compiler_options=options)
    except Exception as error:  # what XLA raises has no narrower public type
        refused = out_of_memory(error)
        if refused is None:
            raise
        sentence = report.refusal(*refused, bytes_of(made.arguments), mode == "train")
        return Result(None, refused, useful, sentence, batch)
    found = costs(compiled, counted, mesh.size)
    return Result(found, (0.0, 0.0), useful, compiled.as_text(), batch)


def mesh_of(config: Config, text: str, devices: Sequence[Any]) -> Mesh:
    """The config's mesh over the devices, or one such as "data=4,fsdp=4"; -1 takes what is left."""
    sizes = {axis: config.mesh[axis] for axis in sharding.AXES}
    if text:
        try:
            sizes = {name: int(n) for name, n in (part.split("=") for part in text.split(","))}
        except ValueError:
            raise ValueError(
                f"--mesh={text} is not of the form data=4,fsdp=4; name axes of config.mesh"
            ) from None
    return sharding.make_mesh(sizes, devices)


def described(mesh: Mesh) -> str:
    """The axes that have more than one device."""
    return " ".join(f"{axis}={n}" for axis, n in mesh.shape.items() if n > 1) or "one device"


def print_one(result: Result, chip: Chip, mode: str) -> None:
    """The report of one compilation."""
    if result.costs is None:
        print(result.text)
        return
    print("\n".join(report.lines(result.costs, chip, result.useful)))
    print(report.advice(result.costs, chip, mode == "train"))


def row(result: Result, chip: Chip) -> dict[str, str]:
    """The cells of one compilation."""
    if result.costs is None:
        needed = result.refused[0] / GIB
        return {"peak GiB (of HBM)": f"does not fit: {needed:.1f}"}
    return report.row(result.costs, chip, result.useful)


def for_tpu(config: Config, given: argparse.Namespace) -> None:
    """Compile for each topology and mesh, and print a report of each, or a table of all."""
    options, rows = QUICK if given.quick else {}, []
    for name in given.topology.split(","):
        chip, devices = slice_of(name)
        for text in given.mesh or [""]:
            mesh = mesh_of(config, text, devices)
            began = time.perf_counter()
            result = compile_for(config, given.mode, mesh, options)
            took = f"{time.perf_counter() - began:.0f} s"
            title = f"{given.config} {given.mode}, {name}, {described(mesh)}, batch {result.batch}"
            print(f"{title}: compiled in {took}", flush=True)
            if given.compare:
                print(f"  {row(result, chip)}", file=sys.stderr, flush=True)
                rows.append({"slice": name, "mesh": described(mesh), **row(result, chip)})
            else:
                print_one(result, chip, given.mode)
            if given.hlo and result.costs:
                Path(given.hlo).write_text(result.text)
    if given.compare:
        print(report.table(rows))


def for_cuda(config: Config, given: argparse.Namespace) -> None:
    """Lower for CUDA by ``jax.export``, and print its size and what it calls beside XLA."""
    text = (given.mesh or [""])[0]
    mesh = mesh_of(config, text, jax.devices()[: given.devices])
    made = job(config, given.mode, mesh)
    leaves, tree = jax.tree.flatten(made.arguments)
    # Flat, because the format knows no optimiser's state.
    flat = lambda *leaves: jax.tree.leaves(made.jitted(*tree.unflatten(leaves)))
    exported = export.export(jax.jit(flat), platforms=("cuda",))(*leaves)
    calls = Counter(re.findall(r"custom_call @([\w.$]+)", exported.mlir_module()))
    said = ", ".join(f"{n} {name}" for name, n in calls.most_common()) or "none"
    print(f"{given.config} {given.mode}, {described(mesh)}: lowered for CUDA")
    print(f"serialised {len(exported.serialize()) / 1e6:.2f} MB; custom calls: {said}")


def load_config(path: str, overrides: Sequence[str]) -> Config:
    """The config in a file, with flags such as --config.train.batch_size=256.

    Raises:
        ValueError: for a flag that is none, or a field that the config lacks.
    """
    for word in overrides:
        if not word.startswith("--config."):
            raise ValueError(f"argument {word!r} is not understood; see --help")
    values, argv = flags.FlagValues(), ["", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (AttributeError, KeyError) as error:
        raise ValueError(f"the config has no such field: {error}") from None
    except flags.Error as error:
        raise ValueError(str(error)) from None
    return values.config


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and the config's."""
    describe = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=describe, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/cifar10.py", help="the experiment")
    parser.add_argument("--mode", default="train", choices=tuple(JOBS))
    parser.add_argument("--platform", default="tpu", choices=("tpu", "cuda"))
    parser.add_argument("--topology", default="v5e:2x2", help="slices, as v5e:4x4,v5p:2x2x2")
    parser.add_argument("--mesh", action="append", help="as data=4,fsdp=4, in place of config.mesh")
    parser.add_argument("--compare", action="store_true", help="one table of all")
    parser.add_argument("--quick", action="store_true", help="compile less well")
    parser.add_argument("--hlo", help="file for the compiled program's text, of the last")
    parser.add_argument("--devices", type=int, default=8, help="GPUs, for --platform=cuda")
    return parser.parse_known_args(argv)


def main() -> None:
    """Do what the command line says; a mistake ends it with one sentence and exit code 2."""
    given, overrides = parse()
    # Before JAX starts: nothing runs here.
    jax.config.update("jax_platforms", "cpu")
    if given.platform == "cuda":
        jax.config.update("jax_num_cpu_devices", given.devices)
    with ending.sentences():
        config = load_config(given.config, overrides)
        (for_tpu if given.platform == "tpu" else for_cuda)(config, given)


if __name__ == "__main__":
    main()
