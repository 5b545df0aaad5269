"""Where a run's averaged parameters are read from: its checkpoints, or the file of a release.

A release is a run's folder without its training: ``config.json``, ``weights.safetensors`` and,
where it diffuses latents, the release of its first stage in ``autoencoder/``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.convert.tensors import read_metadata, read_safetensors, write_safetensors
from diffusion_jax.core.ema import EMAS
from diffusion_jax.core.types import Params
from diffusion_jax.spec import build
from diffusion_jax.train.checkpoint import restore_params_at
from diffusion_jax.train.workdir import read_config

WEIGHTS = "weights.safetensors"
FIRST_STAGE = "autoencoder"

# Statistics, biases and gains are few and matter more than their bytes.
_SMALL = 4096


def averaged(workdir: str | os.PathLike, ema: str, step: int = 0) -> tuple[Params, int]:
    """The averaged parameters of a run or a release, and the step they are of.

    Args:
        workdir: the folder.
        ema: ``config.ema``; of "power()" the first average is taken.
        step: of the checkpoint, 0 for the newest; a release has but one.

    Raises:
        ValueError: if there is no such checkpoint, or the file is damaged.
    """
    if is_release(workdir):
        params, held = read_weights(Path(workdir) / WEIGHTS)
        if step not in (0, held):
            raise ValueError(f"{workdir} is a release of step {held}, and has no step {step}")
        return params, held
    state, held = restore_params_at(workdir, "ema", step or None)
    return build(EMAS, ema, "ema").params(state), held


def is_release(workdir: str | os.PathLike) -> bool:
    """Whether a folder holds released weights."""
    return (Path(workdir) / WEIGHTS).is_file()


def settings(workdir: str | os.PathLike) -> dict[str, Any]:
    """What a run's or a release's config.json says, its own first stage where that lies now.

    Raises:
        ValueError: if there is no run.
    """
    held = read_config(workdir)
    if (Path(workdir) / FIRST_STAGE).is_dir():
        held["model"]["autoencoder"] = str(Path(workdir) / FIRST_STAGE)
    return held


def write_weights(path: Path, params: Params, step: int, dtype: Any = np.float16) -> None:
    """Parameters as one file, named by their paths, which appears whole.

    Args:
        path: of the file.
        params: nested dicts of arrays; what is empty is left out.
        step: that they are of.
        dtype: of arrays of more than 4,096 elements; the others keep float32.
    """
    flat = {
        name: np.asarray(x, dtype if np.size(x) > _SMALL else np.float32)
        for name, x in _flat(params).items()
    }
    write_safetensors(path, flat, {"step": str(step)})


def read_weights(path: Path) -> tuple[Params, int]:
    """What ``write_weights`` wrote, float32, and its step.

    Raises:
        ValueError: if the file is damaged or of another origin.
    """
    tensors, metadata = read_safetensors(path), read_metadata(path)
    try:
        step = int(metadata["step"])
    except (KeyError, ValueError):
        raise ValueError(
            f"{path} says no step, so it is not from scripts/release.py; give a release's folder"
        ) from None
    nested: dict[str, Any] = {}
    for name, x in tensors.items():
        *folders, leaf = name.split("/")
        at = nested
        for folder in folders:
            at = at.setdefault(folder, {})
        at[leaf] = np.asarray(x, np.float32)
    return nested, step


def _flat(params: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(params, (Mapping, list, tuple)):
        return {prefix: params}
    pairs = params.items() if isinstance(params, Mapping) else enumerate(params)
    found: dict[str, Any] = {}
    for name, value in pairs:
        found |= _flat(value, f"{prefix}/{name}" if prefix else str(name))
    return found
