"""LPIPS's VGG16 from a state dict: torchvision's names, or those of the package lpips."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.convert.fitting import load_params
from diffusion_jax.convert.names import Row
from diffusion_jax.models.vision.vgg import STAGES, shapes


def from_lpips(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of ``models.vision.vgg``, float32.

    Args:
        state: VGG16's convolutions as "features.0.weight" (torchvision) or
            "net.slice1.0.weight" (lpips), and LPIPS's heads as "lin0.model.1.weight"; tensors of
            VGG16's classifier and lpips's constants are dropped.

    Raises:
        ValueError: naming the missing, extra and misshapen tensors.
    """
    kept: dict[str, np.ndarray] = {}
    for name, array in state.items():
        if match := _CONV.fullmatch(name):
            kept[f"features.{match[1]}.{match[2]}"] = array
        elif match := _HEAD.fullmatch(name):
            kept[f"lin{match[1]}.model.1.weight"] = array
        elif not name.startswith(_DROPPED):
            kept[name] = array
    return load_params(kept, shapes(), ROWS, np.float32)


_CONV = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
_HEAD = re.compile(r"lin(?:s\.)?(\d)\.model\.1\.weight")
_DROPPED = ("classifier.", "scaling_layer.", "avgpool.")


def _rows() -> tuple[Row, ...]:
    """torchvision numbers convolutions, activations and poolings consecutively."""
    rows, number = [], 0
    for i, stage in enumerate(STAGES):
        for j in range(len(stage)):
            rows.append(Row(f"conv_{i}_{j}", f"features.{number}", "conv"))
            number += 2
        number += 1
        rows.append(Row(f"head_{i}", f"lin{i}.model.1", "head"))
    return tuple(rows)


ROWS = _rows()
