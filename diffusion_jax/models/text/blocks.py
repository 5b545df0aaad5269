"""Common parts of text and image transformers (Vaswani et al. 2017).

Parameters are float32 and a module computes in ``dtype``; softmax and the statistics of norms are
float32.  Every network of this family names its parts layer_{i}/attention/{query, key, value, out}
and layer_{i}/mlp/{in, gate, up, out}, so one set of split rules serves all (``models.partition``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models import primitives
from diffusion_jax.models.layers import Dense, LayerNorm

_TABLE_INIT = nn.initializers.normal(0.02)


def attend(
    q: Float[Array, "b m heads dim"],
    k: Float[Array, "b n heads dim"],
    v: Float[Array, "b n heads dim"],
    mask: Bool[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    scale: float = 1.0,
) -> Float[Array, "b m heads dim"]:
    """softmax(scale·q·kᵀ + bias)·v for each head, over unmasked keys.

    Args:
        q: [b, m, heads, dim] queries.
        k: [b, n, heads, dim] keys.
        v: [b, n, heads, dim] values.
        mask: True where a query may attend, broadcastable to [b, heads, m, n]; None for everywhere.
            A query without any key attends to all equally, so it stays finite.
        bias: added to the logits, broadcastable to [b, heads, m, n]; None for 0.
        scale: scale of q·kᵀ.

    Returns:
        [b, m, heads, dim] in q's dtype; the softmax is float32.
    """
    logits = jnp.einsum("bmhd,bnhd->bhmn", q * scale, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhmn,bnhd->bmhd", weights, v)


def quick_gelu(x: Array) -> Array:
    """x·sigmoid(1.702·x), the approximation of GELU that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """x·Φ(x), exact (Hendrycks & Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


# x @ kernel, without a bias.
Linear = partial(Dense, use_bias=False)


class Embedding(nn.Module):
    """A table of ``rows`` vectors, looked up by integers of any shape; ``dtype`` out.

    An integer outside of the table gives NaN, to expose a wrong tokenizer.
    """

    rows: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... d"]:
        """[...] -> [..., features]."""
        table = self.param("embedding", _TABLE_INIT, (self.rows, self.features))
        return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan).astype(self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps)·scale over the last axis, in x's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "b ... d"]) -> Float[Array, "b ... d"]:
        """Normalise (Zhang & Sennrich 2019)."""
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return primitives.by_batch((h * scale).astype(x.dtype))


class SelfAttention(nn.Module):
    """out(attend(query(x), key(x), value(x))), all with biases; no norm and no residual."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "..."] | None = None
    ) -> Float[Array, "b n d"]:
        """Apply to [b, n, d]; mask as for ``attend``."""
        b, n, d = x.shape
        split = (b, n, self.heads, d // self.heads)
        q, k, v = (
            Dense(d, self.dtype, name=name)(x).reshape(split) for name in ("query", "key", "value")
        )
        h = attend(q, k, v, mask, scale=split[-1] ** -0.5)
        return Dense(d, self.dtype, name="out")(h.reshape(b, n, d))


class MLP(nn.Module):
    """out(activation(in(x))), with biases.

    Attributes:
        width: width of the middle.
        activation: name in ``ACTIVATIONS``.
        dtype: dtype of the computation.
    """

    width: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Apply."""
        h = ACTIVATIONS[self.activation](Dense(self.width, self.dtype, name="in")(x))
        return Dense(x.shape[-1], self.dtype, name="out")(h)


class PreNormLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): CLIP's layer, for text and for images.

    Attributes:
        heads: number of heads of the attention.
        mlp_width: width of the middle of the MLP.
        activation: name in ``ACTIVATIONS``.
        eps: epsilon of the norms.
        dtype: dtype of the computation.
    """

    heads: int
    mlp_width: int
    activation: str
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "..."] | None = None
    ) -> Float[Array, "b n d"]:
        """Apply; mask as for ``attend``."""
        h = LayerNorm(self.eps, name="norm_0")(x)
        x = x + SelfAttention(self.heads, self.dtype, name="attention")(h, mask)
        h = LayerNorm(self.eps, name="norm_1")(x)
        return x + MLP(self.mlp_width, self.activation, self.dtype, name="mlp")(h)


def check_length(n: int, positions: int) -> None:
    """Check that a network has positions for so many tokens.

    Raises:
        ValueError: naming both numbers.
    """
    if n > positions:
        raise ValueError(
            f"The text has {n} tokens, but the encoder has {positions} positions: truncate it, "
            "or encode it in chunks."
        )


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_tanh": primitives.gelu_tanh,
    "silu": primitives.silu,
    "relu": jax.nn.relu,
}
