"""A text encoder's folder, config.json beside model.safetensors, as transformers saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.convert.tensors import read_safetensors
from diffusion_jax.convert.text_encoders import from_transformers


def read_encoder(folder: str | Path, dtype: Any = np.float32) -> tuple[Any, dict[str, Any]]:
    """The network of a folder, such as a sentence encoder's, and its parameters.

    Args:
        folder: with config.json and model.safetensors.
        dtype: dtype of the parameters.

    Returns:
        As ``from_transformers``.

    Raises:
        FileNotFoundError: naming the missing file.
        ValueError: as ``from_transformers`` and ``read_safetensors``.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: an encoder's folder needs it.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return from_transformers(read_safetensors(folder / "model.safetensors"), config, dtype)
