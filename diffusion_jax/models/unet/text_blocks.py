"""The parts of a text-conditional U-Net: embedding, blocks, levels and middle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_jax.models import primitives
from diffusion_jax.models.embeddings import sinusoidal
from diffusion_jax.models.layers import Dense, ResBlock, Style
from diffusion_jax.models.unet.blocks import OPEN, REMATS, Gates
from diffusion_jax.models.unet.plan import Widths
from diffusion_jax.models.unet.transformer_2d import SpatialTransformer


class Text(NamedTuple):
    """The context of cross-attention.

    Attributes:
        states: [b, n, d].
        mask: [b, n], False for padding; None keeps all.
    """

    states: Float[Array, "b n d"]
    mask: Bool[Array, "b n"] | None = None

    @classmethod
    def of(cls, cond: Mapping[str, Any]) -> Text:
        """From cond's "context" and, if it has it, "context_mask", 0 or False for padding."""
        mask = cond.get("context_mask")
        return cls(jnp.asarray(cond["context"]), None if mask is None else mask.astype(bool))


class AddedEmbedding(nn.Module):
    """A pooled text and some numbers -> a summand of the time embedding, float32 throughout.

    Podell et al. 2023 (SDXL), section 2.2: the numbers, such as the sizes of the original picture
    and of the crop, have sinusoidal features each, concatenated with the pooled text.

    Attributes:
        dim: width of the result.
        features: features of each number: (numbers [k], width) -> [k, width].
        feature_dim: their width.
    """

    dim: int
    features: Callable[[Array, int], Array] = sinusoidal
    feature_dim: int = 256

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "b p"], numbers: Float[Array, "b k"] | None = None
    ) -> Float[Array, "b dim"]:
        """[b, p], [b, k] or no numbers -> [b, dim]."""
        h = pooled.astype(jnp.float32)
        if numbers is not None:
            of_numbers = self.features(numbers.reshape(-1).astype(jnp.float32), self.feature_dim)
            h = jnp.concatenate([h, of_numbers.reshape(numbers.shape[0], -1)], axis=-1)
        h = primitives.silu(Dense(self.dim, name="dense_0")(h))
        return Dense(self.dim, name="dense_1")(h)


class Layout(NamedTuple):
    """The transformer of a block.

    Attributes:
        depth: its layers; 0 for no transformer.
        heads: number of heads of each attention.
        eps: epsilon of the group norm before it.
    """

    depth: int
    heads: int
    eps: float

    def module(self, style: Style) -> SpatialTransformer:
        """The transformer, named."""
        style = replace(style, eps=self.eps)
        return SpatialTransformer(self.depth, self.heads, style, name="transformer")


class TextBlock(nn.Module):
    """A residual block on x and its skip, then the transformer where the level has one."""

    features: int
    style: Style
    layout: Layout

    @nn.compact
    def __call__(
        self, x: Array, skip: Array | None, emb: Array, text: Text, gates: Gates = OPEN
    ) -> Array:
        """[b, h, w, m], [b, h, w, n] or None, [b, d], text -> [b, h, w, features]."""
        x = x if skip is None else primitives.by_batch(jnp.concatenate([x, skip], axis=-1))
        h = ResBlock(self.features, self.style, name="res")(x, emb, gates.skip)
        if self.layout.depth:
            h = self.layout.module(self.style)(h, *text, gates.identity, gates.skip)
        return h


class TextLevel(nn.Module):
    """The blocks of one level, either side of the U, and the resampler at its end.

    Attributes:
        features: channels of the level.
        widths: widths of its blocks.
        style: what all blocks share.
        layout: of each block's transformer.
        remat: name in ``REMATS``.
        resample: makes the module that changes the size at the end; None where the size stays.
    """

    features: int
    widths: Widths
    style: Style
    layout: Layout
    remat: str
    resample: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(
        self,
        x: Array,
        skips: list[Array] | None,
        emb: Array,
        text: Text,
        gates: list[Gates],
        size: tuple[int, int] | None = None,
    ) -> tuple[Array, list[Array]]:
        """Run the level.

        Args:
            x: [b, h, w, c].
            skips: one for each block on the way up; None on the way down.
            emb: [b, d].
            text: what the transformers read.
            gates: one for each block.
            size: (height, width) of the next level, on the way up.

        Returns:
            The level's result, and every intermediate one (the skips, on the way down).
        """
        made = []
        block = partial(REMATS[self.remat](TextBlock), self.features, self.style, self.layout)
        for j, gate in enumerate(gates):
            skip = None if skips is None else skips[j]
            x = block(name=f"block_{j}")(x, skip, emb, text, gate)
            made.append(x)
        if self.resample is not None:
            change = self.resample(self.features, self.style, name="resample")
            x = change(x, emb) if skips is None else change(x, emb, size)
            made.append(x)
        return x, made


class TextMiddle(nn.Module):
    """Residual block, transformer, residual block at the lowest size."""

    features: int
    style: Style
    layout: Layout

    @nn.compact
    def __call__(self, x: Array, emb: Array, text: Text, gates: Gates = OPEN) -> Array:
        """[b, h, w, features] -> the same."""
        h = ResBlock(self.features, self.style, name="res_0")(x, emb, gates.skip)
        if self.layout.depth:
            h = self.layout.module(self.style)(h, *text, gates.identity, gates.skip)
        return ResBlock(self.features, self.style, name="res_1")(h, emb, gates.skip)
