"""A residual perceptron for vectors: points in the plane, embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from diffusion_jax.models.embeddings import ConditionEmbedding, sinusoidal
from diffusion_jax.models.layers import Dense
from diffusion_jax.models.primitives import silu
from diffusion_jax.models.unet.plan import check_time


class MLP(nn.Module):
    """[b, d], [b], cond -> [b, out_channels]: blocks h + W·silu(norm(h)·(1 + s) + shift).

    Attributes:
        width: width of the hidden layer.
        depth: number of residual blocks.
        out_channels: number of channels of the output.
        num_classes: 0 for no labels; else the label num_classes is the null class.
        scalars: see ``embeddings.ConditionEmbedding``.
    """

    width: int = 128
    depth: int = 3
    out_channels: int = 2
    num_classes: int = 0
    scalars: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b d"],
        time: Float[Array, " b"],
        cond: Mapping[str, Any],
        *,
        train: bool = False,
    ) -> Float[Array, "b out"]:
        """Run it; ``train`` changes nothing, as there is no dropout.  Zero at initialisation.

        Raises:
            ValueError: for another time than one for each example, or an unknown cond key.
        """
        del train
        check_time(type(self).__name__, time.shape)
        features = partial(sinusoidal, max_period=1e4)
        embed = ConditionEmbedding(
            self.width, 64, features, self.num_classes, tuple(self.scalars), name="embed"
        )
        emb = silu(embed(time, cond))
        h = Dense(self.width, name="dense_in")(x)
        for i in range(self.depth):
            film = Dense(2 * self.width, name=f"film_{i}")(emb)
            scale, shift = film[:, : self.width], film[:, self.width :]
            inner = nn.LayerNorm(use_bias=False, use_scale=False, name=f"norm_{i}")(h)
            h = h + Dense(self.width, name=f"dense_{i}")(silu(inner * (1 + scale) + shift))
        zeros = nn.initializers.zeros_init()
        return Dense(self.out_channels, kernel_init=zeros, name="dense_out")(silu(h))
