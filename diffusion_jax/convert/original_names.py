"""Prefixes of tensor names in the original layout (CompVis, Stability) and in diffusers'.

Each list of pairs (prefix there, prefix in diffusers' layout) follows from diffusers' config of the
network.  The two differ in the numbering of blocks and the names of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Pairs = list[tuple[str, str]]


def unet_pairs(config: Mapping[str, Any]) -> Pairs:
    """(original prefix, diffusers prefix) of a U-Net.

    Args:
        config: config of diffusers' UNet2DConditionModel.
    """
    return [
        *_embedding_pairs(),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
        *_down_pairs(config),
        *_up_pairs(config),
    ]


def controlnet_pairs(config: Mapping[str, Any]) -> Pairs:
    """(original prefix, diffusers prefix) of a ControlNet.

    Args:
        config: config of diffusers' ControlNetModel.
    """
    skips = sum(_counts(config)) + len(_counts(config))
    hints = 2 * (len(config.get("conditioning_embedding_out_channels", range(4))) - 1)
    hint = "controlnet_cond_embedding"
    return [
        *_embedding_pairs(),
        *_down_pairs(config),
        *((f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}") for i in range(skips)),
        ("middle_block_out.0", "controlnet_mid_block"),
        ("input_hint_block.0", f"{hint}.conv_in"),
        # A list of alternating convolutions and activations.
        *((f"input_hint_block.{2 * i + 2}", f"{hint}.blocks.{i}") for i in range(hints)),
        (f"input_hint_block.{2 * hints + 2}", f"{hint}.conv_out"),
    ]


def vae_pairs(config: Mapping[str, Any]) -> Pairs:
    """(original prefix, diffusers prefix) of an autoencoder.

    Args:
        config: config of diffusers' AutoencoderKL.
    """
    levels, count = len(config["block_out_channels"]), config.get("layers_per_block", 2)
    pairs = [(name, name) for name in ("quant_conv", "post_quant_conv")]
    for side in ("encoder", "decoder"):
        pairs += [(f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out")]
        pairs += [(f"{side}.norm_out", f"{side}.conv_norm_out")]
        pairs += _scoped(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", _VAE_ATTENTION)
        for j in range(2):
            middle = (f"{side}.mid.block_{j + 1}", f"{side}.mid_block.resnets.{j}")
            pairs += _scoped(*middle, _VAE_RES)
    for i in range(levels):
        down, up = f"encoder.down_blocks.{i}", f"decoder.up_blocks.{i}"
        # The original counts levels from the full size on both sides.
        theirs = {down: f"encoder.down.{i}", up: f"decoder.up.{levels - 1 - i}"}
        for ours, blocks in ((down, count), (up, count + 1)):
            for j in range(blocks):
                pairs += _scoped(f"{theirs[ours]}.block.{j}", f"{ours}.resnets.{j}", _VAE_RES)
        pairs.append((f"{theirs[down]}.downsample.conv", f"{down}.downsamplers.0.conv"))
        pairs.append((f"{theirs[up]}.upsample.conv", f"{up}.upsamplers.0.conv"))
    return pairs


def _embedding_pairs() -> Pairs:
    return [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("time_embed.cond_proj", "time_embedding.cond_proj"),
        ("label_emb.0.0", "add_embedding.linear_1"),
        ("label_emb.0.2", "add_embedding.linear_2"),
        ("label_emb", "class_embedding"),
        ("input_blocks.0.0", "conv_in"),
    ]


def _down_pairs(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The down path and the middle: one list of blocks there, blocks by level in diffusers."""
    at, counts = 1, _counts(config)
    for i, count in enumerate(counts):
        for j in range(count):
            yield from _block(f"input_blocks.{at}", f"down_blocks.{i}", j)
            at += 1
        if i < len(counts) - 1:
            yield f"input_blocks.{at}.0.op", f"down_blocks.{i}.downsamplers.0.conv"
            at += 1
    yield from _scoped("middle_block.0", "mid_block.resnets.0", _RES)
    yield "middle_block.1", "mid_block.attentions.0"
    yield from _scoped("middle_block.2", "mid_block.resnets.1", _RES)


def _up_pairs(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    at, counts = 0, _counts(config)[::-1]
    for i, count in enumerate(counts):
        for j in range(count + 1):
            yield from _block(f"output_blocks.{at}", f"up_blocks.{i}", j)
            at += 1
        if i < len(counts) - 1:
            # After the level's last attention, or in its place.
            slot = 2 if config["up_block_types"][i].startswith("CrossAttn") else 1
            yield f"output_blocks.{at - 1}.{slot}.conv", f"up_blocks.{i}.upsamplers.0.conv"


def _block(theirs: str, ours: str, j: int) -> Iterator[tuple[str, str]]:
    yield from _scoped(f"{theirs}.0", f"{ours}.resnets.{j}", _RES)
    yield f"{theirs}.1", f"{ours}.attentions.{j}"


def _counts(config: Mapping[str, Any]) -> list[int]:
    """Residual blocks of each level."""
    levels, value = len(config["block_out_channels"]), config.get("layers_per_block", 2)
    return [value] * levels if isinstance(value, int) else list(value)


def _scoped(theirs: str, ours: str, parts: tuple[tuple[str, str], ...]) -> Pairs:
    return [(f"{theirs}.{a}", f"{ours}.{b}") for a, b in parts]


_RES = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
_VAE_RES = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
)
_VAE_ATTENTION = (
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
)
