"""The encoder and the decoder of Stable Diffusion's autoencoders.

Esser et al. 2021, "Taming Transformers", appendix A; Rombach et al. 2022, appendix G.  Residual
blocks without a time embedding, sizes halved by strided convolutions that pad after the image only,
one attention of one head at the lowest size.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models.attention import SelfAttention
from diffusion_jax.models.layers import Conv, ConvDown, ConvUp, Dense, GroupNormSilu, Style

_ZEROS = nn.initializers.zeros_init()


def style_of(groups: int, dtype: Any) -> Style:
    """The common style of an autoencoder's blocks; one head, eps 1e-6."""
    return Style(
        dtype=jnp.dtype(dtype), groups=groups, group_channels=1, eps=1e-6, head_dim=None,
        downsample_padding=(0, 1),
    )  # fmt: skip


class PlainBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), x projected where the width changes."""

    features: int
    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b h w m"]) -> Float[Array, "b h w n"]:
        """[b, h, w, m] -> [b, h, w, features]."""
        style, dtype = self.style, self.style.dtype
        h = GroupNormSilu(style, name="norm_0")(x)
        h = Conv(self.features, dtype, name="conv_0")(h)
        h = GroupNormSilu(style, name="norm_1")(h)
        h = Conv(self.features, dtype, kernel_init=_ZEROS, name="conv_1")(h)
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype, name="shortcut")(x)
        return x + h


class PlainMiddle(nn.Module):
    """Block, attention, block at the lowest size."""

    style: Style
    attention: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Keeps the shape."""
        c = x.shape[-1]
        x = PlainBlock(c, self.style, name="res_0")(x)
        if self.attention:
            x = SelfAttention(self.style, name="attention")(x)
        return PlainBlock(c, self.style, name="res_1")(x)


class Encoder(nn.Module):
    """Pixels -> features of a latent, 2^(levels - 1) times smaller in height and width.

    Attributes:
        widths: channels of each level, full size first.
        blocks: residual blocks of a level.
        out_channels: number of channels of the result.
        style: common style of the blocks.
        attention: whether the middle block has attention.
    """

    widths: tuple[int, ...]
    blocks: int
    out_channels: int
    style: Style
    attention: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 z"]:
        """[b, h, w, c] -> [b, h / 2^(levels - 1), w / 2^(levels - 1), out_channels]."""
        style = self.style
        h = Conv(self.widths[0], style.dtype, name="conv_in")(x)
        none = jnp.zeros((x.shape[0], 0))  # resamplers take an embedding, which is absent here
        for i, width in enumerate(self.widths):
            for j in range(self.blocks):
                h = PlainBlock(width, style, name=f"down_{i}_block_{j}")(h)
            if i < len(self.widths) - 1:
                h = ConvDown(width, style, name=f"down_{i}_resample")(h, none)
        h = PlainMiddle(style, self.attention, name="mid")(h)
        h = GroupNormSilu(style, name="norm_out")(h)
        return Conv(self.out_channels, style.dtype, name="conv_out")(h)


class Decoder(nn.Module):
    """The mirror of ``Encoder``, with one more block in each level; the same attributes."""

    widths: tuple[int, ...]
    blocks: int
    out_channels: int
    style: Style
    attention: bool = True

    @nn.compact
    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 c"]:
        """[b, h, w, z] -> [b, h·2^(levels - 1), w·2^(levels - 1), out_channels]."""
        style, widths = self.style, self.widths[::-1]
        h = Conv(widths[0], style.dtype, name="conv_in")(z)
        h = PlainMiddle(style, self.attention, name="mid")(h)
        none = jnp.zeros((z.shape[0], 0))
        for i, width in enumerate(widths):
            for j in range(self.blocks + 1):
                h = PlainBlock(width, style, name=f"up_{i}_block_{j}")(h)
            if i < len(widths) - 1:
                h = ConvUp(width, style, name=f"up_{i}_resample")(h, none)
        h = GroupNormSilu(style, name="norm_out")(h)
        return Conv(self.out_channels, style.dtype, name="conv_out")(h)
