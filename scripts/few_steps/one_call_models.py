"""One-step image generators that are no diffusion models, for scripts/benchmarks/few_steps.py.

A VAE's decoder (``models.autoencoders``) and a GAN's generator (DCGAN, Radford et al. 2016), their
widths chosen for about a given number of parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from diffusion_jax.models.autoencoders.autoencoder import AutoencoderKL

FACTOR = 4  # from the smallest feature map to pixels, in height and width
NOISE_SIZE, LATENT_CHANNELS = 100, 4
LAYOUT = ("NHWC", "HWIO", "NHWC")


class OneCall(NamedTuple):
    """A network that maps noise to images.

    Attributes:
        params: random parameters.
        draw: (params, key, n) -> images [n, h, w, c].
    """

    params: Any
    draw: Callable[[Any, jax.Array, int], jax.Array]


def decoder(shape: tuple[int, int, int], size: int) -> OneCall:
    """A VAE's decoder, from latents of a quarter of the height and width."""
    h, w, channels = shape
    latent_shape = (h // FACTOR, w // FACTOR, LATENT_CHANNELS)

    def module(width: int) -> AutoencoderKL:
        return AutoencoderKL(
            width, (1, 2, 2), blocks=1, latent_channels=LATENT_CHANNELS, out_channels=channels,
            groups=8, attention=False,
        )  # fmt: skip

    def init(width: int) -> Any:
        zeros = jnp.zeros((1, *latent_shape))
        return module(width).init(jax.random.key(0), zeros, method="decode")

    width = _width(init, size)

    def draw(params: Any, key: jax.Array, n: int) -> jax.Array:
        z = jax.random.normal(key, (n, *latent_shape))
        return jnp.asarray(module(width).apply(params, z, method="decode"))

    return OneCall(init(width), draw)


def generator(shape: tuple[int, int, int], size: int) -> OneCall:
    """A GAN's generator: a dense layer on a noise vector, two 4 x 4 transposed convolutions."""
    h, w, channels = shape
    small = (h // FACTOR, w // FACTOR)

    def init(width: int) -> Any:
        first = small[0] * small[1] * 2 * width
        shapes = [(NOISE_SIZE, first), (4, 4, 2 * width, width), (4, 4, width, channels)]
        keys = jax.random.split(jax.random.key(0), len(shapes))
        return [0.02 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]

    def draw(params: Any, key: jax.Array, n: int) -> jax.Array:
        dense, *kernels = params
        x = (jax.random.normal(key, (n, NOISE_SIZE)) @ dense).reshape(n, *small, -1)
        for kernel in kernels:
            mean, deviation = (f(x, (1, 2), keepdims=True) for f in (jnp.mean, jnp.std))
            x = jax.nn.relu((x - mean) / (deviation + 1e-5))
            x = lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT)
        return jnp.tanh(x)

    return OneCall(init(_width(init, size)), draw)


def _width(init: Callable[[int], Any], size: int) -> int:
    """The multiple of 8 that gives the number of parameters nearest to ``size``."""

    def count(width: int) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: init(width))))

    return min(range(8, 520, 8), key=lambda width: abs(count(width) - size))
