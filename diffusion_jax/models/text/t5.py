"""The encoder of T5 (Raffel et al. 2020, section 2.1), v1.0 and v1.1.

RMS norms before each part, no biases, no 1 / sqrt(d) in the attention, and a bias of each head for
each bucket of relative positions, learned once and used by all layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models.text.blocks import ACTIVATIONS, Embedding, Linear, RMSNorm, attend


class PlainMLP(nn.Module):
    """out(activation(in(x))), without biases: T5 v1.0's."""

    width: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Apply."""
        h = ACTIVATIONS[self.activation](Linear(self.width, self.dtype, name="in")(x))
        return Linear(x.shape[-1], self.dtype, name="out")(h)


class GatedMLP(nn.Module):
    """out(activation(gate(x))·up(x)), without biases (Shazeer 2020): T5 v1.1's."""

    width: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Apply."""
        gate = ACTIVATIONS[self.activation](Linear(self.width, self.dtype, name="gate")(x))
        h = gate * Linear(self.width, self.dtype, name="up")(x)
        return Linear(x.shape[-1], self.dtype, name="out")(h)


class T5Attention(nn.Module):
    """Self-attention with a position bias, heads·head_dim wide, without other biases."""

    heads: int
    head_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        bias: Float[Array, "1 heads n n"],
        mask: Bool[Array, "b 1 1 n"] | None,
    ) -> Float[Array, "b n d"]:
        """Apply to [b, n, d]."""
        split = (*x.shape[:2], self.heads, self.head_dim)
        q, k, v = (
            Linear(self.heads * self.head_dim, self.dtype, name=name)(x).reshape(split)
            for name in ("query", "key", "value")
        )
        h = attend(q, k, v, mask, bias)
        return Linear(x.shape[-1], self.dtype, name="out")(h.reshape(*split[:2], -1))


class T5Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); attributes as ``T5Encoder``'s."""

    heads: int
    head_dim: int
    mlp: str
    mlp_width: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, bias, mask) -> Float[Array, "b n d"]:
        """Apply to [b, n, d]; bias and mask as ``T5Attention``'s."""
        h = RMSNorm(self.eps, name="norm_0")(x)
        x = x + T5Attention(self.heads, self.head_dim, self.dtype, name="attention")(h, bias, mask)
        h = RMSNorm(self.eps, name="norm_1")(x)
        module, activation = MLPS[self.mlp]
        return x + module(self.mlp_width, activation, self.dtype, name="mlp")(h)


class T5Encoder(nn.Module):
    """Tokens -> states.

    Attributes:
        vocab: rows of the token table.
        width: width of the states.
        layers: number of layers.
        heads: number of heads of each attention.
        head_dim: width of a head; the heads together may be wider or narrower than ``width``.
        mlp_width: width of the middle of each MLP.
        mlp: name in ``MLPS``.
        buckets: number of buckets of relative positions, half of them for each side.
        max_distance: tokens further away than this share a bucket.
        eps: epsilon of the norms.
        dtype: dtype of the computation and the states; float16 overflows in the published weights.
    """

    vocab: int = 32128
    width: int = 4096
    layers: int = 24
    heads: int = 64
    head_dim: int = 64
    mlp_width: int = 10240
    mlp: str = "gated-gelu"
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b n"], mask: Int[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        """Encode.

        Args:
            ids: [b, n] integers; any n.
            mask: [b, n], 0 for padding, which no token attends to; None for none.

        Returns:
            [b, n, width] after the final norm, in ``dtype``; meaningless where mask is 0.
        """
        n = ids.shape[1]
        x = Embedding(self.vocab, self.width, self.dtype, name="token")(ids)
        place = relative_buckets(n, self.buckets, self.max_distance)
        # Added to the logits in float32, hence not in ``dtype``.
        bias = Embedding(self.buckets, self.heads, name="relative")(jnp.asarray(place))
        bias = bias.transpose(2, 0, 1)[None]
        seen = None if mask is None else mask[:, None, None, :].astype(bool)
        for i in range(self.layers):
            layer = T5Layer(
                self.heads,
                self.head_dim,
                self.mlp,
                self.mlp_width,
                self.eps,
                self.dtype,
                name=f"layer_{i}",
            )
            x = layer(x, bias, seen)
        return RMSNorm(self.eps, name="norm")(x)


def relative_buckets(n: int, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each (query, key), int32 [n, n] (Raffel et al. 2020, section 2.1).

    With h = buckets / 2 for each side and e = h / 2: a distance δ below e has its own bucket;
    above, the bucket is e + floor((h - e)·log(δ / e) / log(max_distance / e)), at most h - 1.
    Keys after the query have the second half of the buckets.
    """
    half = buckets // 2
    exact = half // 2
    offset = np.arange(n)[None, :] - np.arange(n)[:, None]
    distance = np.abs(offset)
    # In float32 and in this order, as in the published networks: at e·2^k the logarithms' ratio is
    # an integer, and other roundings would land on the other side of it.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, far) + half * (offset > 0)).astype(np.int32)


MLPS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "relu": (PlainMLP, "relu"),
    "gated-gelu": (GatedMLP, "gelu_tanh"),
    "gated-silu": (GatedMLP, "silu"),
}
"""Name -> (module, its activation)."""
