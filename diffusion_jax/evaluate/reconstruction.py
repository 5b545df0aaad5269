"""Distances of reconstructions from their originals, for each image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_RANGE = 255.0


def psnr(a: Float[Array, "n h w c"], b: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """10·log10(255² / mean squared error) in dB, for values 0 to 255; infinite for equal images."""
    error = jnp.square(jnp.asarray(a, jnp.float32) - jnp.asarray(b, jnp.float32)).mean((1, 2, 3))
    return 10 * (jnp.log10(_RANGE**2) - jnp.log10(error))


def ssim(
    a: Float[Array, "n h w c"], b: Float[Array, "n h w c"], size: int = 11, sigma: float = 1.5
) -> Float[Array, " n"]:
    """Structural similarity (Wang et al. 2004, eq. 13), for values 0 to 255, in [-1, 1].

    Gaussian windows that lie wholly inside; averaged over positions and channels.

    Args:
        a, b: images with sides of at least ``size``.
        size: side of the window, odd.
        sigma: its standard deviation.

    Raises:
        ValueError: for smaller images.
    """
    if min(a.shape[1:3]) < size:
        raise ValueError(f"ssim needs images of at least {size} pixels, got {a.shape[1:3]}")
    # Centred on the range, where float32 is precise enough for differences of squares.
    x, y = (jnp.asarray(image, jnp.float32) / _RANGE - 0.5 for image in (a, b))
    mean = lambda image: _windowed(image, size, sigma)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    light = (2 * (mx + 0.5) * (my + 0.5) + c1) / ((mx + 0.5) ** 2 + (my + 0.5) ** 2 + c1)
    shape = (2 * cov + c2) / (vx + vy + c2)
    return (light * shape).mean((1, 2, 3))


def _windowed(x: Array, size: int, sigma: float) -> Array:
    place = np.arange(size) - size // 2
    weight = np.exp(-(place**2) / (2 * sigma**2))
    weight = (weight / weight.sum()).astype(np.float32)
    for axis in (1, 2):
        n = x.shape[axis] - size + 1
        parts = (jax.lax.slice_in_dim(x, i, i + n, axis=axis) for i in range(size))
        x = sum((w * p for w, p in zip(weight, parts, strict=True)), jnp.zeros(()))
    return x
