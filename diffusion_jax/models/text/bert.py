"""BERT (Devlin et al. 2019), and MiniLM's sentence vectors (Wang et al. 2020), which are its mean.

Norms come after each sum (post-LN); GELU is exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models.layers import Dense, LayerNorm
from diffusion_jax.models.text.blocks import (
    MLP,
    Embedding,
    SelfAttention,
    check_length,
)


class BertStates(NamedTuple):
    """What BERT returns.

    Attributes:
        last: [b, n, d] states of the tokens.
        pooled: [b, d], tanh of a dense layer of the first token's state; None without that layer.
    """

    last: Array
    pooled: Array | None


class PostNormLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)); attributes as ``Bert``'s."""

    heads: int
    mlp_width: int
    activation: str
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b 1 1 n"] | None
    ) -> Float[Array, "b n d"]:
        """Apply to [b, n, d]."""
        x = x + SelfAttention(self.heads, self.dtype, name="attention")(x, mask)
        x = LayerNorm(self.eps, name="norm_0")(x)
        x = x + MLP(self.mlp_width, self.activation, self.dtype, name="mlp")(x)
        return LayerNorm(self.eps, name="norm_1")(x)


class Bert(nn.Module):
    """Tokens -> states.

    Attributes:
        vocab: rows of the token table.
        width: width of the states.
        layers: number of layers.
        heads: number of heads of each attention.
        mlp_width: width of the middle of each MLP.
        positions: largest number of tokens.
        segments: rows of the segment table; a single text has the first.
        activation: name in ``blocks.ACTIVATIONS``.
        eps: epsilon of the norms.
        pooler: whether the network has the dense layer of ``BertStates.pooled``.
        dtype: dtype of the computation and the states.
    """

    vocab: int = 30522
    width: int = 384
    layers: int = 6
    heads: int = 12
    mlp_width: int = 1536
    positions: int = 512
    segments: int = 2
    activation: str = "gelu"
    eps: float = 1e-12
    pooler: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b n"], mask: Int[Array, "b n"] | None = None) -> BertStates:
        """Encode.

        Args:
            ids: [b, n] integers, n at most ``positions``.
            mask: [b, n], 0 for padding, which no token attends to; None for none.

        Returns:
            The states in ``dtype``; meaningless where mask is 0.

        Raises:
            ValueError: if n is above ``positions``.
        """
        n = ids.shape[1]
        check_length(n, self.positions)
        # The sum of the tables in float32, since the norm follows.
        x = Embedding(self.vocab, self.width, name="token")(ids)
        x = x + Embedding(self.positions, self.width, name="position")(jnp.arange(n))
        x = x + Embedding(self.segments, self.width, name="segment")(jnp.zeros(n, jnp.int32))
        x = LayerNorm(self.eps, name="norm")(x).astype(self.dtype)
        seen = None if mask is None else mask[:, None, None, :].astype(bool)
        for i in range(self.layers):
            layer = PostNormLayer(
                self.heads,
                self.mlp_width,
                self.activation,
                self.eps,
                self.dtype,
                name=f"layer_{i}",
            )
            x = layer(x, seen)
        if not self.pooler:
            return BertStates(x, None)
        return BertStates(x, jnp.tanh(Dense(self.width, self.dtype, name="pooler")(x[:, 0])))


def mean_pool(
    states: Float[Array, "b n d"], mask: Int[Array, "b n"] | Bool[Array, "b n"]
) -> Float[Array, "b d"]:
    """The mean over tokens that are not padding, float32 [b, d]; 0 for a text of padding."""
    weight = mask.astype(jnp.float32)[..., None]
    total = (states.astype(jnp.float32) * weight).sum(1)
    return total / jnp.maximum(weight.sum(1), 1.0)


def sentence_vector(states: Float[Array, "b n d"], mask: Int[Array, "b n"]) -> Float[Array, "b d"]:
    """``mean_pool`` normalised to length 1: dot products are cosines (Reimers & Gurevych 2019)."""
    mean = mean_pool(states, mask)
    square = jnp.square(mean).sum(-1, keepdims=True)
    return mean / jnp.sqrt(jnp.maximum(square, 1e-24))
