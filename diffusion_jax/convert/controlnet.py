"""diffusers' ``ControlNetModel`` <-> ``models.unet.control.ControlNet``: config and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import ShapeDtypeStruct
from jax.typing import DTypeLike

from diffusion_jax.convert import sd_names, sd_unet
from diffusion_jax.convert.config_fields import checked
from diffusion_jax.convert.config_tables import CONTROLNET
from diffusion_jax.convert.fitting import load_params, parameter_shapes, save_params
from diffusion_jax.convert.names import Row
from diffusion_jax.models.unet.control import ControlNet


def controlnet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our ControlNet for the config of a diffusers ControlNetModel.

    Args:
        config: the entries of its config.json; absent ones have diffusers' defaults.

    Returns:
        Keyword arguments of ``ControlNet``, plain data.

    Raises:
        ValueError: naming an option that this network does not support.
    """
    config = _whole(config)
    widths = tuple(config["conditioning_embedding_out_channels"])
    return sd_unet.encoder_config(config) | {"hint_widths": widths}


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with defaults, also of what a U-Net alone has, which it need not say."""
    own = {k: v for k, v in config.items() if k in CONTROLNET or k not in sd_unet.DEFAULTS}
    return {**sd_unet.DEFAULTS, **checked(own, CONTROLNET)}


def controlnet_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of the ControlNet for a config; makes no array."""
    config = _whole(config)
    module = ControlNet(**controlnet_config(config))
    x_shape, cond = sd_unet.example(config, sd_unet.least_side(module))
    side = x_shape[1] * 2 ** (len(module.hint_widths) - 1)
    hint = ShapeDtypeStruct((1, side, side, config["conditioning_channels"]), np.float32)
    return parameter_shapes(module, x_shape, cond | {"hint": hint})


def from_diffusers_controlnet(
    state: Mapping[str, np.ndarray], config: Mapping[str, Any], dtype: DTypeLike | None = None
) -> tuple[ControlNet, dict[str, Any]]:
    """Our network with diffusers' weights.

    Args:
        state: tensor name -> array, such as from ``folders.read_weights``.
        config: as for ``controlnet_config``.
        dtype: dtype of the parameters; None keeps the file's and makes no copy.

    Returns:
        The network, and its parameters (NumPy arrays).

    Raises:
        ValueError: naming the missing, extra and misshapen tensors, or an option that cannot be
            converted.
    """
    module = ControlNet(**controlnet_config(config))
    return module, load_params(state, controlnet_shapes(config), rows(config), dtype)


def to_diffusers_controlnet(
    params: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The inverse of ``from_diffusers_controlnet``, each array in its parameter's dtype."""
    return save_params(params, rows(config))


def rows(config: Mapping[str, Any]) -> tuple[Row, ...]:
    """The name map, both ways."""
    return sd_names.rows(config) + _ROWS


_ROWS: tuple[Row, ...] = (
    Row(r"zero_(\d+)", "controlnet_down_blocks.{0}", "pointwise"),
    Row("zero_mid", "controlnet_mid_block", "pointwise"),
    Row("hint/(conv_in|conv_out)", "controlnet_cond_embedding.{0}", "conv"),
    Row(r"hint/conv_(\d+)", "controlnet_cond_embedding.blocks.{0}", "conv"),
)
