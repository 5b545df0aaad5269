"""Masks: 1 = repaint.  From a picture of one to latent cells and to a soft paste-back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.ndimage import distance_transform_edt

Mask = np.ndarray
"""float32 [h, w, 1] in [0, 1]."""


def binary(picture: np.ndarray) -> Mask:
    """A picture in [-1, 1], [h, w, c], as a mask of 0 and 1: 1 where it is brighter than grey."""
    return (picture.mean(-1, keepdims=True) >= 0).astype(np.float32)


def cells(mask: Mask, factor: int) -> Mask:
    """The mask of latent cells, [h/factor, w/factor, 1]: 1 if any of a cell's pixels is.

    A cell that is repainted in part has to be repainted whole; taking one pixel for all, as
    nearest-neighbour resizing does, loses thin masks.
    """
    h, w, _ = mask.shape
    return mask.reshape(h // factor, factor, w // factor, factor, 1).max((1, 3))


def feathered(mask: Mask, width: float) -> Mask:
    """The share of the drawn picture at each pixel: 0 outside of the mask, rising to 1 inside.

    Args:
        mask: of 0 and 1.
        width: pixels from the mask's border to where the share is 1; 0 for a hard border.
    """
    if width <= 0 or mask.min() > 0:
        return mask
    depth = np.asarray(distance_transform_edt(mask[..., 0]))[..., None]  # 1 at the first inside
    return (np.clip(depth / (width + 1), 0, 1) * mask).astype(np.float32)


def paste(drawn: Array, picture: Array, share: Array) -> Array:
    """``drawn`` blended into ``picture``: the picture itself, to the bit, where the share is 0.

    Args:
        drawn, picture: pixels [b, h, w, c].
        share: of the drawn, [b, h, w, 1].
    """
    return jnp.where(share == 0, picture, share * drawn + (1 - share) * picture)
