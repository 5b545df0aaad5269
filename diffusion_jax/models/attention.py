"""Attention blocks.

Every attention of every denoiser runs through the module ``Attend``, which has no parameters: there
``attention_seam`` finds the queries, keys and values of each by the path of its module.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_jax.models import primitives
from diffusion_jax.models.attention_memory import ATTENTIONS
from diffusion_jax.models.layers import Dense, GroupNorm, Style

_ZEROS = nn.initializers.zeros_init()


class SelfAttention(nn.Module):
    """x + out(attention(norm(x))) over all positions (Dhariwal & Nichol 2021, section 3.1).

    There are c // head_dim heads (one, of width c, if head_dim is None or above c); where head_dim
    does not divide c the heads together are narrower than c, so any channel count works.  The
    output projection is zero at initialisation.

    Attributes:
        style: what all blocks share.
        normalise: False to attend to x itself; some published networks do so in the middle.
    """

    style: Style
    normalise: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b ... c"],
        identity: Float[Array, " b"] | None = None,
        skip: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b ... c"]:
        """Apply to [b, ..., c]; every position of ... is a token.

        Args:
            x: the input.
            identity: gates; where 1 the attention map is the identity, each token attending to
                itself alone (Ahn et al. 2024); None is 0 for all.
            skip: gates; where 1 the result is x; None is 0 for all.
        """
        style, c = self.style, x.shape[-1]
        head_dim = min(style.head_dim or c, c)
        heads = c // head_dim
        h = GroupNorm(style, name="norm")(x) if self.normalise else x
        # Split here and not before or after, where convolutions would be split over space with it.
        h = primitives.by_sequence(primitives.whole_sequence(h.reshape(x.shape[0], -1, c)))
        shape, kind = (heads, head_dim), style.attention
        h = _attend(h, h, shape, style.dtype, identity=identity, attention=kind)
        h = Dense(c, style.dtype, kernel_init=_ZEROS, name="out")(h)
        h = primitives.whole_sequence(h)
        out = (x + h.reshape(x.shape)) * style.skip_scale
        return out if skip is None else primitives.gated(skip, out, x)


class CrossAttention(nn.Module):
    """out(attention of x's tokens to those of a context), with no norm and no residual.

    Attributes:
        heads: number of heads; each has c // heads channels.
        dtype: of the computation.
        use_bias: whether queries, keys and values have a bias; the output always has.
        attention: name in ``attention_memory.ATTENTIONS``.
    """

    heads: int
    dtype: Any = jnp.float32
    use_bias: bool = False
    attention: str = "full"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m c"],
        context: Float[Array, "b n d"] | None = None,
        mask: Bool[Array, "b n"] | None = None,
        identity: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b m c"]:
        """Apply.

        Args:
            x: [b, m, c], the tokens that ask.
            context: [b, n, d], the tokens that answer; None for x itself.
            mask: [b, n], False for tokens of the context that nobody may see; None keeps all.
            identity: gates of self-attention; where 1 each token attends to itself alone.

        Raises:
            ValueError: if heads does not divide c.
        """
        c = x.shape[-1]
        if c % self.heads:
            raise ValueError(f"heads={self.heads} does not divide the {c} channels: choose others.")
        shape = (self.heads, c // self.heads)
        context = x if context is None else context
        kind = self.attention
        h = _attend(x, context, shape, self.dtype, self.use_bias, mask, identity, kind)
        return Dense(c, self.dtype, name="out")(h)


def _attend(
    x: Array,
    context: Array,
    shape: tuple[int, int],
    dtype: Any,
    use_bias: bool = True,
    mask: Array | None = None,
    identity: Array | None = None,
    attention: str = "full",
) -> Array:
    """The heads side by side, [b, m, heads·dim]; makes query, key and value of the module."""
    width = shape[0] * shape[1]
    query, key, value = (
        Dense(width, dtype, use_bias=use_bias, name=name)(z).reshape(*z.shape[:2], *shape)
        for name, z in (("query", x), ("key", context), ("value", context))
    )
    return Attend(attention, name="attend")(query, key, value, mask, identity)


class Attend(nn.Module):
    """``attend`` as a module without parameters, so that it has a path (see ``attention_seam``).

    Attributes:
        attention: name in ``attention_memory.ATTENTIONS``.
    """

    attention: str = "full"

    def __call__(
        self,
        query: Float[Array, "b m heads dim"],
        key: Float[Array, "b n heads dim"],
        value: Float[Array, "b n heads dim"],
        mask: Bool[Array, "b n"] | None = None,
        identity: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b m c"]:
        """As ``attend``."""
        return attend(query, key, value, self.attention, mask, identity)


def attend(
    query: Float[Array, "b m heads dim"],
    key: Float[Array, "b n heads dim"],
    value: Float[Array, "b n heads dim"],
    attention: str = "full",
    mask: Bool[Array, "b n"] | None = None,
    identity: Float[Array, " b"] | None = None,
) -> Float[Array, "b m c"]:
    """The chosen attention, its heads side by side: c = heads·dim.

    Args:
        query: [b, m, heads, dim].
        key: [b, n, heads, dim].
        value: [b, n, heads, dim].
        attention: name in ``attention_memory.ATTENTIONS``.
        mask: [b, n], False for keys that nobody may see; None keeps all.
        identity: gates of self-attention; where 1 each token attends to itself alone.
    """
    h = ATTENTIONS[attention](query, key, value, *(() if mask is None else (mask,)))
    if identity is not None:
        h = primitives.gated(identity, h, value)
    return h.reshape(*h.shape[:2], h.shape[2] * h.shape[3])
