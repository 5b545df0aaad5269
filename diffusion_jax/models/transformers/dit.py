"""The diffusion transformer, DiT with adaLN-zero (Peebles & Xie 2023, section 3.2).

Parameter paths: ``embed`` (time and label), ``patches``, ``layer_0`` ... (``modulation``,
``attention``, ``mlp``), ``modulation_out``, ``proj_out``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.models import primitives
from diffusion_jax.models.attention import CrossAttention
from diffusion_jax.models.attention_memory import ATTENTIONS
from diffusion_jax.models.embeddings import TIME_FEATURES, ConditionEmbedding
from diffusion_jax.models.layers import Dense, PatchEmbedding
from diffusion_jax.models.unet.blocks import HOOKS, OPEN, REMATS, Gates, read_gates
from diffusion_jax.models.unet.plan import check_name, check_size

_ZEROS = nn.initializers.zeros_init()
FREQUENCIES = 256  # of time features


def positions(
    height: int, width: int, dim: int, first: tuple[int, int] = (0, 0), step: float = 1.0
) -> Float[Array, "n dim"]:
    """Sines and cosines of each position of a grid, float32 [height·width, dim], row by row.

    The first half of the channels is of the column, the second of the row; each half has sines,
    then cosines, at frequencies 10000^(-i/n) (Dosovitskiy et al. 2021 and DiT's code).

    Args:
        height: rows.
        width: columns.
        dim: dimension of the features.
        first: row and column of the first place.
        step: from one row or column to the next.

    Raises:
        ValueError: if 4 does not divide dim.
    """
    if dim % 4:
        raise ValueError(f"width={dim} is not a multiple of 4: positions need sines and cosines.")
    frequencies = step / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim // 4))

    def features(start: int, count: int) -> np.ndarray:
        angles = np.outer(start + np.arange(count), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)

    # Combined within the program, which stores a constant for each axis and not the whole grid.
    shape, (top, left) = (height, width, dim // 2), first
    columns = jnp.broadcast_to(features(left, width), shape)
    rows = jnp.broadcast_to(features(top, height)[:, None], shape)
    return jnp.concatenate([columns, rows], -1).reshape(height * width, dim)


def modulated(
    x: Float[Array, "b n c"],
    shift: Float[Array, "b #n c"],
    scale: Float[Array, "b #n c"],
    eps: float,
) -> Float[Array, "b n c"]:
    """layer_norm(x)·(1 + scale) + shift, without an affine map of its own; float32 inside.

    What modulates is [b, 1, c] for all tokens of an example, or [b, n, c] for each.
    """
    ones, zeros = jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1])
    normed = primitives.layer_norm(x, ones, zeros, eps).astype(jnp.float32)
    return (normed * (1 + scale) + shift).astype(x.dtype)


def read_out(
    tokens: Float[Array, "b n c"],
    emb: Float[Array, "b #n d"],
    size: tuple[int, int],
    patch: int,
    channels: int,
    dtype: Any,
) -> Float[Array, "b h w out"]:
    """Tokens, row by row, -> the image, float32, after one more modulated norm; zero at the start.

    Creates modulation_out and proj_out in the calling module.

    Args:
        tokens: [b, n, c].
        emb: the activated embedding, of all tokens or of each.
        size: size of the image.
        patch: side of a token's square of pixels.
        channels: of the image.
        dtype: dtype of the projection.
    """
    parts = Dense(2 * tokens.shape[-1], kernel_init=_ZEROS, name="modulation_out")(emb)
    shift, scale = jnp.split(parts, 2, axis=-1)
    tokens = modulated(tokens, shift, scale, 1e-6)
    out = Dense(patch**2 * channels, dtype, kernel_init=_ZEROS, name="proj_out")(tokens)
    grid = (out.shape[0], *(n // patch for n in size), out.shape[-1])
    return primitives.depth_to_space(out.reshape(grid), patch).astype(jnp.float32)


def _times(time: Array, grid: tuple[int, int]) -> Float[Array, "b #n"]:
    """One time for all tokens of an example, [b, 1], or one for each of the grid, [b, n]."""
    if time.shape[1:] not in ((), grid, (grid[0] * grid[1],)):
        raise ValueError(
            f"DiT was given times of shape {time.shape}: give one for each example, [b], or one "
            f"for each of its {grid[0]}x{grid[1]} patches, {(time.shape[0], *grid)}."
        )
    return time.reshape(time.shape[0], -1)


class DiTLayer(nn.Module):
    """x + gate·attention(mod(x)), then x + gate·mlp(mod(x)); both gates zero at initialisation.

    Attributes:
        heads: number of heads of the attention.
        mlp_ratio: hidden channels of the MLP per channel.
        mlp_eps: of the norm before the MLP.
        dropout: rate inside of the MLP; 0 outside training.
        dtype: dtype of the computation.
        kind: name in ``attention_memory.ATTENTIONS``.
    """

    heads: int
    mlp_ratio: float = 4.0
    mlp_eps: float = 1e-6
    dropout: float = 0.0
    dtype: Any = jnp.float32
    kind: str = "full"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], emb: Float[Array, "b #n d"], gates: Gates = OPEN
    ) -> Float[Array, "b n c"]:
        """[b, n, c], the activated embedding of all tokens or of each -> [b, n, c]."""
        c, start = x.shape[-1], x
        parts = Dense(6 * c, kernel_init=_ZEROS, name="modulation")(emb)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(parts, 6, axis=-1)
        h = modulated(x, shift, scale, 1e-6)
        attention = CrossAttention(
            self.heads, self.dtype, use_bias=True, attention=self.kind, name="attention"
        )
        h = attention(h, identity=gates.identity)
        x = x + (gate * h).astype(x.dtype)
        h = modulated(x, mlp_shift, mlp_scale, self.mlp_eps)
        h = _MLP(round(self.mlp_ratio * c), self.dropout, self.dtype, name="mlp")(h)
        x = x + (mlp_gate * h).astype(x.dtype)
        return x if gates.skip is None else primitives.gated(gates.skip, x, start)


class _MLP(nn.Module):
    """out(gelu(in(x))), GELU by tanh."""

    width: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        h = primitives.gelu_tanh(Dense(self.width, self.dtype, name="in")(x))
        h = nn.Dropout(self.dropout, deterministic=self.dropout == 0, name="dropout")(h)
        return Dense(x.shape[-1], self.dtype, name="out")(h)


class DiT(nn.Module):
    """A noise-conditional transformer: [b, h, w, c], [b], cond -> [b, h, w, out_channels].

    Attributes:
        width: channels of a token; 1152 in DiT-XL.
        depth: layers; 28 in DiT-XL.
        heads: number of heads of each attention; they must divide ``width``.
        patch: side of a token's square of pixels.
        out_channels: of the output: those of x, or twice as many with a learned variance.
        num_classes: 0 for no labels; else the label num_classes is the null class.
        mlp_ratio: hidden channels of the MLP per channel.
        mlp_eps: of the norm before the MLP.
        dropout: rate, while training.
        time_options: options of the sinusoidal time features, such as {"shift": 1.0}.
        dtype: of the computation; parameters, norms, softmax, the embedding of time and class and
            the output are float32 whatever it is.
        remat: name in ``REMATS``: what the backward pass of a layer recomputes.
        attention: name in ``attention_memory.ATTENTIONS``; "chunked" saves memory.
        scalars: see ``embeddings.ConditionEmbedding``.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 2
    out_channels: int = 4
    num_classes: int = 0
    mlp_ratio: float = 4.0
    mlp_eps: float = 1e-6
    dropout: float = 0.0
    time_options: Mapping[str, Any] | None = None
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "full"
    scalars: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b *n"],
        cond: Mapping[str, Any],
        *,
        train: bool = False,
    ) -> Float[Array, "b h w out"]:
        """Run the net.

        Args:
            x: scaled noisy input; h and w must be multiples of ``patch``.
            time: [b], or one for each token, [b, h / patch, w / patch] or row by row [b, n]; the
                published networks take the discrete time index.
            cond: {"label": int [b]}, or {} for the null class or a net without labels; float [b]
                for each of ``scalars``; and for guidance the gates of ``UNet``, a column for each
                layer.
            train: whether dropout is on, which needs an rng named "dropout".

        Returns:
            float32, zero at initialisation.

        Raises:
            ValueError: for a size that patches do not cover, an unknown cond key, or times or
                gates of another shape.
        """
        check_size(x.shape[1], x.shape[2], self.patch, 0)
        check_name("remat", self.remat, REMATS)
        check_name("attention", self.attention, ATTENTIONS)
        gates = read_gates(cond, x.shape[0], self.attention_layers, self.blocks)
        told = {key: value for key, value in cond.items() if key not in HOOKS}
        features = partial(TIME_FEATURES["sinusoidal"], **(self.time_options or {}))
        parts = (self.width, FREQUENCIES, features, self.num_classes, tuple(self.scalars))
        h, w = x.shape[1] // self.patch, x.shape[2] // self.patch
        times = _times(time, (h, w))
        emb = primitives.silu(ConditionEmbedding(*parts, name="embed")(times, told))
        tokens = PatchEmbedding(self.width, self.patch, self.dtype, True, name="patches")(x)
        tokens = tokens + positions(h, w, self.width).astype(tokens.dtype)
        for name in self.blocks:
            layer = REMATS[self.remat](DiTLayer)(
                self.heads, self.mlp_ratio, self.mlp_eps, self.dropout if train else 0.0,
                jnp.dtype(self.dtype), self.attention, name=name,
            )  # fmt: skip
            tokens = layer(tokens, emb, gates[name])
        size = (x.shape[1], x.shape[2])
        return read_out(tokens, emb, size, self.patch, self.out_channels, self.dtype)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the layers, in order: that of "skip_blocks"."""
        return tuple(f"layer_{i}" for i in range(self.depth))

    @property
    def attention_layers(self) -> tuple[str, ...]:
        """All layers: the order of "identity_attention"."""
        return self.blocks
