"""Stable Diffusion beside diffusers on PyTorch: seconds and memory of U-Nets and of a pipeline.

    python scripts/benchmarks/stable_diffusion.py [--full] [--out=FILE.md]

Each measurement is a process of its own, so that its peak of memory is its own, and the sides take
turns.  The checkpoints have random weights: a tiny one, and with --full the real size of Stable
Diffusion 1.5 (7 GB on disk while it runs, a quarter of an hour on two cores).  Needs
``requirements-parity.txt``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_bool("full", False, "Also the U-Net of Stable Diffusion 1.5 in its real size.")
flags.DEFINE_string("out", None, "Also write the table here.")
flags.DEFINE_integer("rounds", 2, "Processes of each side; the least time counts.")
flags.DEFINE_integer("threads", 2, "CPU threads of each side.")
flags.DEFINE_string("job", "", "(of the processes) what to measure")
flags.DEFINE_string("folder", "", "(of the processes) the checkpoint")

STEPS = 20  # of the pipeline
PROMPT = "a photo of a red cat on the hill"


def main(argv: list[str]) -> None:
    """Measure, print, write; or be one of the processes."""
    del argv
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: FLAGS.threads])
    if FLAGS.job:
        print(json.dumps(JOBS[FLAGS.job](Path(FLAGS.folder))))
        return
    try:
        from tests import stable_diffusion  # writes checkpoints, by diffusers itself
    except ImportError as error:
        raise app.UsageError(f"{error}; pip install -r requirements-parity.txt") from None
    with tempfile.TemporaryDirectory() as place:
        folder = stable_diffusion.pipeline("sd1", Path(place))[1]
        found = [measured(row, folder) for row in TINY]
        if FLAGS.full:
            full = full_unet(Path(place) / "full")
            found += [measured(row, full) for row in FULL]
    text = table(found)
    print(text)
    if FLAGS.out:
        Path(FLAGS.out).write_text(text + "\n")


def full_unet(folder: Path) -> Path:
    """Stable Diffusion 1.5's U-Net in float32, with random weights."""
    import torch
    from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

    from diffusion_jax.convert import families

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel.from_config(families.configs("sd1").unet)
    unet.save_pretrained(folder / "unet")
    return folder


def measured(row: str, folder: Path) -> dict[str, Any]:
    """{"name": row, "ours": ..., "torch": ...}: of each side the least of its processes."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "torch": []}
    for _ in range(FLAGS.rounds):
        for side, held in runs.items():
            print(f"{row}, {side} ...", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, f"--job={side} {row}", f"--folder={folder}"]
            done = subprocess.run(
                [*command, f"--threads={FLAGS.threads}"],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{side} {row} failed:\n{done.stderr[-2000:]}")
            held.append(json.loads(done.stdout.splitlines()[-1]))
    least = lambda held: {name: min(run[name] for run in held) for name in held[0]}
    return {"name": row} | {side: least(held) for side, held in runs.items()}


def timed(load: Callable[[], Callable[[], Any]], calls: int) -> dict[str, float]:
    """Seconds to load, of the first call, of the fastest later one; GiB more than at the start."""
    before = memory()
    start = time.perf_counter()
    job = load()
    loaded, held = time.perf_counter(), memory()
    job()
    first = time.perf_counter()
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - began)
    return {
        "load": loaded - start,
        "first": first - loaded,
        "call": min(seconds),
        "held": held["RssAnon"] - before["RssAnon"],
        "peak": memory()["VmHWM"] - before["VmRSS"],
    }


def memory() -> dict[str, float]:
    """GiB of this process: VmRSS now, VmHWM at most, RssAnon without pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return {name: int(fields[name]) / 2**20 for name in ("VmRSS", "VmHWM", "RssAnon")}


def our_unet(folder: Path, dtype: str, side: int) -> dict[str, float]:
    """Our U-Net, read and called once for a latent of side x side."""
    import jax
    import jax.numpy as jnp

    from diffusion_jax.convert.folders import read_json, read_weights
    from diffusion_jax.convert.mapped import forget
    from diffusion_jax.convert.sd_unet import from_sd_unet
    from diffusion_jax.models.adapter import net_from_module

    config: Any = read_json(folder, "unet/config.json")

    def placed(x):
        on_device = jnp.asarray(x, dtype).block_until_ready()
        forget(x)
        return on_device

    def load():
        module, params = from_sd_unet(read_weights(folder, "unet", None), config)
        params = jax.tree.map(placed, params)
        net = jax.jit(net_from_module(module.clone(dtype=jnp.dtype(dtype))))
        x, time_ = jnp.ones((1, side, side, 4)), jnp.full(1, 500.0)
        cond = {"context": jnp.ones((1, 77, config["cross_attention_dim"]))}
        return lambda: net(params, x, time_, cond).block_until_ready()

    jax.devices()
    return timed(load, 3)


def torch_unet(folder: Path, dtype: str, side: int) -> dict[str, float]:
    """diffusers' U-Net, as ``our_unet``."""
    import torch
    from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

    torch.set_num_threads(FLAGS.threads)
    kind = getattr(torch, dtype)

    def load():
        unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=kind)
        x = torch.ones(1, 4, side, side, dtype=kind)
        context = torch.ones(1, 77, unet.config.cross_attention_dim, dtype=kind)
        return torch.inference_mode()(lambda: unet(x, torch.tensor([500]), context).sample)

    return timed(load, 3)


def our_pipeline(folder: Path) -> dict[str, float]:
    """STEPS guided steps of DDIM from a prompt to uint8 pixels."""
    from configs import sample as settings
    from diffusion_jax.build.generator import open_source
    from diffusion_jax.jobs.drawing import draw_requests, open_sampler
    from diffusion_jax.jobs.requests import requests_of

    config: Any = settings.get_config()
    config.checkpoint, config.prompt, config.sampler.steps = str(folder), PROMPT, STEPS

    def load():
        generator: Any = open_source(config.checkpoint, config)
        wanted = requests_of(config, generator)
        sampler = open_sampler(config, generator)
        return lambda: draw_requests(sampler, wanted, len(wanted))

    return timed(load, 5)


def torch_pipeline(folder: Path) -> dict[str, float]:
    """diffusers' pipeline, as ``our_pipeline``."""
    import torch
    from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    torch.set_num_threads(FLAGS.threads)

    def load():
        pipe: Any = StableDiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        return lambda: pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=7.5)

    return timed(load, 5)


def table(found: list[dict[str, Any]]) -> str:
    """Both sides of each row, and ours over PyTorch's."""
    lines = [
        f"{FLAGS.threads} threads; ours / diffusers on PyTorch eager, and their ratio. Seconds of "
        "loading (safetensors on disk, cached by the system), of the first call, which compiles, "
        "and of one later; GiB held after loading without pages of files, and at the peak.",
        "",
        "| | load s | first call s | call s | ratio | held GiB | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        ours, theirs = row["ours"], row["torch"]
        pair = lambda name, ours=ours, theirs=theirs: f"{ours[name]:.3g} / {theirs[name]:.3g}"
        ratio = f"{ours['call'] / theirs['call']:.2f}"
        cells = (pair("load"), pair("first"), pair("call"), ratio, pair("held"), pair("peak"))
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


TINY = ("tiny U-Net", "tiny pipeline, 20 steps")
FULL = ("SD 1.5 U-Net, float32", "SD 1.5 U-Net, bfloat16")
JOBS: dict[str, Callable[[Path], dict[str, float]]] = {
    "ours tiny U-Net": lambda folder: our_unet(folder, "float32", 8),
    "torch tiny U-Net": lambda folder: torch_unet(folder, "float32", 8),
    "ours tiny pipeline, 20 steps": our_pipeline,
    "torch tiny pipeline, 20 steps": torch_pipeline,
    "ours SD 1.5 U-Net, float32": lambda folder: our_unet(folder, "float32", 64),
    "torch SD 1.5 U-Net, float32": lambda folder: torch_unet(folder, "float32", 64),
    "ours SD 1.5 U-Net, bfloat16": lambda folder: our_unet(folder, "bfloat16", 64),
    "torch SD 1.5 U-Net, bfloat16": lambda folder: torch_unet(folder, "bfloat16", 64),
}


if __name__ == "__main__":
    app.run(main)
