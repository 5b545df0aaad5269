"""Two small towers, for image and caption features, into a common space."""

from __future__ import annotations

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from diffusion_jax.models.layers import Dense


class Towers(nn.Module):
    """Features of n images and n captions -> unit vectors, close for matching pairs.

    Attributes:
        hidden: width of each tower's one hidden layer.
        width: width of the common space.
        dropout: rate of the features and of the hidden layer, while training.
    """

    hidden: int = 256
    width: int = 128
    dropout: float = 0.3

    @nn.compact
    def __call__(
        self, image: Float[Array, "n d"], text: Float[Array, "n e"], *, train: bool = False
    ) -> tuple[Array, Array, Array]:
        """(image [n, width], text [n, width], logarithm of the inverse temperature []).

        float32; the temperature is learned (Radford et al. 2021, section 2.3), from 1/14.
        """
        scale = self.param("log_scale", nn.initializers.constant(2.66), ())
        return self._tower("image", image, train), self._tower("text", text, train), scale

    def _tower(self, name: str, x: Array, train: bool) -> Array:
        drop = lambda h, i: nn.Dropout(self.dropout, deterministic=not train, name=f"{name}_{i}")(h)
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-12)
        x = nn.gelu(Dense(self.hidden, name=f"{name}_hidden")(drop(x, 0)))
        x = Dense(self.width, name=f"{name}_out")(drop(x, 1))
        # Not norm(x), whose gradient at 0 is NaN.
        return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)
