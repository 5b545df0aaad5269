"""The U-Net of ADM (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", §3).

Parameter paths: ``embed``, ``conv_in``, ``down_0`` (full size) ..., ``mid``, ``up_0`` (lowest size,
the first to run) ..., ``norm_out``, ``conv_out``; in a level ``block_0`` ... (``res``,
``attention``) and ``resample``.  Rematerialisation changes no path; ``scan_blocks`` replaces a run
of equal blocks i to j by one ``blocks_i_j`` whose arrays have a leading axis (``stack_blocks``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.types import Params
from diffusion_jax.models.attention_memory import ATTENTIONS
from diffusion_jax.models.embeddings import TIME_FEATURES, ConditionEmbedding
from diffusion_jax.models.layers import (
    CONDITIONINGS,
    DOWNSAMPLES,
    UPSAMPLES,
    Conv,
    GroupNormSilu,
    Style,
)
from diffusion_jax.models.primitives import depth_to_space, silu, space_to_depth
from diffusion_jax.models.unet.blocks import HOOKS, REMATS, Gates, Level, Middle, read_gates
from diffusion_jax.models.unet.plan import (
    Widths,
    attends,
    block_names,
    check_name,
    check_size,
    check_time,
    down_widths,
    per_level,
    runs,
    up_widths,
)

# For each side, the field that names its resamplers, and their table.
_SIDES = {"down": ("downsample", DOWNSAMPLES), "up": ("upsample", UPSAMPLES)}


class UNet(nn.Module):
    """A noise-conditional U-Net: [b, h, w, c], [b], cond -> [b, h, w, out_channels].

    Attributes:
        channels: base width.
        channel_mults: width of each level as a multiple of ``channels`` (rounded); the size
            halves between levels.
        num_res_blocks: residual blocks per level on the way down (one more on the way up); an int,
            or one for each level.
        attention_levels: indices of the levels whose blocks attend, 0 being the full size.
        head_dim: channels of an attention head; None for a single head.
        out_channels: of the output: those of x, or twice as many with a learned variance.
        num_classes: 0 for no labels; else the label num_classes is the null class.
        dropout: rate, while training.
        conditioning: name in ``layers.CONDITIONINGS``.
        downsample: name in ``layers.DOWNSAMPLES``, or one for each change of size.
        upsample: name in ``layers.UPSAMPLES``, or one for each change of size, lowest first.
        patch: the net works on patches of this side, folded into channels; 1 for none.
        groups: most groups of a norm (see ``layers.num_groups``).
        group_channels: fewest channels of a group.
        eps: epsilon of the norms.
        skip_scale: factor on residual sums; sqrt(1/2) in NCSN++.
        mid_attention: whether the middle attends.
        mid_norm: whether the middle attention normalises its input.
        downsample_padding: before and after each axis of strided convolutions.
        time_features: name in ``embeddings.TIME_FEATURES``.
        time_options: its options, such as {"max_period": 1e4}.
        time_dim: width of the embedding; None for 4·channels.
        dtype: dtype of the computation; parameters, norm statistics, softmax, time features and the
            output are float32 whatever it is.
        remat: name in ``REMATS``: what the backward pass of a block recomputes.
        scan_blocks: scan runs of equal blocks within a level (faster compilation of deep levels).
        attention: name in ``attention_memory.ATTENTIONS``; "chunked" saves memory.
        scalars: see ``embeddings.ConditionEmbedding``.
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
            x: scaled noisy input; h and w must be multiples of patch·2^(levels - 1).
            time: [b], what ``core.network_io.TIME_INPUTS`` makes of the level.
            cond: {"label": int [b]}, or {} for the null class or a net without labels; float [b]
                for each of ``scalars``; and for guidance "identity_attention", float
                [b, len(attention_layers)], 1 where an attention map becomes the identity, and
                "skip_blocks", float [b, len(blocks)], 1 where a block returns its input.
            train: whether dropout is on, which needs an rng named "dropout".

        Returns:
            float32, zero at initialisation.

        Raises:
            ValueError: for a size that cannot be halved, an unknown name or cond key, gates of
                another shape, or another time than one for each example.
        """
        self._check(x)
        check_time(type(self).__name__, time.shape)
        style, features = self._style(train), self.features
        gates = self._gates(cond, x.shape[0])
        inputs = {key: value for key, value in cond.items() if key not in HOOKS}
        emb = silu(self._embedding()(time, inputs)).astype(style.dtype)
        of_level = lambda level: [
            gates[f"{level.name}/block_{j}"] for j in range(len(level.widths))
        ]
        h = Conv(features[0], style.dtype, name="conv_in")(space_to_depth(x, self.patch))
        skips = [h]
        for level in self._levels("down", style, features, down_widths(features, self.counts)):
            h, made = level(h, None, emb, of_level(level))
            skips += made
        middle = Middle(features[-1], style, self.mid_attention, self.mid_norm, name="mid")
        h = middle(h, emb, gates["mid"])
        ways_up = up_widths(features, self.counts)
        for level in self._levels("up", style, features[::-1], ways_up):
            h, _ = level(h, [skips.pop() for _ in level.widths], emb, of_level(level))
        h = GroupNormSilu(style, name="norm_out")(h)
        folded = self.out_channels * self.patch**2
        zeros = nn.initializers.zeros_init()
        out = Conv(folded, style.dtype, kernel_init=zeros, name="conv_out")(h)
        return depth_to_space(out, self.patch).astype(jnp.float32)

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of each level, full size first."""
        return tuple(max(1, round(self.channels * m)) for m in self.channel_mults)

    @property
    def counts(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down."""
        return per_level(self.num_res_blocks, len(self.channel_mults), "num_res_blocks")

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks in the order that they run, which is that of "skip_blocks"."""
        return block_names(self.counts)

    @property
    def attention_layers(self) -> tuple[str, ...]:
        """Those blocks that attend, in the same order: that of "identity_attention"."""
        levels = len(self.channel_mults)
        here = lambda name: attends(name, levels, self.attention_levels, self.mid_attention)
        return tuple(name for name in self.blocks if here(name))

    def _gates(self, cond: Mapping[str, Any], batch: int) -> dict[str, Gates]:
        """Name of a block -> its gates."""
        return read_gates(cond, batch, self.attention_layers, self.blocks)

    def _style(self, train: bool) -> Style:
        return Style(
            dtype=jnp.dtype(self.dtype),
            conditioning=self.conditioning,
            dropout=self.dropout if train else 0.0,
            groups=self.groups,
            group_channels=self.group_channels,
            eps=self.eps,
            head_dim=self.head_dim,
            skip_scale=self.skip_scale,
            downsample_padding=self.downsample_padding,
            attention=self.attention,
        )

    def _embedding(self) -> ConditionEmbedding:
        return ConditionEmbedding(
            dim=self.time_dim or 4 * self.channels,
            feature_dim=self.channels,
            features=partial(TIME_FEATURES[self.time_features], **(self.time_options or {})),
            num_classes=self.num_classes,
            scalars=tuple(self.scalars),
            name="embed",
        )

    def _levels(
        self, side: str, style: Style, features: tuple[int, ...], widths: list[Widths]
    ) -> Iterator[Level]:
        """The levels of one side, in order of execution."""
        last = len(features) - 1
        field, table = _SIDES[side]
        names = per_level(getattr(self, field), last, field)
        for i, (f, w) in enumerate(zip(features, widths, strict=True)):
            at = i if side == "down" else last - i
            yield Level(
                features=f,
                widths=w,
                style=style,
                attention=at in self.attention_levels,
                remat=self.remat,
                scan_blocks=self.scan_blocks,
                resample=table[names[i]] if i < last else None,
                name=f"{side}_{i}",
            )

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of."""
        return self.patch * 2 ** (len(self.channel_mults) - 1)

    def _check(self, x: Array) -> None:
        halvings = len(self.channel_mults) - 1
        check_size(x.shape[1], x.shape[2], self.patch, halvings)
        check_name("conditioning", self.conditioning, CONDITIONINGS)
        check_name("time_features", self.time_features, TIME_FEATURES)
        check_name("remat", self.remat, REMATS)
        check_name("attention", self.attention, ATTENTIONS)
        for field, table in _SIDES.values():
            for name in per_level(getattr(self, field), halvings, field):
                check_name(field, name, table)
        if odd := [i for i in self.attention_levels if not 0 <= i <= halvings]:
            raise ValueError(
                f"attention_levels={self.attention_levels} names {odd}, but the levels are 0 to "
                f"{halvings}: each is an index into channel_mults={self.channel_mults}."
            )


def stack_blocks(unet: UNet, params: Params) -> Params:
    """Parameters of the net without ``scan_blocks`` -> those of the same net with it.

    Args:
        unet: the net; its own ``scan_blocks`` is not read.
        params: parameters of the unrolled net.
    """
    out = dict(params)
    ways = {
        "down": down_widths(unet.features, unet.counts),
        "up": up_widths(unet.features, unet.counts),
    }
    for side, levels in ways.items():
        for i, widths in enumerate(levels):
            level = dict(out[f"{side}_{i}"])
            for first, last in runs(widths, True):
                if first < last:
                    blocks = [level.pop(f"block_{j}") for j in range(first, last + 1)]
                    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
                    level[f"blocks_{first}_{last}"] = stacked
            out[f"{side}_{i}"] = level
    return out
