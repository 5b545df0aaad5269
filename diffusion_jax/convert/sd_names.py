"""The name map of diffusers' UNet2DConditionModel, which its ControlNetModel shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.convert.diffusers_unet import ENDS, RES_PARTS
from diffusion_jax.convert.names import Row, scoped


def rows(config: Mapping[str, Any]) -> tuple[Row, ...]:
    """The name map of U-Nets, and of the layers that ControlNets share with them."""
    return _LINEAR if config.get("use_linear_projection", False) else _POINTWISE


_LAYER_PARTS = (
    ("norm_0", "norm1", "norm"),
    ("self_attention/query", "attn1.to_q", "dense"),
    ("self_attention/key", "attn1.to_k", "dense"),
    ("self_attention/value", "attn1.to_v", "dense"),
    ("self_attention/out", "attn1.to_out.0", "dense"),
    ("norm_1", "norm2", "norm"),
    ("cross_attention/query", "attn2.to_q", "dense"),
    ("cross_attention/key", "attn2.to_k", "dense"),
    ("cross_attention/value", "attn2.to_v", "dense"),
    ("cross_attention/out", "attn2.to_out.0", "dense"),
    ("norm_2", "norm3", "norm"),
    ("mlp/in", "ff.net.0.proj", "dense"),
    ("mlp/out", "ff.net.2", "dense"),
)
_SCOPES = (
    (r"(down|up)_(\d+)/block_(\d+)/res", "{0}_blocks.{1}.resnets.{2}", RES_PARTS),
    (r"(down|up)_(\d+)/resample", "{0}_blocks.{1}.{0}samplers.0", (("conv", "conv", "conv"),)),
    (r"mid/res_(\d+)", "mid_block.resnets.{0}", RES_PARTS),
    (
        r"(down|up)_(\d+)/block_(\d+)/transformer/layer_(\d+)",
        "{0}_blocks.{1}.attentions.{2}.transformer_blocks.{3}",
        _LAYER_PARTS,
    ),
    (
        r"mid/transformer/layer_(\d+)",
        "mid_block.attentions.0.transformer_blocks.{0}",
        _LAYER_PARTS,
    ),
)
_SHARED: tuple[Row, ...] = (
    *ENDS,
    Row("embed/guidance", "time_embedding.cond_proj", "dense"),
    Row("added/dense_0", "add_embedding.linear_1", "dense"),
    Row("added/dense_1", "add_embedding.linear_2", "dense"),
    *scoped(_SCOPES),
    Row(
        r"(down|up)_(\d+)/block_(\d+)/transformer/norm",
        "{0}_blocks.{1}.attentions.{2}.norm",
        "norm",
    ),
    Row("mid/transformer/norm", "mid_block.attentions.0.norm", "norm"),
)


def _projections(kind: str) -> tuple[Row, ...]:
    """The rows of the projections around transformers, the only ones that depend on the config."""
    side = r"(down|up)_(\d+)/block_(\d+)/transformer/(proj_in|proj_out)"
    return (
        Row(side, "{0}_blocks.{1}.attentions.{2}.{3}", kind),
        Row("mid/transformer/(proj_in|proj_out)", "mid_block.attentions.0.{0}", kind),
    )


_POINTWISE = _SHARED + _projections("pointwise")
_LINEAR = _SHARED + _projections("dense")
