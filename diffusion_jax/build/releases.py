"""A run as a folder to give away: its config and its averaged weights, without its training."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build.first_stage import MEASURED
from diffusion_jax.build.runs import Run
from diffusion_jax.build.weights import FIRST_STAGE, WEIGHTS, averaged, write_weights
from diffusion_jax.core.types import Params
from diffusion_jax.files import whole_folder
from diffusion_jax.spec import plain
from diffusion_jax.train.workdir import CONFIG, read_config

# Of a recipe's parameters, those that only training reads.
_TRAINING = ("terms", "discriminator")


def release(workdir: str | os.PathLike, out: str | os.PathLike, dtype: Any = np.float16) -> Path:
    """Write a run's release, its first stage with it; sampling takes the folder as a workdir.

    Args:
        workdir: of the run, or a release.
        out: the folder to make; it appears whole.
        dtype: of large arrays.

    Returns:
        ``out``.

    Raises:
        ValueError: if the folder holds no run, or ``out`` exists.
    """
    with whole_folder(out) as temporary:
        _fill(Path(workdir), temporary, dtype)
    return Path(out)


def write_release(out: Path, run: Run, params: Params, dtype: Any) -> None:
    """The release of a run with other parameters, such as those of a tuning.

    Args:
        out: the folder to make; it appears whole.
        run: whose config and first stage it has.
        params: in place of the run's; what they lack is the run's own.
        dtype: of large arrays.
    """
    config = plain(run.config)
    config["sampler"]["params"] = "ema"  # which is what a release's weights are called
    with whole_folder(out) as temporary:
        _write(temporary, {**run.params, **params}, run.step, dtype)
        if config["model"].get("autoencoder", ""):
            _fill_first_stage(Path(config["model"]["autoencoder"]), temporary, config, dtype)
        _write_config(temporary, config)


def _fill(workdir: Path, out: Path, dtype: Any) -> None:
    config = read_config(workdir)
    if "tuning" in config:
        raise ValueError(
            f"{workdir} holds a tuning, whose {config['tuning']!r} leaves what there is to give "
            "away: lora.safetensors, word.safetensors or a folder checkpoint_..."
        )
    first_stage = config["model"].get("autoencoder", "")
    if (workdir / MEASURED).exists():
        shutil.copyfile(workdir / MEASURED, out / MEASURED)
    step = json.loads((out / MEASURED).read_text())["step"] if (out / MEASURED).exists() else 0
    _write(out, *averaged(workdir, config["ema"], step), dtype)
    if first_stage:
        inner = workdir / FIRST_STAGE
        _fill_first_stage(inner if inner.is_dir() else Path(first_stage), out, config, dtype)
    _write_config(out, config)


def _write(out: Path, params: Params, step: int, dtype: Any) -> None:
    kept = {name: value for name, value in params.items() if name not in _TRAINING}
    write_weights(out / WEIGHTS, kept, step, dtype)


def _fill_first_stage(source: Path, out: Path, config: dict[str, Any], dtype: Any) -> None:
    (out / FIRST_STAGE).mkdir()
    _fill(source, out / FIRST_STAGE, dtype)
    config["model"]["autoencoder"] = FIRST_STAGE
    # Whoever has the release need not have the set of latents: it encodes and decodes by itself.
    config["data"]["name"] = json.loads((out / FIRST_STAGE / MEASURED).read_text())["data"]


def _write_config(out: Path, config: dict[str, Any]) -> None:
    (out / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
