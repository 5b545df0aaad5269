"""Transformer layers over the positions of an image, which attend to a text as well.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3 and
appendix E.2.1.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_jax.models import primitives
from diffusion_jax.models.attention import CrossAttention
from diffusion_jax.models.layers import Dense, GroupNorm, LayerNorm, Style

_ZEROS = nn.initializers.zeros_init()


class GatedMLP(nn.Module):
    """out(value · gelu(gate)), (value, gate) = in(x): GEGLU of Shazeer 2020, the gelu exact.

    Attributes:
        dtype: dtype of the computation.
        dropout: rate before the last layer; 0 outside training.
        widening: hidden channels per channel.
    """

    dtype: Any = jnp.float32
    dropout: float = 0.0
    widening: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Apply to each token."""
        c = x.shape[-1]
        h = Dense(2 * self.widening * c, self.dtype, name="in")(x)
        value, gate = jnp.split(h, 2, axis=-1)
        h = value * jax.nn.gelu(gate, approximate=False)
        h = nn.Dropout(self.dropout, deterministic=self.dropout == 0, name="dropout")(h)
        return Dense(c, self.dtype, name="out")(h)


class TransformerLayer(nn.Module):
    """Self-attention, attention to the context and a gated MLP, each x + f(layer_norm(x)).

    Attributes:
        heads: number of heads of both attentions.
        style: what all blocks share; of it dtype, dropout and attention count here.
    """

    heads: int
    style: Style

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m c"],
        context: Float[Array, "b n d"],
        mask: Bool[Array, "b n"] | None = None,
        identity: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b m c"]:
        """Apply; ``mask`` is of the context, ``identity`` of the self-attention."""
        dtype, kind = self.style.dtype, self.style.attention
        h = LayerNorm(name="norm_0")(x)
        attend = CrossAttention(self.heads, dtype, attention=kind, name="self_attention")
        x = x + attend(h, identity=identity)
        h = LayerNorm(name="norm_1")(x)
        attend = CrossAttention(self.heads, dtype, attention=kind, name="cross_attention")
        x = x + attend(h, context, mask)
        h = LayerNorm(name="norm_2")(x)
        return x + GatedMLP(dtype, self.style.dropout, name="mlp")(h)


class SpatialTransformer(nn.Module):
    """x + proj_out(layers(proj_in(norm(x)))), each position a token.

    A 1x1 convolution and a dense layer are one thing here; only the files of other codebases tell
    them apart.  The output projection is zero at initialisation.

    Attributes:
        depth: number of layers.
        heads: number of heads of each attention; it must divide c.
        style: what all blocks share.
    """

    depth: int
    heads: int
    style: Style

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b n d"],
        mask: Bool[Array, "b n"] | None = None,
        identity: Float[Array, " b"] | None = None,
        skip: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Apply.

        Args:
            x: [b, h, w, c].
            context: [b, n, d], the text.
            mask: [b, n], False for padding; None keeps all.
            identity: gates; where 1 each position attends, of the image, to itself alone.
            skip: gates; where 1 the result is x.
        """
        style, c = self.style, x.shape[-1]
        h = GroupNorm(style, name="norm")(x).reshape(x.shape[0], -1, c)
        # As in ``SelfAttention``: tokens are split here, and not where convolutions are.
        h = primitives.by_sequence(primitives.whole_sequence(h))
        h = Dense(c, style.dtype, name="proj_in")(h)
        context = context.astype(style.dtype)
        for i in range(self.depth):
            h = TransformerLayer(self.heads, style, name=f"layer_{i}")(h, context, mask, identity)
        h = Dense(c, style.dtype, kernel_init=_ZEROS, name="proj_out")(h)
        out = x + primitives.whole_sequence(h).reshape(x.shape)
        return out if skip is None else primitives.gated(skip, out, x)
