"""Linen modules that hold the parameters of the pure functions in ``primitives``.

Parameters are float32; each module computes in ``dtype``.  Parameter names are linen's (kernel,
bias, scale) and every submodule is named, so that remat leaves parameter paths as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.models import primitives

# DDPM's: uniform with variance 2 / (fan_in + fan_out).
_KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_ZEROS = nn.initializers.zeros_init()


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share.

    Attributes:
        dtype: dtype of the computation.
        conditioning: name in ``CONDITIONINGS``.
        dropout: rate before each block's last convolution; 0 outside training.
        groups: most groups of a group norm.
        group_channels: fewest channels in a group.
        eps: epsilon of the norms.
        head_dim: channels of an attention head; None for one head.
        skip_scale: factor on each residual sum.
        downsample_padding: pixels before and after each axis of a strided convolution.
        attention: name in ``attention_memory.ATTENTIONS``.
    """

    dtype: Any = jnp.float32
    conditioning: str = "scale_shift"
    dropout: float = 0.0
    groups: int = 32
    group_channels: int = 4
    eps: float = 1e-5
    head_dim: int | None = 64
    skip_scale: float = 1.0
    downsample_padding: tuple[int, int] = (1, 1)
    attention: str = "full"


def num_groups(channels: int, most: int = 32, group_channels: int = 4) -> int:
    """The largest divisor of channels that is at most min(most, channels // group_channels).

    So groups adapt to any channel count and hold at least ``group_channels`` channels where that
    many exist: a group of one channel would erase each channel's mean.
    """
    limit = max(1, min(most, channels // group_channels))
    return next(n for n in range(limit, 0, -1) if channels % n == 0)


class Dense(nn.Module):
    """x @ kernel + bias over the last axis, [..., m] -> [..., features]."""

    features: int
    dtype: Any = jnp.float32
    kernel_init: Callable = _KERNEL_INIT
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... m"]) -> Float[Array, "... n"]:
        """Apply; the output has ``dtype``."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", _ZEROS, (self.features,)) if self.use_bias else None
        x, kernel = (z.astype(self.dtype) for z in (x, kernel))
        bias = None if bias is None else bias.astype(self.dtype)
        return primitives.by_batch(primitives.dense(x, kernel, bias))


class PatchEmbedding(nn.Module):
    """Each patch x patch square through one linear map, a token each.

    Attributes:
        features: channels of a token.
        patch: side of the square.
        dtype: dtype of the computation.
        use_bias: whether the map has a bias.
    """

    features: int
    patch: int
    dtype: Any = jnp.float32
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """[b, h, w, c] -> [b, (h / patch)·(w / patch), features], row by row."""
        shape = (self.patch, self.patch, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", _ZEROS, (self.features,)) if self.use_bias else None
        bias = None if bias is None else bias.astype(self.dtype)
        x = primitives.conv(x.astype(self.dtype), kernel, bias, self.patch, "VALID")
        return primitives.by_batch(x.reshape(x.shape[0], -1, self.features))


class Conv(nn.Module):
    """A 3x3 convolution with bias, [b, h, w, m] -> [b, h / stride, w / stride, features]."""

    features: int
    dtype: Any = jnp.float32
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    kernel_init: Callable = _KERNEL_INIT

    @nn.compact
    def __call__(self, x: Float[Array, "b h w m"]) -> Float[Array, "b h2 w2 n"]:
        """Apply; the output has ``dtype``."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", _ZEROS, (self.features,))
        x, kernel, bias = (z.astype(self.dtype) for z in (x, kernel, bias))
        padding = (self.padding, self.padding)
        return primitives.by_batch(primitives.conv(x, kernel, bias, self.stride, padding))


class LayerNorm(nn.Module):
    """Layer normalisation with a learned affine map; keeps shape and dtype."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """Normalise."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", _ZEROS, (x.shape[-1],))
        return primitives.layer_norm(primitives.by_batch(x), scale, bias, self.eps)


class GroupNorm(nn.Module):
    """Group normalisation with a learned affine map; keeps shape and dtype."""

    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"]) -> Float[Array, "b ... c"]:
        """Normalise."""
        return primitives.group_norm(primitives.by_batch(x), *_norm_arguments(self, x.shape[-1]))


class GroupNormSilu(nn.Module):
    """silu(group_norm(x)·(1 + s) + shift) in one pass; parameters as ``GroupNorm``'s."""

    style: Style

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], film: tuple[Array, Array] | None = None
    ) -> Float[Array, "b h w c"]:
        """Normalise, modulate by film = (s, shift), each [b, c], and activate."""
        arguments = _norm_arguments(self, x.shape[-1])
        return primitives.group_norm_silu(primitives.by_batch(x), *arguments, film=film)


def _norm_arguments(module: GroupNorm | GroupNormSilu, channels: int):
    style = module.style
    scale = module.param("scale", nn.initializers.ones_init(), (channels,))
    bias = module.param("bias", _ZEROS, (channels,))
    return scale, bias, num_groups(channels, style.groups, style.group_channels), style.eps


def _scale_shift(norm: GroupNormSilu, h: Array, e: Array) -> Array:
    scale, shift = jnp.split(e, 2, axis=-1)
    return norm(h, (scale, shift))


def _additive(norm: GroupNormSilu, h: Array, e: Array) -> Array:
    return norm(h + e[:, None, None, :])


class Conditioning(NamedTuple):
    """How a block takes in the embedding.

    Attributes:
        width: numbers it needs per channel.
        apply: (norm, h [b, h, w, c], e [b, width·c]) -> normed, modulated and activated h.
    """

    width: int
    apply: Callable[[GroupNormSilu, Array, Array], Array]


class ResBlock(nn.Module):
    """The residual block of ADM (Dhariwal & Nichol 2021, section 3.1 and appendix A).

    x + conv(dropout(silu(norm(conv(resize(silu(norm(x)))))))), the second norm conditioned, the
    second convolution zero at initialisation, x resized and projected where it must be.

    Attributes:
        features: channels out.
        style: what all blocks share.
        resize: of both branches, [b, h, w, c] -> [b, h', w', c]; None to keep the size.
    """

    features: int
    style: Style
    resize: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w m"],
        emb: Float[Array, "b d"],
        skip: Float[Array, " b"] | None = None,
    ) -> Array:
        """Apply to x.

        Args:
            x: the input.
            emb: the activated embedding.
            skip: gates; where 1 the result is x, resized and projected; None is 0 for all.
        """
        style, dtype = self.style, self.style.dtype
        conditioning = CONDITIONINGS[style.conditioning]
        h = GroupNormSilu(style, name="norm_0")(x)
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h = Conv(self.features, dtype, name="conv_0")(h)
        e = Dense(conditioning.width * self.features, dtype, name="emb")(emb)
        h = conditioning.apply(GroupNormSilu(style, name="norm_1"), h, e)
        h = nn.Dropout(style.dropout, deterministic=style.dropout == 0, name="dropout")(h)
        h = Conv(self.features, dtype, kernel_init=_ZEROS, name="conv_1")(h)
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype, name="shortcut")(x)
        out = (x + h) * style.skip_scale
        return out if skip is None else primitives.gated(skip, out, x)


class ConvDown(nn.Module):
    """Halve the size by a strided convolution; takes and ignores the embedding."""

    features: int
    style: Style

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        """[b, h, w, c] -> [b, h/2, w/2, features], rounded up if padded on both sides."""
        style = self.style
        conv = Conv(self.features, style.dtype, 2, style.downsample_padding, name="conv")
        return conv(x)


class ConvUp(nn.Module):
    """Double the size by repetition and a convolution; takes and ignores the embedding."""

    features: int
    style: Style

    @nn.compact
    def __call__(self, x: Array, emb: Array, size: tuple[int, int] | None = None) -> Array:
        """[b, h, w, c] -> [b, 2h, 2w, features], or [b, *size, features]."""
        conv = Conv(self.features, self.style.dtype, name="conv")
        doubled = primitives.upsample_nearest(x)
        if size is None or doubled.shape[1:3] == size:
            return conv(doubled)
        # Row i of n is row floor(i·h/n) of h, as in PyTorch's nearest; columns alike.
        rows, columns = (np.arange(n) * h // n for n, h in zip(size, x.shape[1:3], strict=True))
        return conv(x[:, rows][:, :, columns])


def _residual_down(features: int, style: Style, name: str) -> nn.Module:
    return ResBlock(features, style, primitives.avg_pool, name=name)


def _residual_up(features: int, style: Style, name: str) -> nn.Module:
    return ResBlock(features, style, primitives.upsample_nearest, name=name)


# Each resampler: (features, style, name=) -> Module (x, emb) -> x.
DOWNSAMPLES: dict[str, Callable[..., nn.Module]] = {"residual": _residual_down, "conv": ConvDown}
UPSAMPLES: dict[str, Callable[..., nn.Module]] = {"residual": _residual_up, "conv": ConvUp}

CONDITIONINGS: dict[str, Conditioning] = {
    "scale_shift": Conditioning(2, _scale_shift),
    "additive": Conditioning(1, _additive),
}
