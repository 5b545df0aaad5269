"""Feature vectors of images, and their cache for data sets."""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from diffusion_jax.files import whole


class FeatureNet(NamedTuple):
    """A network whose features are compared.

    Attributes:
        name: everything that a figure depends on: network, layer, input size.
        distance: name of the Fréchet distance on these features; "FID" for Inception only.
        apply: images [n, h, w, c], 0 to 255 -> {"frechet": [n, d], "kernel": [n, d2]}.
    """

    name: str
    distance: str
    apply: Callable[[Array], dict[str, Array]]


Features = dict[str, np.ndarray]
"""{"frechet": [n, d], "kernel": [n, d2]}: the features of each kind of distance."""


def extract(net: FeatureNet, images: np.ndarray, batch_size: int = 100) -> Features:
    """Features of uint8 [n, h, w, c], in batches of one size (the last padded): compiled once."""
    apply = jax.jit(net.apply)
    parts = []
    for start in tqdm(range(0, len(images), batch_size), desc="features", leave=False):
        batch = images[start : start + batch_size]
        padding = [(0, batch_size - len(batch)), *[(0, 0)] * 3]
        out = jax.device_get(apply(np.pad(batch, padding)))
        parts.append({name: x[: len(batch)] for name, x in out.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def cached(net: FeatureNet, images: np.ndarray, folder: str | os.PathLike, label: str) -> Features:
    """``extract``, or its cached result for the same images and network.

    Args:
        net: the network.
        images: uint8 [n, h, w, c].
        folder: folder of the cache.
        label: part of the file's name; images are identified by their content.
    """
    digest = hashlib.sha256(net.name.encode() + str(images.shape).encode() + images.tobytes())
    path = Path(folder) / f"{label}-{digest.hexdigest()[:16]}.npz"
    if path.exists():
        try:
            with np.load(path) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(f"{path} is damaged ({error}); it is computed again", stacklevel=2)
    features = extract(net, images)
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **features)
    return features
