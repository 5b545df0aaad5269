"""MMDiT: image and text as two streams of tokens that attend to both (Stable Diffusion 3 and 3.5).

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
section 4.  Parameter paths: ``embed`` (time and label), ``pooled``, ``patches``, ``positions`` if
they are stored, ``context``, ``layer_0`` ... (of each stream ``modulation``, ``qkv``, ``out``,
``mlp``, as in ``image_qkv``; ``second_qkv`` and ``second_out`` in layers that attend twice),
``modulation_out``, ``proj_out``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models import primitives
from diffusion_jax.models.attention_memory import ATTENTIONS
from diffusion_jax.models.embeddings import TIME_FEATURES, ConditionEmbedding
from diffusion_jax.models.layers import Dense, PatchEmbedding
from diffusion_jax.models.transformers.dit import FREQUENCIES, positions, read_out
from diffusion_jax.models.transformers.mmdit_blocks import QK_NORMS, JointLayer
from diffusion_jax.models.unet.blocks import HOOKS, REMATS, read_gates
from diffusion_jax.models.unet.plan import check_keys, check_name, check_size, check_time
from diffusion_jax.models.unet.text_blocks import AddedEmbedding, Text


class StoredPositions(nn.Module):
    """Position embeddings stored with a checkpoint's weights; not trained.

    Attributes:
        side: rows, and columns, of the table.
        dim: dimension of the features.
        step: distance of rows and of columns, where the table is initialised.
    """

    side: int
    dim: int
    step: float

    @nn.compact
    def __call__(self) -> Float[Array, "n dim"]:
        """[side², dim]."""
        make = lambda key, shape: positions(self.side, self.side, self.dim, step=self.step)
        return jax.lax.stop_gradient(self.param("table", make, (self.side**2, self.dim)))


class Cut(NamedTuple):
    """A part of the square of positions.

    Attributes:
        side: side of the square, in patches.
        dim: dimension of the features.
        step: from one row or column to the next.
        first: row and column of the part.
        size: its rows and columns.
    """

    side: int
    dim: int
    step: float
    first: tuple[int, int]
    size: tuple[int, int]


def _computed(cut: Cut) -> Array:
    return positions(*cut.size, cut.dim, cut.first, cut.step)


def _stored(cut: Cut) -> Array:
    table = StoredPositions(cut.side, cut.dim, cut.step, name="positions")()
    (top, left), (height, width) = cut.first, cut.size
    square = table.reshape(cut.side, cut.side, cut.dim)
    return square[top : top + height, left : left + width].reshape(height * width, cut.dim)


class MMDiT(nn.Module):
    """[b, h, w, c], [b], cond -> [b, h, w, out_channels].  The defaults are SD3-medium.

    Attributes:
        width: channels of a token; 64·depth in the published sizes.
        depth: layers.
        heads: number of heads of each attention; they must divide ``width``.
        patch: side of a token's square of pixels.
        out_channels: of the output: those of x, or twice as many with a learned variance.
        num_classes: 0 for no labels; else the label num_classes is the null class.
        pooled_features: width of cond's "pooled"; 0 for a net without it.
        max_side: patches along a side of the square of positions, from whose middle an image's are
            cropped.
        grid: length of a side of that square; None for 1 for each patch.
        positions: name in ``POSITIONS``: computed, or stored with the weights.
        second_attention: layers with a second self-attention of the image tokens (SD3.5).
        qk_norm: name in ``mmdit_blocks.QK_NORMS``: normalisation of queries and keys.
        time_options: options of the sinusoidal time features, such as {"shift": 1.0}.
        dtype: of the computation; parameters, norms, softmax, the embedding of time and pooled
            text, what modulates and the output are float32 whatever it is.
        remat: name in ``REMATS``: what the backward pass of a layer recomputes.
        attention: name in ``attention_memory.ATTENTIONS``; "chunked" saves memory.
        scalars: see ``embeddings.ConditionEmbedding``.
    """

    width: int = 1536
    depth: int = 24
    heads: int = 24
    patch: int = 2
    out_channels: int = 16
    num_classes: int = 0
    pooled_features: int = 2048
    max_side: int = 192
    grid: int | None = 64
    positions: str = "computed"
    second_attention: tuple[int, ...] = ()
    qk_norm: str = "none"
    time_options: Mapping[str, Any] | None = None
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "full"
    scalars: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        cond: Mapping[str, Any],
        *,
        train: bool = False,
    ) -> Float[Array, "b h w out"]:
        """Run the net.

        Args:
            x: scaled noisy input; h and w must be multiples of ``patch``.
            time: [b]; the published networks take 1000·t.
            cond: "context" [b, n, d], the states of a text, whose order does not matter; with
                ``pooled_features`` also "pooled" [b, p]; float [b] for each of ``scalars``.  It may
                have "context_mask" bool [b, n], False for padding; "label" of a net with labels;
                and for guidance the gates of ``UNet``, a column for each layer: 1 where the image's
                tokens attend to themselves alone, or where both streams stay as they are.
            train: not read: the net has no dropout.

        Returns:
            float32, zero at initialisation.

        Raises:
            ValueError: for a size that patches do not cover or that is beyond the positions, an
                unknown name, heads that do not divide the width, a cond key that is missing or
                unknown, gates of another shape, or another time than one for each example.
        """
        self._check(x, cond)
        check_time(type(self).__name__, time.shape)
        dtype, size = jnp.dtype(self.dtype), (x.shape[1], x.shape[2])
        gates = read_gates(cond, x.shape[0], self.attention_layers, self.blocks)
        emb = primitives.silu(self._embed(time, cond))[:, None]
        tokens = PatchEmbedding(self.width, self.patch, dtype, True, name="patches")(x)
        tokens = tokens + self._positions(size).astype(dtype)
        states, mask = Text.of(cond)
        text = Dense(self.width, dtype, name="context")(states)
        if mask is not None:
            mask = jnp.concatenate([jnp.ones(tokens.shape[:2], bool), mask], axis=1)
        for i, name in enumerate(self.blocks):
            layer = REMATS[self.remat](JointLayer)(
                self.heads, i == self.depth - 1, i in self.second_attention, self.qk_norm, dtype,
                self.attention, name=name,
            )  # fmt: skip
            tokens, text = layer(tokens, text, emb, mask, gates[name])
        return read_out(tokens, emb, size, self.patch, self.out_channels, dtype)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the layers, in order: that of "skip_blocks"."""
        return tuple(f"layer_{i}" for i in range(self.depth))

    @property
    def attention_layers(self) -> tuple[str, ...]:
        """All layers: the order of "identity_attention"."""
        return self.blocks

    def _embed(self, time: Array, cond: Mapping[str, Any]) -> Array:
        features = partial(TIME_FEATURES["sinusoidal"], **(self.time_options or {}))
        parts = (self.width, FREQUENCIES, features, self.num_classes, tuple(self.scalars))
        told = {key: cond[key] for key in ("label", *self.scalars) if key in cond}
        emb = ConditionEmbedding(*parts, name="embed")(time, told)
        if not self.pooled_features:
            return emb
        return emb + AddedEmbedding(self.width, name="pooled")(cond["pooled"])

    def _positions(self, size: tuple[int, int]) -> Array:
        """Position embeddings of an image, [h·w / patch², width], from the middle of the square."""
        height, width = (n // self.patch for n in size)
        first = ((self.max_side - height) // 2, (self.max_side - width) // 2)
        step = 1.0 if self.grid is None else self.grid / self.max_side
        cut = Cut(self.max_side, self.width, step, first, (height, width))
        return POSITIONS[self.positions](cut)

    def _check(self, x: Array, cond: Mapping[str, Any]) -> None:
        check_size(x.shape[1], x.shape[2], self.patch, 0)
        most = self.max_side * self.patch
        if max(x.shape[1:3]) > most:
            raise ValueError(
                f"The size {x.shape[1]}x{x.shape[2]} is beyond max_side={self.max_side} patches: "
                f"both sides must be at most {most}."
            )
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}: set others.")
        check_name("positions", self.positions, POSITIONS)
        check_name("qk_norm", self.qk_norm, QK_NORMS)
        check_name("remat", self.remat, REMATS)
        check_name("attention", self.attention, ATTENTIONS)
        needed = {"context", *self.scalars} | ({"pooled"} if self.pooled_features else set())
        more = {"context_mask", *HOOKS} | ({"label"} if self.num_classes else set())
        fields = (
            f"pooled_features={self.pooled_features}, num_classes={self.num_classes}, "
            f"scalars={tuple(self.scalars)}"
        )
        check_keys(cond, needed, more, fields)
        pooled = self.pooled_features and cond["pooled"].shape[-1]
        if pooled != self.pooled_features:
            raise ValueError(
                f"cond['pooled'] has {pooled} features, but pooled_features="
                f"{self.pooled_features}: pass the pooled text of the right encoders."
            )


# Each, within a MMDiT: a part of the square -> its positions [rows·columns, dim].
POSITIONS: dict[str, Callable[[Cut], Array]] = {"computed": _computed, "stored": _stored}
