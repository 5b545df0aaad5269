"""diffusers' ``DiTTransformer2DModel`` <-> ``models.transformers.dit.DiT``: config and weights.

There each layer has a copy of the embedding of time and class; here it is shared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import ShapeDtypeStruct
from jax.typing import DTypeLike

from diffusion_jax.convert.fitting import load_params, parameter_shapes, save_params
from diffusion_jax.convert.names import Row
from diffusion_jax.convert.sd_unet import check_supported
from diffusion_jax.models.transformers.dit import DiT


def dit_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our DiT for a diffusers config; it then takes the discrete time index.

    Raises:
        ValueError: naming an option that this network does not support.
    """
    config = {**DEFAULTS, **config}
    check_supported(config, _SUPPORTED)
    return {
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "depth": config["num_layers"],
        "heads": config["num_attention_heads"],
        "patch": config["patch_size"],
        "out_channels": config["out_channels"] or config["in_channels"],
        "num_classes": config["num_embeds_ada_norm"],
        "mlp_eps": config["norm_eps"],
        "dropout": config["dropout"],
        "time_options": {"shift": 1.0},
    }


def from_diffusers_dit(
    state: Mapping[str, np.ndarray], config: Mapping[str, Any], dtype: DTypeLike | None = None
) -> tuple[DiT, dict[str, Any]]:
    """Our network with diffusers' weights.

    Args:
        state: tensor name -> array.
        config: the entries of its config.json.
        dtype: dtype of the parameters; None keeps each array's.

    Returns:
        The network, and its parameters (NumPy arrays).

    Raises:
        ValueError: naming an option or tensors that do not fit, or layers that differ in embedding.
    """
    module = DiT(**dit_config(config))
    return module, load_params(_shared(state), dit_shapes(config), ROWS, dtype)


def to_diffusers_dit(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of ``from_diffusers_dit``, with a copy of the embedding for each layer."""
    state = save_params(params, ROWS)
    first = {n: a for n, a in state.items() if n.startswith(_EMBED.format(0))}
    for i in range(1, dit_config(config)["depth"]):
        state |= {n.replace(_EMBED.format(0), _EMBED.format(i)): a for n, a in first.items()}
    return state


def dit_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter; makes no array."""
    config = {**DEFAULTS, **config}
    side = config["patch_size"]
    label = {"label": ShapeDtypeStruct((1,), np.int32)}
    shape = (1, side, side, config["in_channels"])
    return parameter_shapes(DiT(**dit_config(config)), shape, label)


def _shared(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state with the first layer's embedding alone, which must equal the others'."""
    kept: dict[str, np.ndarray] = {}
    for name, array in state.items():
        match = _COPY.match(name)
        if match is None or match[1] == "0":
            kept[name] = array
            continue
        first = state.get(name.replace(match[0], _EMBED.format(0), 1))
        if first is None or not np.array_equal(first, array):
            raise ValueError(
                f"{name} is not that of layer 0: a network that embeds time and class anew in "
                "each layer cannot be converted."
            )
    return kept


_EMBED = "transformer_blocks.{}.norm1.emb."
_COPY = re.compile(r"transformer_blocks\.(\d+)\.norm1\.emb\.")
_BLOCK = "transformer_blocks.{0}."
ROWS: tuple[Row, ...] = (
    Row("embed/time_0", _EMBED.format(0) + "timestep_embedder.linear_1", "dense"),
    Row("embed/time_1", _EMBED.format(0) + "timestep_embedder.linear_2", "dense"),
    Row("embed/label", _EMBED.format(0) + "class_embedder.embedding_table", "table"),
    Row(r"layer_(\d+)/modulation", _BLOCK + "norm1.linear", "dense"),
    Row(r"layer_(\d+)/attention/query", _BLOCK + "attn1.to_q", "dense"),
    Row(r"layer_(\d+)/attention/key", _BLOCK + "attn1.to_k", "dense"),
    Row(r"layer_(\d+)/attention/value", _BLOCK + "attn1.to_v", "dense"),
    Row(r"layer_(\d+)/attention/out", _BLOCK + "attn1.to_out.0", "dense"),
    Row(r"layer_(\d+)/mlp/in", _BLOCK + "ff.net.0.proj", "dense"),
    Row(r"layer_(\d+)/mlp/out", _BLOCK + "ff.net.2", "dense"),
    Row("patches", "pos_embed.proj", "conv"),
    Row("modulation_out", "proj_out_1", "dense"),
    Row("proj_out", "proj_out_2", "dense"),
)

DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-5,
}
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (True,),
    "activation_fn": ("gelu-approximate",),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
}
