"""The images of a config's data set, and where what is measured of them is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusion_jax.data import load_images
from diffusion_jax.data.catalog import LATENTS, data_root
from diffusion_jax.spec import Config


def images_of(
    config: Config, split: str, limit: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images of the config's data set at its size, with their labels."""
    data = config.data
    size, name = tuple(data.image_size), data.name.removeprefix(LATENTS)
    return load_images(name, split, limit, size, data.channels, data.dir or None)


def cache_folder(config: Config) -> Path:
    """Where what was measured of a data set is kept, beside the data."""
    return data_root(config.data.dir or None) / "diffusion_jax_cache"
