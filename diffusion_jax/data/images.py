"""Size, channels, crop and flip of one uint8 image [h, w, c]."""

from __future__ import annotations

import numpy as np
from PIL import Image

CROPS = ("center", "random", "stretch")
"""How to handle a different aspect ratio.

``center`` and ``random`` keep the aspect ratio and crop the longer side, in the middle or at a
random position; ``stretch`` changes the aspect ratio and crops nothing.
"""


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """[h, w, 1 | 3] -> [h, w, channels]: the luma of colour, or grey repeated.

    Raises:
        ValueError: if ``channels`` is not 1 or 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; choose 1 (grey) or 3 (colour).")
    if image.shape[-1] == channels:
        return image
    picture = as_picture(image).convert("L" if channels == 1 else "RGB")
    return np.asarray(picture).reshape(*image.shape[:2], channels)


def as_picture(image: np.ndarray) -> Image.Image:
    """uint8 [h, w, 1 | 3] -> a Pillow image of mode L or RGB."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def resized(image: np.ndarray, size: tuple[int, int], crop: str) -> np.ndarray:
    """Lanczos-resize uint8 [h, w, c] to cover (height, width), or to equal it if ``stretch``."""
    height, width = image.shape[:2]
    factor = max(size[0] / height, size[1] / width)
    target: tuple[int, int] = (
        max(size[0], round(height * factor)),
        max(size[1], round(width * factor)),
    )
    if crop == "stretch":
        target = size
    if target == (height, width):
        return image
    picture = as_picture(image).resize((target[1], target[0]), Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(*target, image.shape[-1])


def cropped(image: np.ndarray, size: tuple[int, int], place: float) -> np.ndarray:
    """Cut (height, width) out of [h, w, c], at ``place`` in [0, 1] along each longer side."""
    top, left = corner(image.shape, size, place)
    return image[top : top + size[0], left : left + size[1]]


def corner(shape: tuple[int, ...], size: tuple[int, int], place: float) -> tuple[int, int]:
    """(top, left) of the crop by ``cropped`` from an image of shape (h, w, ...)."""
    return round(place * (shape[0] - size[0])), round(place * (shape[1] - size[1]))
