"""diffusers' ``UNet2DModel`` <-> ``models.unet.unet.UNet``: configuration and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax.convert.fitting import load_params, parameter_shapes, save_params
from diffusion_jax.convert.names import Row, scoped
from diffusion_jax.models.unet.unet import UNet


def unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our UNet for the config of a diffusers UNet2DModel.

    The network then takes the discrete time index (``core.network_io.discrete``), and, with
    labels, the last row of diffusers' class table is the null class.

    Args:
        config: the entries of its config.json; absent ones have diffusers' defaults.

    Returns:
        Keyword arguments of ``UNet``, plain data.

    Raises:
        ValueError: naming an option that this network does not support.
    """
    config = {**_DEFAULTS, **config}
    _check(config)
    down, up = config["down_block_types"], config["up_block_types"]
    widths, groups = tuple(config["block_out_channels"]), config["norm_num_groups"]
    scale_shift = config["resnet_time_scale_shift"] == "scale_shift"
    padding = config["downsample_padding"]
    return {
        "channels": widths[0],
        "channel_mults": tuple(w / widths[0] for w in widths),
        "num_res_blocks": config["layers_per_block"],
        "attention_levels": _attends(down),
        "head_dim": config["attention_head_dim"],
        "out_channels": config["out_channels"],
        "num_classes": max(0, (config["num_class_embeds"] or 0) - 1),
        "dropout": config["dropout"],
        "conditioning": "scale_shift" if scale_shift else "additive",
        "downsample": tuple(_resampler(_DOWN[d], config["downsample_type"]) for d in down[:-1]),
        "upsample": tuple(_resampler(_UP[u], config["upsample_type"]) for u in up[:-1]),
        "groups": groups,
        "group_channels": 1,
        "eps": config["norm_eps"],
        "mid_attention": config["add_attention"],
        "mid_norm": not scale_shift or config["attn_norm_num_groups"] is not None,
        # diffusers pads by (0, 1) where its padding is 0.
        "downsample_padding": (padding, padding) if padding else (0, 1),
        "time_options": {
            "cos_first": config["flip_sin_to_cos"],
            "shift": float(config["freq_shift"]),
        },
        "time_dim": config["time_embedding_dim"],
    }


def _check(config: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that this network does not support."""
    for field, known in _SUPPORTED.items():
        if config[field] not in known:
            raise ValueError(f"{field}={config[field]!r} cannot be converted: only {known} can.")
    down, up = tuple(config["down_block_types"]), tuple(config["up_block_types"])
    if unknown := sorted({*down, *up} - {*_DOWN, *_UP}):
        raise ValueError(f"The blocks {unknown} cannot be converted: only {[*_DOWN, *_UP]} can.")
    if _attends(down) != _attends(up[::-1]):
        raise ValueError(
            f"Attention in down_block_types={down} and up_block_types={up} is not at the same "
            "levels, so it cannot be converted: our levels attend on both sides or on neither."
        )
    groups, mid_groups = config["norm_num_groups"], config["attn_norm_num_groups"]
    if mid_groups not in (None, groups):
        raise ValueError(
            f"attn_norm_num_groups={mid_groups} cannot be converted: only norm_num_groups={groups} "
            "or None can."
        )


def _attends(blocks: Sequence[str]) -> tuple[int, ...]:
    return tuple(i for i, name in enumerate(blocks) if name.startswith("Attn"))


def _resampler(of_block: str | None, of_config: str) -> str:
    name = of_block or of_config
    if name not in _RESAMPLERS:
        raise ValueError(
            f"The resampling type {name!r} cannot be converted: only conv, resnet can."
        )
    return _RESAMPLERS[name]


def from_diffusers_unet(
    state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[UNet, dict[str, Any]]:
    """Our network with diffusers' weights.

    Args:
        state_dict: tensor name -> array, such as from ``read_safetensors``.
        config: as for ``unet_config``.

    Returns:
        The network, and its float32 parameters (NumPy arrays).

    Raises:
        ValueError: listing every missing, extra and misshapen tensor by name.
    """
    unet = UNet(**unet_config(config))
    state = {_modern(name): array for name, array in state_dict.items()}
    side = 2 ** (len(unet.channel_mults) - 1)
    shapes = parameter_shapes(unet, (1, side, side, {**_DEFAULTS, **config}["in_channels"]))
    return unet, load_params(state, shapes, ROWS, np.float32)


def to_diffusers_unet(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of ``from_diffusers_unet``: tensor name -> float32 array, ready to be saved."""
    state = save_params(params, ROWS)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in state.items()}


def _modern(name: str) -> str:
    """A tensor's name since diffusers 0.15; older checkpoints keep their names."""
    module, dot, leaf = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    if ".attentions." in module and last in _OLD_NAMES:
        return f"{parent}.{_OLD_NAMES[last]}{dot}{leaf}"
    return name


_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

RES_PARTS = (
    ("norm_0", "norm1", "norm"),
    ("conv_0", "conv1", "conv"),
    ("emb", "time_emb_proj", "dense"),
    ("norm_1", "norm2", "norm"),
    ("conv_1", "conv2", "conv"),
    ("shortcut", "conv_shortcut", "pointwise"),
)
_ATTENTION_PARTS = (
    ("norm", "group_norm", "norm"),
    ("query", "to_q", "dense"),
    ("key", "to_k", "dense"),
    ("value", "to_v", "dense"),
    ("out", "to_out.0", "dense"),
)
_SCOPES = (
    (r"(down|up)_(\d+)/block_(\d+)/res", "{0}_blocks.{1}.resnets.{2}", RES_PARTS),
    (r"(down|up)_(\d+)/block_(\d+)/attention", "{0}_blocks.{1}.attentions.{2}", _ATTENTION_PARTS),
    # A resampler there is in a list of one.
    (
        r"(down|up)_(\d+)/resample",
        "{0}_blocks.{1}.{0}samplers.0",
        (*RES_PARTS, ("conv", "conv", "conv")),
    ),
    (r"mid/res_(\d+)", "mid_block.resnets.{0}", RES_PARTS),
    (r"mid/attention", "mid_block.attentions.0", _ATTENTION_PARTS),
)
# Layers of all diffusers U-Nets outside their levels.
ENDS: tuple[Row, ...] = (
    Row("embed/time_0", "time_embedding.linear_1", "dense"),
    Row("embed/time_1", "time_embedding.linear_2", "dense"),
    Row("embed/label", "class_embedding", "table"),
    Row("conv_in", "conv_in", "conv"),
    Row("norm_out", "conv_norm_out", "norm"),
    Row("conv_out", "conv_out", "conv"),
)
ROWS: tuple[Row, ...] = (*ENDS, *scoped(_SCOPES))

# The resampler of each block type; None where downsample_type or upsample_type decides.
_DOWN = {"DownBlock2D": "conv", "AttnDownBlock2D": None, "ResnetDownsampleBlock2D": "resnet"}
_UP = {"UpBlock2D": "conv", "AttnUpBlock2D": None, "ResnetUpsampleBlock2D": "resnet"}
_RESAMPLERS = {"conv": "conv", "resnet": "residual"}

_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}
