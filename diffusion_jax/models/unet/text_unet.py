"""The text-conditional U-Net of Stable Diffusion 1.x, 2.x and SDXL.

Rombach et al. 2022, section 3.3 and appendix E; Podell et al. 2023 for the added embeddings and the
depths of SDXL.  Parameter paths: ``embed`` (time and label), ``added``, ``conv_in``, ``down_0``
(full size) ..., ``mid``, ``up_0`` (lowest size, the first to run) ..., ``norm_out``, ``conv_out``;
in a level ``block_0`` ... (``res``, ``transformer``) and ``resample``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models.attention_memory import ATTENTIONS
from diffusion_jax.models.embeddings import GUIDANCE, TIME_FEATURES, ConditionEmbedding
from diffusion_jax.models.layers import CONDITIONINGS, Conv, ConvDown, ConvUp, GroupNormSilu, Style
from diffusion_jax.models.primitives import depth_to_space, silu, space_to_depth
from diffusion_jax.models.unet.blocks import HOOKS, REMATS, Gates, read_gates
from diffusion_jax.models.unet.plan import (
    Widths,
    block_names,
    check_keys,
    check_name,
    check_size,
    check_time,
    down_widths,
    per_level,
    up_widths,
)
from diffusion_jax.models.unet.text_blocks import (
    AddedEmbedding,
    Layout,
    Text,
    TextLevel,
    TextMiddle,
)

_RESAMPLES = {"down": ConvDown, "up": ConvUp}


class TextEncoderSide(nn.Module):
    """The part that U-Net and ControlNet share: the embedding, the down path, the middle.

    Attributes:
        channels: base width.
        channel_mults: width of each level as a multiple of ``channels`` (rounded); the size
            halves between levels, an odd one rounded up.
        num_res_blocks: residual blocks per level on the way down (one more on the way up); an int,
            or one for each level.
        depths: transformer layers of each block of a level, 0 for none; an int, or one for each.
        mid_depth: transformer layers of the middle; None for the last level's.
        heads: of each attention; an int, or one for each level, whose width it must divide.
        added_features: 0, or the width of the features of each of cond's "time_ids", which with
            "pooled" give a summand of the embedding (256 in SDXL).
        num_classes: 0 for no labels; else cond needs "label", 0 to num_classes.
        dropout: rate, while training.
        conditioning: name in ``layers.CONDITIONINGS``.
        groups: most groups of a norm (see ``layers.num_groups``).
        group_channels: fewest channels of a group.
        eps: epsilon of the norms of residual blocks.
        transformer_eps: of the group norm before a transformer.
        downsample_padding: before and after each axis of strided convolutions.
        time_features: name in ``embeddings.TIME_FEATURES``.
        time_options: its options, such as {"shift": 1.0}.
        time_dim: width of the embedding; None for 4·channels.
        dtype: of the computation; parameters, norm statistics, softmax, the embedding of time and
            the output are float32 whatever it is.
        remat: name in ``REMATS``: what the backward pass of a block recomputes.
        attention: name in ``attention_memory.ATTENTIONS``; "chunked" saves memory.
        scalars, guidance_features: see ``embeddings.ConditionEmbedding``.
    """

    channels: int = 320
    channel_mults: tuple[float, ...] = (1, 2, 4, 4)
    num_res_blocks: int | tuple[int, ...] = 2
    depths: int | tuple[int, ...] = (1, 1, 1, 0)
    mid_depth: int | None = 1
    heads: int | tuple[int, ...] = 8
    added_features: int = 0
    num_classes: int = 0
    dropout: float = 0.0
    conditioning: str = "additive"
    groups: int = 32
    group_channels: int = 1
    eps: float = 1e-5
    transformer_eps: float = 1e-6
    downsample_padding: tuple[int, int] = (1, 1)
    time_features: str = "sinusoidal"
    time_options: Mapping[str, Any] | None = None
    time_dim: int | None = None
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "full"
    scalars: tuple[str, ...] = ()
    guidance_features: int = 0

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of each level, full size first."""
        return tuple(max(1, round(self.channels * m)) for m in self.channel_mults)

    @property
    def counts(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down."""
        return per_level(self.num_res_blocks, len(self.channel_mults), "num_res_blocks")

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Of each level's transformers, then of the middle's."""
        levels = len(self.channel_mults)
        depths = per_level(self.depths, levels, "depths")
        heads = per_level(self.heads, levels, "heads")
        mid = depths[-1] if self.mid_depth is None else self.mid_depth
        pairs = zip((*depths, mid), (*heads, heads[-1]), strict=True)
        return tuple(Layout(d, h, self.transformer_eps) for d, h in pairs)

    @property
    def _numbers(self) -> set[str]:
        """Keys of cond with a number for each example."""
        return {*self.scalars} | ({GUIDANCE} if self.guidance_features else set())

    def _style(self, train: bool) -> Style:
        return Style(
            dtype=jnp.dtype(self.dtype),
            conditioning=self.conditioning,
            dropout=self.dropout if train else 0.0,
            groups=self.groups,
            group_channels=self.group_channels,
            eps=self.eps,
            downsample_padding=self.downsample_padding,
            attention=self.attention,
        )

    def _embed(self, time: Array, cond: Mapping[str, Any]) -> Array:
        """The activated embedding, float32 [b, d]."""
        check_time(type(self).__name__, time.shape)
        dim = self.time_dim or 4 * self.channels
        features = partial(TIME_FEATURES[self.time_features], **(self.time_options or {}))
        told = {"label": cond["label"]} if self.num_classes else {}
        told |= {name: cond[name] for name in self._numbers}
        parts = (dim, self.channels, features, self.num_classes, tuple(self.scalars))
        h = ConditionEmbedding(*parts, self.guidance_features, name="embed")(time, told)
        if self.added_features:
            added = AddedEmbedding(dim, features, self.added_features, name="added")
            h = h + added(cond["pooled"], cond["time_ids"])
        return silu(h)

    def _levels(
        self, side: str, style: Style, features: tuple[int, ...], widths: list[Widths]
    ) -> Iterator[TextLevel]:
        """The levels of one side, in order of execution."""
        last = len(features) - 1
        for i, (f, w) in enumerate(zip(features, widths, strict=True)):
            layout = self.layouts[i if side == "down" else last - i]
            resample = _RESAMPLES[side] if i < last else None
            yield TextLevel(f, w, style, layout, self.remat, resample, name=f"{side}_{i}")

    def _down(
        self, h: Array, emb: Array, text: Text, style: Style, gates: Mapping[str, Gates]
    ) -> tuple[Array, list[Array]]:
        """From the first convolution's output to the middle's, and the skips."""
        skips = [h]
        for level in self._levels("down", style, self.features, self._down_widths()):
            h, made = level(h, None, emb, text, _of(gates, level))
            skips += made
        middle = TextMiddle(self.features[-1], style, self.layouts[-1], name="mid")
        return middle(h, emb, text, gates["mid"]), skips

    def _down_widths(self) -> list[Widths]:
        return down_widths(self.features, self.counts)

    def _check(self, x: Array, cond: Mapping[str, Any], more: set[str]) -> None:
        """Raise ValueError for a name or a cond that does not fit the network."""
        check_name("remat", self.remat, REMATS)
        check_name("attention", self.attention, ATTENTIONS)
        check_name("conditioning", self.conditioning, CONDITIONINGS)
        check_name("time_features", self.time_features, TIME_FEATURES)
        needed = {"context"} | ({"label"} if self.num_classes else set())
        needed |= {"pooled", "time_ids"} if self.added_features else set()
        needed |= self._numbers
        fields = (
            f"added_features={self.added_features}, num_classes={self.num_classes}, "
            f"scalars={tuple(self.scalars)}, guidance_features={self.guidance_features}"
        )
        check_keys(cond, needed, {"context_mask", *more}, fields)


class TextUNet(TextEncoderSide):
    """A text-conditional U-Net: [b, h, w, c], [b], cond -> [b, h, w, out_channels].

    Attributes in addition to those of ``TextEncoderSide``:
        out_channels: number of channels of the output.
        patch: the net works on patches of this side, folded into channels; 1 for none.
    """

    out_channels: int = 4
    patch: int = 1

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
            time: [b]; the published networks take the discrete time index.
            cond: "context" [b, n, d], the states of a text; with ``added_features`` also "pooled"
                [b, p] and "time_ids" [b, k]; with ``num_classes`` "label" int [b]; float [b] for
                each of ``scalars``, and with ``guidance_features`` "guidance_scale".  It may have
                "context_mask" bool [b, n], False for padding; "control", what ``ControlNet``
                returns, to add to the skips and the middle; and, for guidance,
                "identity_attention" [b, len(attention_layers)], 1 where the image's attention to
                itself becomes the identity, and "skip_blocks" [b, len(blocks)], 1 where a block
                returns its input.
            train: whether dropout is on, which needs an rng named "dropout".

        Returns:
            float32, zero at initialisation.

        Raises:
            ValueError: for a size that has no whole patches, an unknown name, a cond key that is
                missing or unknown, gates or a control of another shape, or another time than one
                for each example.
        """
        check_size(x.shape[1], x.shape[2], self.patch, 0)
        x = space_to_depth(x, self.patch)
        self._check(x, cond, {"control", *HOOKS})
        style, features = self._style(train), self.features
        gates = read_gates(cond, x.shape[0], self.attention_layers, self.blocks)
        text = Text.of(cond)
        emb = self._embed(time, cond).astype(style.dtype)
        h = Conv(features[0], style.dtype, name="conv_in")(x)
        h, skips = self._down(h, emb, text, style, gates)
        h, skips = _controlled(h, skips, cond.get("control"))
        for level in self._levels("up", style, features[::-1], up_widths(features, self.counts)):
            own = [skips.pop() for _ in level.widths]
            # An odd size was rounded up on the way down: what meets the next skip has its size.
            size = (skips[-1].shape[1], skips[-1].shape[2]) if skips else None
            h, _ = level(h, own, emb, text, _of(gates, level), size)
        h = GroupNormSilu(style, name="norm_out")(h)
        zeros = nn.initializers.zeros_init()
        folded = self.out_channels * self.patch**2
        out = Conv(folded, style.dtype, kernel_init=zeros, name="conv_out")(h)
        return depth_to_space(out, self.patch).astype(jnp.float32)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks in the order that they run, which is that of "skip_blocks"."""
        return block_names(self.counts)

    @property
    def attention_layers(self) -> tuple[str, ...]:
        """Those blocks that have a transformer, in the same order: of "identity_attention"."""
        last = len(self.channel_mults) - 1

        def layout(name: str) -> Layout:
            if name == "mid":
                return self.layouts[-1]
            side, index = name.split("/")[0].split("_")
            return self.layouts[int(index) if side == "down" else last - int(index)]

        return tuple(name for name in self.blocks if layout(name).depth)


def _of(gates: Mapping[str, Gates], level: TextLevel) -> list[Gates]:
    """The gates of a level's blocks."""
    return [gates.get(f"{level.name}/block_{j}", Gates()) for j in range(len(level.widths))]


def _controlled(
    h: Array, skips: list[Array], control: Mapping[str, Any] | None
) -> tuple[Array, list[Array]]:
    """The middle and the skips with a ControlNet's residuals added."""
    if control is None:
        return h, skips
    have, want = [r.shape for r in control["down"]], [s.shape for s in skips]
    if have != want:
        raise ValueError(f"cond['control']['down'] has shapes {have}: this network takes {want}.")
    add = lambda x, residual: x + residual.astype(x.dtype)
    return add(h, control["mid"]), list(map(add, skips, control["down"]))
