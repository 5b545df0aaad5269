"""Discriminators: PatchGAN for images, and heads on features of another network.

PatchGAN (Isola et al. 2017, section 3.2.2) gives a logit for each patch.  It has group norm in
place of batch norm: an example's logit then does not depend on the rest of the batch or on other
devices, and there are no running statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models import primitives
from diffusion_jax.models.layers import Dense, GroupNorm, Style

_NORMAL = nn.initializers.normal(0.02)


class _PatchConv(nn.Module):
    """A 4x4 convolution padded by one pixel, with bias."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _NORMAL, (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel, bias = (z.astype(self.dtype) for z in (x, kernel, bias))
        y = primitives.conv(x, kernel, bias, self.stride, ((1, 1), (1, 1)))
        return primitives.by_batch(y)


class PatchDiscriminator(nn.Module):
    """Images -> a logit for each of overlapping patches.

    Attributes:
        channels: base width; it doubles at each halving, up to eight times.
        halvings: of the size; 3 gives patches of 70 pixels, 2 of 34.
        dtype: dtype of the computation; parameters and logits are float32.
    """

    channels: int = 64
    halvings: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 1"]:
        """Pixels in [-1, 1], sides of at least 4·2^halvings -> logits, large for real images."""
        dtype = jnp.dtype(self.dtype)
        h = _PatchConv(self.channels, 2, dtype, name="conv_0")(pixels)
        h = jax.nn.leaky_relu(h, 0.2)
        for i in range(1, self.halvings + 1):
            width = self.channels * min(2**i, 8)
            stride = 2 if i < self.halvings else 1
            h = _PatchConv(width, stride, dtype, name=f"conv_{i}")(h)
            h = GroupNorm(Style(dtype=dtype), name=f"norm_{i}")(h)
            h = jax.nn.leaky_relu(h, 0.2)
        h = _PatchConv(1, 1, dtype, name="conv_out")(h)
        return h.astype(jnp.float32)


class FeatureHeads(nn.Module):
    """Features of another network -> a logit of each, large for real data.

    Each array, [b, positions ..., c] or [b, c], has its own perceptron, shared by all positions,
    whose hidden layer is averaged over them: so it serves images, tokens and points of any number.
    Features are first normalised over channels, whatever their scale.

    A condition vector is projected on the hidden layer (Miyato & Koyama 2018, equation 4), so that
    the logit depends on whether an example fits its condition.

    Attributes:
        width: width of the hidden layers.
    """

    width: int = 128

    @nn.compact
    def __call__(
        self, features: Sequence[Array], condition: Float[Array, "b d"] | None = None
    ) -> Float[Array, "b heads"]:
        """Arrays [b, ..., c] -> [b, heads] float32; 0 at initialisation."""
        zeros, logits = nn.initializers.zeros_init(), []
        for i, one in enumerate(features):
            h = one.reshape(one.shape[0], -1, one.shape[-1])
            h = nn.LayerNorm(use_bias=False, use_scale=False, name=f"norm_{i}")(h)
            h = jax.nn.leaky_relu(Dense(self.width, name=f"dense_{i}")(h), 0.2)
            h = jax.nn.leaky_relu(Dense(self.width, name=f"hidden_{i}")(h), 0.2).mean(1)
            logit = Dense(1, kernel_init=zeros, name=f"logit_{i}")(h)
            if condition is not None:
                of = Dense(self.width, kernel_init=zeros, use_bias=False, name=f"told_{i}")(
                    condition
                )
                logit += jnp.sum(of * h, axis=-1, keepdims=True)
            logits.append(logit)
        return jnp.concatenate(logits, axis=-1)
