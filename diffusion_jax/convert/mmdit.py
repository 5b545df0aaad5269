"""diffusers' ``SD3Transformer2DModel`` <-> ``models.transformers.mmdit``: config and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import ShapeDtypeStruct
from jax.typing import DTypeLike

from diffusion_jax.convert.fitting import load_params, parameter_shapes, save_params
from diffusion_jax.convert.names import Row, scoped
from diffusion_jax.convert.sd_unet import check_supported
from diffusion_jax.models.transformers.mmdit import MMDiT


def mmdit_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our MMDiT for the config of a diffusers SD3Transformer2DModel.

    The network then takes 1000·t as its time; cond's "context" is joint_attention_dim wide.

    Args:
        config: the entries of its config.json; absent ones have diffusers' defaults.

    Returns:
        Keyword arguments of ``MMDiT``, plain data.

    Raises:
        ValueError: naming an option that this network does not support.
    """
    config = {**DEFAULTS, **config}
    heads, width = config["num_attention_heads"], config["caption_projection_dim"]
    if heads * config["attention_head_dim"] != width:
        raise ValueError(
            f"caption_projection_dim={width!r} cannot be converted: only num_attention_heads·"
            f"attention_head_dim = {heads * config['attention_head_dim']} can."
        )
    check_supported(config, {"qk_norm": tuple(_QK_NORMS)})
    if config["sample_size"] % config["patch_size"]:
        raise ValueError(
            f"sample_size={config['sample_size']} cannot be converted: only multiples of "
            f"patch_size={config['patch_size']} can."
        )
    out = config["out_channels"]
    return {
        "width": width,
        "depth": config["num_layers"],
        "heads": heads,
        "patch": config["patch_size"],
        "out_channels": config["in_channels"] if out is None else out,
        "pooled_features": config["pooled_projection_dim"],
        "max_side": config["pos_embed_max_size"],
        "grid": config["sample_size"] // config["patch_size"],
        "positions": "stored",
        "second_attention": tuple(config["dual_attention_layers"]),
        "qk_norm": _QK_NORMS[config["qk_norm"]],
    }


def from_diffusers_mmdit(
    state: Mapping[str, np.ndarray], config: Mapping[str, Any], dtype: DTypeLike | None = None
) -> tuple[MMDiT, dict[str, Any]]:
    """Our network with diffusers' weights.

    Args:
        state: tensor name -> array, such as from ``folders.read_weights``.
        config: as for ``mmdit_config``.
        dtype: dtype of the parameters; None keeps each array's.

    Returns:
        The network, and its parameters (NumPy arrays).

    Raises:
        ValueError: naming the missing, extra and misshapen tensors, or an option that cannot be
            converted.
    """
    module = MMDiT(**mmdit_config(config))
    return module, load_params(state, mmdit_shapes(config), rows(config), dtype)


def to_diffusers_mmdit(
    params: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The inverse of ``from_diffusers_mmdit``: tensor name -> array, each in its own dtype."""
    return save_params(params, rows(config))


def mmdit_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter; makes no array."""
    config = {**DEFAULTS, **config}
    module, one = MMDiT(**mmdit_config(config)), lambda *n: ShapeDtypeStruct((1, *n), np.float32)
    cond = {"context": one(1, config["joint_attention_dim"])}
    if module.pooled_features:
        cond["pooled"] = one(module.pooled_features)
    shape = (1, module.patch, module.patch, config["in_channels"])
    return parameter_shapes(module, shape, cond)


def rows(config: Mapping[str, Any]) -> tuple[Row, ...]:
    """The name map: both ways.  The last layer's modulation of the text has another order there."""
    last = {**DEFAULTS, **config}["num_layers"] - 1
    module = f"transformer_blocks.{last}.norm1_context.linear"
    return (Row(f"layer_{last}/context_modulation", module, "swapped"), *_ROWS)


_QK_NORMS = {None: "none", "rms_norm": "rms"}
_LAYER = (
    ("image_modulation", "norm1.linear", "dense"),
    ("context_modulation", "norm1_context.linear", "dense"),
    ("image_qkv/query", "attn.to_q", "dense"),
    ("image_qkv/key", "attn.to_k", "dense"),
    ("image_qkv/value", "attn.to_v", "dense"),
    ("image_qkv/query_norm", "attn.norm_q", "norm"),
    ("image_qkv/key_norm", "attn.norm_k", "norm"),
    ("image_out", "attn.to_out.0", "dense"),
    ("context_qkv/query", "attn.add_q_proj", "dense"),
    ("context_qkv/key", "attn.add_k_proj", "dense"),
    ("context_qkv/value", "attn.add_v_proj", "dense"),
    ("context_qkv/query_norm", "attn.norm_added_q", "norm"),
    ("context_qkv/key_norm", "attn.norm_added_k", "norm"),
    ("context_out", "attn.to_add_out", "dense"),
    ("second_qkv/query", "attn2.to_q", "dense"),
    ("second_qkv/key", "attn2.to_k", "dense"),
    ("second_qkv/value", "attn2.to_v", "dense"),
    ("second_qkv/query_norm", "attn2.norm_q", "norm"),
    ("second_qkv/key_norm", "attn2.norm_k", "norm"),
    ("second_out", "attn2.to_out.0", "dense"),
    ("image_mlp/in", "ff.net.0.proj", "dense"),
    ("image_mlp/out", "ff.net.2", "dense"),
    ("context_mlp/in", "ff_context.net.0.proj", "dense"),
    ("context_mlp/out", "ff_context.net.2", "dense"),
)
_ROWS: tuple[Row, ...] = (
    Row("embed/time_0", "time_text_embed.timestep_embedder.linear_1", "dense"),
    Row("embed/time_1", "time_text_embed.timestep_embedder.linear_2", "dense"),
    Row("pooled/dense_0", "time_text_embed.text_embedder.linear_1", "dense"),
    Row("pooled/dense_1", "time_text_embed.text_embedder.linear_2", "dense"),
    Row("patches", "pos_embed.proj", "conv"),
    Row("positions", "pos_embed", "positions"),
    Row("context", "context_embedder", "dense"),
    *scoped(((r"layer_(\d+)", "transformer_blocks.{0}", _LAYER),)),
    Row("modulation_out", "norm_out.linear", "swapped"),
    Row("proj_out", "proj_out", "dense"),
)

DEFAULTS: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    "dual_attention_layers": (),
    "qk_norm": None,
}
