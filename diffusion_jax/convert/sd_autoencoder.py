"""diffusers' ``AutoencoderKL`` and ``VQModel`` <-> ``models.autoencoders``: config and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.convert.config_fields import Fields, checked, defaults
from diffusion_jax.convert.config_tables import VAE, VQ
from diffusion_jax.convert.fitting import load_params, save_params
from diffusion_jax.convert.names import Row, by_path, scoped
from diffusion_jax.models.autoencoders.autoencoder import AutoencoderKL, AutoencoderVQ


def module_of(config: Mapping[str, Any]) -> AutoencoderKL | AutoencoderVQ:
    """The network for a config.json of diffusers.

    Raises:
        ValueError: naming an entry that is not supported.
    """
    name = config.get("_class_name", "AutoencoderKL")
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"_class_name={name!r} cannot be converted: only {sorted(CLASSES)} can.")
    fields, make = CLASSES[name]
    return make(checked(config, fields))


def scale_of(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """(scale, shift): the latent that is diffused is scale·(z - shift).

    Numbers, or float32 [z] where the config has means and deviations of each channel.
    """
    config = {**DEFAULTS, **config}
    scale, mean, deviation = (config[k] for k in ("scaling_factor", "latents_mean", "latents_std"))
    if mean is not None and deviation is not None:
        deviation = np.asarray(deviation, np.float32)
        return np.float32(scale) / deviation, np.asarray(mean, np.float32)
    shift = config["shift_factor"]
    return float(scale), 0.0 if shift is None else float(shift)


def from_diffusers_autoencoder(
    state: Mapping[str, np.ndarray], config: Mapping[str, Any], dtype: DTypeLike | None = None
) -> tuple[AutoencoderKL | AutoencoderVQ, dict[str, Any]]:
    """Our autoencoder with diffusers' weights.

    Args:
        state: tensor name -> array.
        config: as for ``module_of``.
        dtype: dtype of the parameters; None keeps each array's.

    Returns:
        The network, and its parameters (NumPy arrays).

    Raises:
        ValueError: naming an entry of the config, or the tensors, that do not fit.
    """
    module = module_of(config)
    state = {_modern(name): array for name, array in state.items()}
    return module, load_params(state, parameter_shapes(module), ROWS, dtype)


def to_diffusers_autoencoder(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of ``from_diffusers_autoencoder``: tensor name -> array."""
    return save_params(params, ROWS)


def parameter_shapes(module: AutoencoderKL | AutoencoderVQ) -> dict[str, tuple[int, ...]]:
    """Parameter path -> shape; computes nothing."""
    shape = (1, module.factor, module.factor, module.out_channels)
    pixels = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]
    return {path: leaf.shape for path, leaf in by_path(params).items()}


def _modern(name: str) -> str:
    """Names of today: older files have other names for the attention's layers."""
    if ".attentions." in name:
        for old, new in _OLD.items():
            name = name.replace(f".{old}.", f".{new}.")
    return name


_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    down, up = config["down_block_types"], config["up_block_types"]
    known = (["DownEncoderBlock2D"] * len(down), ["UpDecoderBlock2D"] * len(down))
    if (list(down), list(up)) != known:
        raise ValueError(
            f"down_block_types={list(down)} and up_block_types={list(up)} cannot be converted: "
            "only DownEncoderBlock2D and as many UpDecoderBlock2D can."
        )
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"in_channels={config['in_channels']} and out_channels={config['out_channels']} "
            "cannot be converted: only equal ones can."
        )
    widths = tuple(config["block_out_channels"])
    return {
        "channels": widths[0],
        "channel_mults": tuple(w / widths[0] for w in widths),
        "blocks": config["layers_per_block"],
        "latent_channels": config["latent_channels"],
        "out_channels": config["out_channels"],
        "groups": config["norm_num_groups"],
        "attention": config["mid_block_add_attention"],
    }


def _kl(config: Mapping[str, Any]) -> AutoencoderKL:
    if config["use_quant_conv"] != config["use_post_quant_conv"]:
        raise ValueError(
            f"use_quant_conv={config['use_quant_conv']} cannot be converted: only the same value "
            "as use_post_quant_conv can."
        )
    return AutoencoderKL(**_shared(config), quant=config["use_quant_conv"])


def _vq(config: Mapping[str, Any]) -> AutoencoderVQ:
    return AutoencoderVQ(
        **_shared(config),
        entries=config["num_vq_embeddings"],
        entry_channels=config["vq_embed_dim"] or 0,
    )


_BLOCK = (
    ("norm_0", "norm1", "norm"), ("conv_0", "conv1", "conv"), ("norm_1", "norm2", "norm"),
    ("conv_1", "conv2", "conv"), ("shortcut", "conv_shortcut", "pointwise"),
)  # fmt: skip
_ATTENTION = (
    ("norm", "group_norm", "norm"), ("query", "to_q", "dense"), ("key", "to_k", "dense"),
    ("value", "to_v", "dense"), ("out", "to_out.0", "dense"),
)  # fmt: skip
_SCOPES = (
    (r"encoder/down_(\d+)_block_(\d+)", "encoder.down_blocks.{0}.resnets.{1}", _BLOCK),
    (r"decoder/up_(\d+)_block_(\d+)", "decoder.up_blocks.{0}.resnets.{1}", _BLOCK),
    (r"(encoder|decoder)/mid/res_(\d)", "{0}.mid_block.resnets.{1}", _BLOCK),
    (r"(encoder|decoder)/mid/attention", "{0}.mid_block.attentions.0", _ATTENTION),
)
ROWS: tuple[Row, ...] = (
    Row(r"(encoder|decoder)/conv_in", "{0}.conv_in", "conv"),
    Row(r"(encoder|decoder)/norm_out", "{0}.conv_norm_out", "norm"),
    Row(r"(encoder|decoder)/conv_out", "{0}.conv_out", "conv"),
    Row(r"encoder/down_(\d+)_resample/conv", "encoder.down_blocks.{0}.downsamplers.0.conv", "conv"),
    Row(r"decoder/up_(\d+)_resample/conv", "decoder.up_blocks.{0}.upsamplers.0.conv", "conv"),
    Row("quant", "quant_conv", "pointwise"),
    Row("post_quant", "post_quant_conv", "pointwise"),
    Row("", "quantize.embedding", "codebook"),
    *scoped(_SCOPES),
)

DEFAULTS: dict[str, Any] = defaults(VAE)
"""diffusers' defaults of an AutoencoderKL."""

CLASSES: dict[str, tuple[Fields, Callable[[Mapping[str, Any]], AutoencoderKL | AutoencoderVQ]]] = {
    "AutoencoderKL": (VAE, _kl),
    "VQModel": (VQ, _vq),
}
