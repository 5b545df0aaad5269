"""A small classifier of small images, which judges conditional samples."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models.layers import Conv, Dense


class Classifier(nn.Module):
    """[n, h, w, c] in [-1, 1] -> logits [n, num_classes]; halves the size at each width but one.

    Attributes:
        num_classes: number of classes.
        widths: channels of the convolutions.
        hidden: width of the last hidden layer.
        dropout: rate before the last layer, while training.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 64)
    hidden: int = 128
    dropout: float = 0.4

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool = False) -> Array:
        """Logits, float32."""
        for i, width in enumerate(self.widths):
            stride = 2 if i + 1 < len(self.widths) else 1
            x = nn.relu(Conv(width, stride=stride, name=f"conv_{i}")(x))
        x = jnp.reshape(x, (x.shape[0], -1))
        x = nn.relu(Dense(self.hidden, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.num_classes, name="logits")(x)
