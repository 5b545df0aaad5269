"""Batches of given indices: read, resize, crop, flip, scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion_jax.data import images, order
from diffusion_jax.data.pixels import to_unit
from diffusion_jax.data.sources import Source
from diffusion_jax.data.spec import DataSpec

FLIP, PLACE, DRAW = 0, 1, 2  # streams of random choices

Fetch = Callable[[np.ndarray, np.ndarray], dict[str, Any]]
"""(example indices int64 [b], positions int64 [b]) -> batch."""


def toy_fetch(source: Source, spec: DataSpec) -> Fetch:
    """Fetch points, unchanged."""
    del spec

    def fetch(indices, where):
        del where
        return stack(source.read(indices))

    return fetch


def image_fetch(source: Source, spec: DataSpec) -> Fetch:
    """Fetch images as ``spec`` describes; random choices are keyed by (seed, position)."""
    plain = _sized(source.read) if spec.framing else source.read
    read = _cached(plain, fitter(source, spec), source.info.num_examples, spec.cache_bytes)
    size = spec.image_size

    def fetch(indices, where):
        whole = examples = read(indices)
        place = order.uniform(spec.seed, PLACE, where) if spec.crop == "random" else _HALF
        places = np.broadcast_to(place, len(where))
        if size is not None and spec.crop != "stretch":
            examples = [
                example | {"image": images.cropped(example["image"], size, at)}
                for example, at in zip(examples, places, strict=True)
            ]
        batch = stack(examples)
        mirrored = np.zeros(len(where), bool)
        if spec.flip:
            mirrored = order.uniform(spec.seed, FLIP, where) < 0.5
            batch["image"][mirrored] = batch["image"][mirrored, :, ::-1]
        if spec.framing:
            batch["framing"] = _framing(whole, batch["image"].shape[1:3], places, mirrored)
        return batch | {"image": to_unit(batch["image"])}

    return fetch


def _sized(read: Callable[[np.ndarray], list[dict]]) -> Callable[[np.ndarray], list[dict]]:
    """``read``, with each image's (height, width) before it is resized."""
    return lambda indices: [one | {"size": one["image"].shape[:2]} for one in read(indices)]


def _framing(
    examples: list[dict], size: tuple[int, int], places: np.ndarray, mirrored: np.ndarray
) -> np.ndarray:
    """``DataSpec.framing`` of resized examples that are cropped at ``places``, int32 [b, 4]."""
    rows = []
    for example, place, flipped in zip(examples, places, mirrored, strict=True):
        shape = example["image"].shape
        top, left = images.corner(shape, size, place)
        rows.append((*example["size"], top, shape[1] - size[1] - left if flipped else left))
    return np.array(rows, np.int32)


def latent_fetch(source: Source, spec: DataSpec) -> Fetch:
    """Fetch latents, sampled anew from the posterior where its deviation is known."""
    read = _cached(source.read, lambda code: code, source.info.num_examples, spec.cache_bytes)

    def fetch(indices, where):
        examples = read(indices)
        batch = stack(examples)
        if "deviation" in examples[0]:
            noise = order.normal(spec.seed, DRAW, where, batch["image"].shape[1:])
            batch["image"] += np.stack([example["deviation"] for example in examples]) * noise
        return batch

    return fetch


_HALF = np.float64(0.5)


def fitter(source: Source, spec: DataSpec) -> Callable[[np.ndarray], np.ndarray]:
    """The deterministic part of preparing an image: channels and size."""
    channels = spec.channels or source.info.shape[-1] or 3

    def fit(image):
        image = images.with_channels(image, channels)
        return images.resized(image, spec.image_size, spec.crop) if spec.image_size else image

    return fit


def _cached(
    read: Callable[[np.ndarray], list[dict]], fit: Callable, n: int, limit: int
) -> Callable[[np.ndarray], list[dict]]:
    """``read`` then ``fit``, caching results up to ``limit`` bytes."""
    kept: list[dict | None] = [None] * n
    used = 0

    def cached_read(indices):
        nonlocal used
        found = {int(i): kept[i] for i in indices}
        absent = [i for i, example in found.items() if example is None]
        for i, example in zip(absent, read(np.array(absent)) if absent else [], strict=True):
            found[i] = example | {"image": fit(example["image"])}
            size = found[i]["image"].nbytes + _OVERHEAD_BYTES
            if used + size <= limit:
                kept[i] = found[i]
                used += size
        return [found[int(i)] for i in indices]

    return cached_read


_OVERHEAD_BYTES = 400  # approximate overhead of a dict and an array


def stack(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Examples of equal shapes -> one batch, in order."""
    batch: dict[str, Any] = {"image": np.stack([example["image"] for example in examples])}
    if "label" in examples[0]:
        batch["label"] = np.array([example["label"] for example in examples], np.int32)
    if "caption" in examples[0]:
        batch["caption"] = np.array([example["caption"] for example in examples], object)
    return batch


# By ``Info.kind``.
FETCHES: dict[str, Callable[[Source, DataSpec], Fetch]] = {
    "image": image_fetch,
    "latents": latent_fetch,
    "points": toy_fetch,
}
