"""CLIP's image tower, a vision transformer (Radford et al. 2021; Dosovitskiy et al. 2021)."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models.layers import LayerNorm, PatchEmbedding
from diffusion_jax.models.text.blocks import Embedding, Linear, PreNormLayer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the red, green and blue of the images that CLIP was trained on, pixels in [0, 1]."""


class ImageStates(NamedTuple):
    """The states of an image.

    Attributes:
        hidden: layers + 1 arrays [b, 1 + patches, d]: the embeddings, then each layer's output;
            the first position is the class token's.
        pooled: [b, p], the normed last state of the class token, projected where the network has a
            projection.
    """

    hidden: tuple[Array, ...]
    pooled: Array

    @property
    def last(self) -> Array:
        """[b, 1 + patches, d] after the last layer, without a norm."""
        return self.hidden[-1]


class ClipImage(nn.Module):
    """Pixels -> states.

    Attributes:
        width: width of the states.
        layers: number of layers.
        heads: number of heads of each attention.
        mlp_width: width of the middle of each MLP.
        size: side of the images.
        patch: side of a patch, a divisor of ``size``.
        activation: name in ``text.blocks.ACTIVATIONS``.
        eps: epsilon of the norms.
        projection: width of the pooled output; 0 for no projection.
        dtype: dtype of the computation and the states.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    size: int = 224
    patch: int = 14
    activation: str = "quick_gelu"
    eps: float = 1e-5
    projection: int = 768
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w c"]) -> ImageStates:
        """Encode.

        Args:
            pixels: [b, size, size, 3] from ``normalised``.

        Returns:
            The states, in ``dtype``.

        Raises:
            ValueError: if the images have another size.
        """
        if pixels.shape[1:3] != (self.size, self.size):
            raise ValueError(
                f"The images are {pixels.shape[1]} x {pixels.shape[2]}, but the encoder takes "
                f"{self.size} x {self.size}: resize them."
            )
        x = PatchEmbedding(self.width, self.patch, self.dtype, name="patch_conv")(pixels)
        token = self.param("class_token", nn.initializers.normal(0.02), (self.width,))
        token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        n = x.shape[1]
        x = x + Embedding(n, self.width, self.dtype, name="position")(jnp.arange(n))
        hidden = [LayerNorm(self.eps, name="norm_in")(x)]
        for i in range(self.layers):
            layer = PreNormLayer(
                self.heads,
                self.mlp_width,
                self.activation,
                self.eps,
                self.dtype,
                name=f"layer_{i}",
            )
            hidden.append(layer(hidden[-1]))
        pooled = LayerNorm(self.eps, name="norm")(hidden[-1][:, 0])
        if self.projection:
            pooled = Linear(self.projection, self.dtype, name="projection")(pooled)
        return ImageStates(tuple(hidden), pooled)


def normalised(images: Float[Array, "b h w 3"], size: int) -> Float[Array, "b size size 3"]:
    """CLIP's input from images in [-1, 1]: resized (bicubic, antialiased), then standardised.

    Args:
        images: [b, h, w, 3]; a picture that is not square is distorted: crop it first.
        size: size of the side.

    Returns:
        float32 [b, size, size, 3].
    """
    x = (jnp.asarray(images, jnp.float32) + 1) / 2
    if x.shape[1:3] != (size, size):
        x = jnp.clip(jax.image.resize(x, (x.shape[0], size, size, 3), "cubic"), 0, 1)
    return (x - jnp.asarray(MEAN)) / jnp.asarray(STD)
