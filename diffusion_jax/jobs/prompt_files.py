"""The files of drawn prompts: a PNG of each image, which holds its settings, and a sheet of all.

And the pictures that they start from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusion_jax import pictures
from diffusion_jax.data import to_unit
from diffusion_jax.jobs.run import plain
from diffusion_jax.spec import Config

# What the pixels depend on; the rest of the config says where and how fast.
TOLD = (
    "checkpoint", "variant", "prediction_type", "tokenizers", "lora", "embeddings", "prompt",
    "negative_prompt", "chunks", "seed", "image", "strength", "control", "control_image", "sampler",
    "dtype", "tile",
)  # fmt: skip


class Request(NamedTuple):
    """One image that is wanted."""

    prompt: str
    seed: int


def save(config: Config, folder: Path, requests: list[Request], images: np.ndarray) -> None:
    """A PNG of each image, with its settings, and a sheet of all; the first process writes."""
    if jax.process_index():
        return
    settings = {name: value for name, value in plain(config).items() if name in TOLD}
    for request, image in zip(requests, images, strict=True):
        told = settings | {"prompt": request.prompt, "seed": request.seed, "size": image.shape[:2]}
        text = {"parameters": json.dumps(told, ensure_ascii=False)}
        pictures.save_image(folder / f"{_name(request)}.png", image, text=text)
    pictures.save_image(folder / "all.png", pictures.grid(images))
    print(f"{len(images)} images are in {folder}; the settings of each are inside of it")


def _name(request: Request) -> str:
    words = "".join(c if c.isalnum() else "-" for c in request.prompt.lower())
    return f"{request.seed:06d}-{'-'.join(filter(None, words.split('-')))[:60]}"


def read_picture(path: str, size: tuple[int, int], field: str = "image") -> np.ndarray:
    """A picture of any format, resized: float32 [h, w, 3] in [-1, 1].

    Args:
        path: of the file.
        size: (height, width).
        field: of the config that names it.

    Raises:
        ValueError: if the file is no picture, or is absent.
    """
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(
            f"config.{field} = {path!r} cannot be read as a picture ({error})"
        ) from None
    return to_unit(np.asarray(picture))
