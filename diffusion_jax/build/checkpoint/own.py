"""Adapters of one's own runs: their LoRA files, in the names of the run's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.apps.plan import Weights
from diffusion_jax.build.checkpoint.additions import file_and_scale
from diffusion_jax.convert.tensors import read_metadata, read_safetensors, write_safetensors
from diffusion_jax.recipes import lora

_KIND = "diffusion_jax.lora"


def write_lora(
    path: Path, factors: lora.Factors, alphas: Mapping[str, float], metadata: Mapping[str, str]
) -> None:
    """Write a LoRA of a run: "PATH.down" and "PATH.up" of each kernel, alpha/rank within "up"."""
    out = {}
    for name, pair in factors.items():
        rank = np.shape(pair["up"])[0]
        ratio = np.float32(alphas.get(name, rank) / rank)
        out[f"{name}.down"] = np.asarray(pair["down"], np.float32)
        out[f"{name}.up"] = np.asarray(pair["up"], np.float32) * ratio
    write_safetensors(path, out, {"format": _KIND, **metadata})


def read_lora(path: str) -> lora.Factors:
    """What ``write_lora`` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or of another layout.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config.lora: there is no LoRA at {path}")
    if read_metadata(path).get("format") != _KIND:
        raise ValueError(
            f"config.lora: {path} is no LoRA of a run of one's own, but perhaps of Stable "
            "Diffusion; draw with it from such a checkpoint"
        )
    factors: lora.Factors = {}
    for name, array in read_safetensors(path).items():
        kernel, _, side = name.rpartition(".")
        factors.setdefault(kernel, {})[side] = array
    return factors


def with_loras(weights: Weights, loras: Sequence[str]) -> Weights:
    """A run's weights with LoRA files merged, each "FILE" or "FILE:0.8" for 0.8 times its change.

    Raises:
        FileNotFoundError, ValueError: see ``read_lora``; or if one does not fit the weights.
    """
    if isinstance(loras, str):
        raise ValueError(f"config.lora = {loras!r} must be a list of files: ('{loras}',)")
    if not loras:
        return weights
    adapters = [lora.Adapter(read_lora(path), scale) for path, scale in map(file_and_scale, loras)]
    try:
        return weights._replace(params=lora.merged_all(_numpy(weights.params), adapters))
    except ValueError as error:
        raise ValueError(f"config.lora: {error}") from None


def _numpy(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _numpy(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_numpy(value) for value in tree)
    return np.asarray(tree)
