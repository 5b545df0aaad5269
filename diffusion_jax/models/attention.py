"""Attention blocks."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from diffusion_jax.models import primitives
from diffusion_jax.models.layers import Dense, GroupNorm, Style


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
        split = (*h.shape[:2], heads, head_dim)
        query, key, value = (
            Dense(heads * head_dim, style.dtype, name=name)(h).reshape(split)
            for name in ("query", "key", "value")
        )
        h = primitives.attention(query, key, value)
        if identity is not None:
            h = primitives.gated(identity, h, value)
        h = h.reshape(*h.shape[:2], heads * head_dim)
        h = Dense(c, style.dtype, kernel_init=nn.initializers.zeros_init(), name="out")(h)
        h = primitives.whole_sequence(h)
        out = (x + h.reshape(x.shape)) * style.skip_scale
        return out if skip is None else primitives.gated(skip, out, x)
