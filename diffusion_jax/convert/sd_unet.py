"""diffusers' ``UNet2DConditionModel`` <-> ``models.unet.text_unet``: config and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import ShapeDtypeStruct
from jax.typing import DTypeLike

from diffusion_jax.convert.config_fields import checked, defaults
from diffusion_jax.convert.config_tables import UNET
from diffusion_jax.convert.fitting import load_params, parameter_shapes, save_params
from diffusion_jax.convert.sd_names import rows
from diffusion_jax.models.embeddings import GUIDANCE
from diffusion_jax.models.unet.text_unet import TextEncoderSide, TextUNet


def text_unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our TextUNet for the config of a diffusers UNet2DConditionModel.

    The network then takes the discrete time index (``core.network_io.discrete``).  With
    num_class_embeds its labels are 0 to num_class_embeds - 1.

    Args:
        config: the entries of its config.json; absent ones have diffusers' defaults.

    Returns:
        Keyword arguments of ``TextUNet``, plain data.

    Raises:
        ValueError: naming an option that this network does not support.
    """
    config = checked(config, UNET)
    up = tuple(config["up_block_types"])
    mirrored = tuple(_MIRROR.get(name) for name in config["down_block_types"])[::-1]
    if up != mirrored:
        raise ValueError(
            f"up_block_types={up} cannot be converted: with these down_block_types only {mirrored} "
            "can."
        )
    return encoder_config(config) | {
        "out_channels": config["out_channels"],
        "dropout": config["dropout"],
        "time_dim": config["time_embedding_dim"],
    }


def encoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``TextEncoderSide``, of a U-Net's or a ControlNet's checked config.

    Raises:
        ValueError: naming an option that these networks do not support.
    """
    down = tuple(config["down_block_types"])
    if unknown := sorted(set(down) - set(_MIRROR)):
        raise ValueError(f"The blocks {unknown} cannot be converted: only {[*_MIRROR]} can.")
    widths = tuple(config["block_out_channels"])
    _check_widths(config)
    depths = _numbers(config, "transformer_layers_per_block", len(down))
    attends = [name == "CrossAttnDownBlock2D" for name in down]
    padding = config["downsample_padding"]
    return {
        "channels": widths[0],
        "channel_mults": tuple(w / widths[0] for w in widths),
        "num_res_blocks": _numbers(config, "layers_per_block", len(down)),
        "depths": tuple(d if a else 0 for d, a in zip(depths, attends, strict=True)),
        "mid_depth": depths[-1],
        # For historical reasons diffusers' attention_head_dim is the number of heads.
        "heads": _numbers(config, "attention_head_dim", len(down)),
        "added_features": config["addition_time_embed_dim"] if _adds(config) else 0,
        "num_classes": max(0, (config["num_class_embeds"] or 0) - 1),
        "guidance_features": config["time_cond_proj_dim"] or 0,
        "groups": config["norm_num_groups"],
        "group_channels": 1,
        "attention": "by_size",
        "eps": config["norm_eps"],
        # diffusers pads by (0, 1) where its padding is 0.
        "downsample_padding": (padding, padding) if padding else (0, 1),
        "time_options": {
            "cos_first": config["flip_sin_to_cos"],
            "shift": float(config["freq_shift"]),
        },
    }


def check_supported(config: Mapping[str, Any], table: Mapping[str, tuple[Any, ...]]) -> None:
    """Check that values are in a table of supported ones.

    Raises:
        ValueError: naming the field, its value and the values that can be converted.
    """
    for field, known in table.items():
        value = config.get(field, known[0])
        value = tuple(value) if isinstance(value, list) else value
        if value not in known:
            raise ValueError(f"{field}={value!r} cannot be converted: only {known} can.")


def _check_widths(config: Mapping[str, Any]) -> None:
    """Check fields that must be one number here, but may be lists in diffusers."""
    fields = ["norm_num_groups", "cross_attention_dim"]
    if config["time_cond_proj_dim"] is not None:
        fields.append("time_cond_proj_dim")
    if _adds(config):
        fields += ["addition_time_embed_dim", "projection_class_embeddings_input_dim"]
    for field in fields:
        if not isinstance(config[field], int):
            raise ValueError(
                f"{field}={config[field]!r} cannot be converted: only a whole number can."
            )


def _adds(config: Mapping[str, Any]) -> bool:
    return config["addition_embed_type"] == "text_time"


def _numbers(config: Mapping[str, Any], field: str, count: int) -> tuple[int, ...]:
    """One number for each level, from one or a list of them."""
    value = config[field]
    values = (value,) * count if isinstance(value, int) else tuple(value)
    if len(values) != count or not all(isinstance(v, int) for v in values):
        raise ValueError(
            f"{field}={value!r} cannot be converted: only a whole number or {count} of them can."
        )
    return values


def example(config: Mapping[str, Any], side: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Shapes of x and cond for a network of this config, at the smallest size.

    Args:
        config: with diffusers' defaults filled in.
        side: height and width of x.
    """
    cond = {"context": (1, 1, config["cross_attention_dim"])}
    if _adds(config):
        # The numbers' features fill what the pooled text leaves; their count is not in the config.
        total, each = config["projection_class_embeddings_input_dim"], _TIME_IDS
        rest = total - each * config["addition_time_embed_dim"]
        cond |= {"pooled": (1, rest), "time_ids": (1, each)}
    shaped = {key: ShapeDtypeStruct(shape, np.float32) for key, shape in cond.items()}
    if config["num_class_embeds"]:
        shaped["label"] = ShapeDtypeStruct((1,), np.int32)
    if config["time_cond_proj_dim"]:
        shaped[GUIDANCE] = ShapeDtypeStruct((1,), np.float32)
    return (1, side, side, config["in_channels"]), shaped


def unet_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of the TextUNet for a config; makes no array."""
    config = {**DEFAULTS, **config}
    unet = TextUNet(**text_unet_config(config))
    return parameter_shapes(unet, *example(config, least_side(unet)))


def least_side(module: TextEncoderSide) -> int:
    """The smallest height and width that the module accepts."""
    return 2 ** (len(module.channel_mults) - 1)


def from_sd_unet(
    state: Mapping[str, np.ndarray], config: Mapping[str, Any], dtype: DTypeLike | None = None
) -> tuple[TextUNet, dict[str, Any]]:
    """Our network with diffusers' weights.

    Args:
        state: tensor name -> array, such as from ``folders.read_weights``.
        config: as for ``text_unet_config``.
        dtype: dtype of the parameters; None keeps the file's and makes no copy.

    Returns:
        The network, and its parameters (NumPy arrays).

    Raises:
        ValueError: naming the missing, extra and misshapen tensors, or an option that cannot be
            converted.
    """
    unet = TextUNet(**text_unet_config(config))
    return unet, load_params(state, unet_shapes(config), rows(config), dtype)


def to_sd_unet(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of ``from_sd_unet``: tensor name -> array, each in its parameter's dtype."""
    return save_params(params, rows(config))


_MIRROR = {"CrossAttnDownBlock2D": "CrossAttnUpBlock2D", "DownBlock2D": "UpBlock2D"}

_TIME_IDS = 6
"""Height and width of the original, the crop's corner, height and width of the target."""

DEFAULTS: dict[str, Any] = defaults(UNET)
"""diffusers' defaults of a UNet2DConditionModel."""
