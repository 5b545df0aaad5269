"""The U-Net of ADM (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", sec. 3).

Parameter paths: ``embed``, ``conv_in``, ``down_0`` (full size) ..., ``mid``, ``up_0`` (lowest size, the
first to run) ..., ``norm_out``, ``conv_out``; in a level ``block_0`` ... (``res``, ``attention``) and
``resample``.  Rematerialisation changes no path; ``scan_blocks`` replaces a run of equal blocks i to j
by one ``blocks_i_j`` whose arrays have a leading axis (see ``stack_blocks``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models.attention import SelfAttention
from diffusion_jax.models.layers import (
    Conv,
    GroupNormSilu,
    ResBlock,
    Style,
)
from diffusion_jax.models.primitives import silu

Widths = list[tuple[int, int]]
"""Of each block of a level: channels that come from the block before, and from the skip."""


class Block(nn.Module):
    """A residual block on x and its skip, then attention where the level has it."""

    features: int
    style: Style
    attention: bool

    @nn.compact
    def __call__(self, x: Array, skip: Array | None, emb: Array) -> Array:
        """[b, h, w, m], [b, h, w, n] or None, [b, d] -> [b, h, w, features]."""
        h = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        h = ResBlock(self.features, self.style, name="res")(h, emb)
        return SelfAttention(self.style, name="attention")(h) if self.attention else h


class _ScannedBlock(Block):
    """Block as a scan body: (carry, skip, emb) -> (carry, output)."""

    def __call__(self, x: Array, skip: Array | None, emb: Array) -> tuple[Array, Array]:
        h = super().__call__(x, skip, emb)
        return h, h


class Level(nn.Module):
    """The blocks of one level, either side of the U, and the resampler at its end.

    Attributes:
        features: channels of the level.
        widths: of its blocks.
        style: what all blocks share.
        attention: whether each block ends in attention.
        remat: name in ``REMATS``.
        scan_blocks: whether runs of equal blocks are scanned.
        resample: makes the module that changes the size at the end; None where the size stays.
    """

    features: int
    widths: Widths
    style: Style
    attention: bool
    remat: str
    scan_blocks: bool
    resample: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(
        self, x: Array, skips: list[Array] | None, emb: Array
    ) -> tuple[Array, list[Array]]:
        """Run the level.

        Args:
            x: [b, h, w, c].
            skips: one for each block on the way up; None on the way down.
            emb: [b, d].

        Returns:
            The level's result, and every intermediate one (the skips, on the way down).
        """
        made = []
        for first, last in runs(self.widths, self.scan_blocks):
            mine = None if skips is None else skips[first : last + 1]
            out = self._block(x, mine, emb, first) if first == last else None
            out = self._scan(x, mine, emb, first, last) if out is None else out
            x = out[-1]
            made += out
        if self.resample is not None:
            x = self.resample(self.features, self.style, name="resample")(x, emb)
            made.append(x)
        return x, made

    def _block(self, x: Array, skips: list[Array] | None, emb: Array, index: int) -> list[Array]:
        block = REMATS[self.remat](Block)(
            self.features, self.style, self.attention, name=f"block_{index}"
        )
        return [block(x, None if skips is None else skips[0], emb)]

    def _scan(
        self, x: Array, skips: list[Array] | None, emb: Array, first: int, last: int
    ) -> list[Array]:
        scanned = nn.scan(
            REMATS[self.remat](_ScannedBlock, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=last - first + 1,
        )(self.features, self.style, self.attention, name=f"blocks_{first}_{last}")
        _, made = scanned(x, None if skips is None else jnp.stack(skips), emb)
        return list(made)


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest size."""

    features: int
    style: Style
    attention: bool
    normalise: bool

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        """[b, h, w, features] -> the same."""
        x = ResBlock(self.features, self.style, name="res_0")(x, emb)
        if self.attention:
            x = SelfAttention(self.style, self.normalise, name="attention")(x)
        return ResBlock(self.features, self.style, name="res_1")(x, emb)


class UNet(nn.Module):
    """A noise-conditional U-Net: [b, h, w, c], [b], cond -> [b, h, w, out_channels].

    Attributes:
        channels: base width.
        channel_mults: width of each level as a multiple of ``channels`` (rounded); the size halves
            between levels.
        num_res_blocks: residual blocks per level on the way down (one more on the way up); an int, or
            one for each level.
        attention_levels: indices of the levels whose blocks attend, 0 being the full size.
        head_dim: channels of an attention head; None for a single head.
        out_channels: of the output: those of x, or twice as many with a learned variance.
        num_classes: 0 for no labels; else the label num_classes is the null class.
        dropout: rate, while training.
        conditioning: name in ``layers.CONDITIONINGS``.
        downsample: name in ``layers.DOWNSAMPLES``, or one for each change of size.
        upsample: name in ``layers.UPSAMPLES``, or one for each change of size, in order of execution.
        patch: the net works on patches of this side, folded into channels; 1 for none.
        groups: most groups of a norm (see ``layers.num_groups``).
        group_channels: fewest channels of a group.
        eps: of the norms.
        skip_scale: factor on residual sums; sqrt(1/2) in NCSN++.
        mid_attention: whether the middle attends.
        mid_norm: whether the middle attention normalises its input.
        downsample_padding: before and after each axis of strided convolutions.
        time_features: name in ``embeddings.TIME_FEATURES``.
        time_options: its options, such as {"max_period": 1e4}.
        time_dim: width of the embedding; None for 4·channels.
        dtype: of the computation; parameters, norm statistics, softmax, time features and the output
            are float32 whatever it is.
        remat: name in ``REMATS``: what the backward pass of a block recomputes.
        scan_blocks: scan runs of equal blocks within a level (faster compilation of deep levels).
    """

    channels: int = 64
    channel_mults: tuple[float, ...] = (1, 2, 2)
    num_res_blocks: int | tuple[int, ...] = 2
    attention_levels: tuple[int, ...] = ()
    head_dim: int | None = 64
    out_channels: int = 3
    num_classes: int = 0
    dropout: float = 0.0
    conditioning: str = "scale_shift"
    downsample: str | tuple[str, ...] = "residual"
    upsample: str | tuple[str, ...] = "residual"
    patch: int = 1
    groups: int = 32
    group_channels: int = 4
    eps: float = 1e-5
    skip_scale: float = 1.0
    mid_attention: bool = True
    mid_norm: bool = True
    downsample_padding: tuple[int, int] = (1, 1)
    time_features: str = "sinusoidal"
    time_options: Mapping[str, Any] | None = None
    time_dim: int | None = None
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_blocks: bool = False

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
            x: scaled noisy input; h and w must be multiples of patch·2^(levels - 1).
            time: [b], what ``core.network_io.TIME_INPUTS`` makes of the level.
            cond: {"label": int [b]}, or {} for the null class or a net without labels.
            train: whether dropout is on, which needs an rng named "dropout".

        Returns:
            float32, zero at initialisation.

        Raises:
            ValueError: for a size that cannot be halved, an unknown name or cond key.
        """
        self._check(x)
        style, dtype = self._style(train), jnp.dtype(self.dtype)
        emb = silu(self._embedding()(time, cond)).astype(dtype)
        h = space_to_depth(x.astype(dtype), self.patch)
        h = Conv(self.widths[0], dtype, name="conv_in")(h)
        skips = [h]
        for i in range(len(self.widths)):
            h, made = self._level("down", i, style)(h, None, emb)
            skips += made
        h = Middle(self.widths[-1], style, self.mid_attention, self.mid_norm, name="mid")(h, emb)
        for i in range(len(self.widths)):
            level = self._level("up", i, style)
            mine = [skips.pop() for _ in level.widths]
            h, _ = level(h, mine, emb)
        h = GroupNormSilu(style, name="norm_out")(h)
        out = Conv(
            self.out_channels * self.patch**2,
            dtype,
            kernel_init=nn.initializers.zeros_init(),
            name="conv_out",
        )(h)
        return depth_to_space(out, self.patch).astype(jnp.float32)
