"""The latent of a picture that is a condition: each checkpoint was trained with one of four.

Of a KL autoencoder's posterior over raw latents either the mode or a draw, either raw or scaled as
x0 is.  Nothing but the authors' code says which; a wrong one degrades samples and raises nothing.

| network | encoding |
|---|---|
| inpainting, Stable Diffusion 1, 2, XL and 3; latent upscaler | "scaled_sample" |
| InstructPix2Pix, of Stable Diffusion 1 and XL; Zero-1-to-3; Stable Video Diffusion | "mode" |
| CosXL's edits; Wan's image to video | "scaled_mode" |
| x0 itself, as in image to image | "scaled_sample", which is ``Codec.encode`` |
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array

from diffusion_jax.core.types import Codec, Params

Encoding = Callable[[Codec, Params, Array, Array], Array]
"""(codec, frozen params, pixels [b, h, w, c], key) -> latent [b, h', w', z]."""


def mode(codec: Codec, frozen: Params, pixels: Array, key: Array) -> Array:
    """The posterior's mode, raw; the key is not used."""
    del key
    return codec.posterior(frozen, pixels)[0]


def sample(codec: Codec, frozen: Params, pixels: Array, key: Array) -> Array:
    """A draw from the posterior, raw."""
    mean, deviation = codec.posterior(frozen, pixels)
    return mean + deviation * jax.random.normal(key, mean.shape, mean.dtype)


def scaled_mode(codec: Codec, frozen: Params, pixels: Array, key: Array) -> Array:
    """The posterior's mode, scaled as x0 is; the key is not used."""
    return codec.scale(mode(codec, frozen, pixels, key))


def scaled_sample(codec: Codec, frozen: Params, pixels: Array, key: Array) -> Array:
    """A draw from the posterior, scaled as x0 is."""
    return codec.scale(sample(codec, frozen, pixels, key))


ENCODINGS: dict[str, Encoding] = {
    "mode": mode,
    "sample": sample,
    "scaled_mode": scaled_mode,
    "scaled_sample": scaled_sample,
}
