"""transformers' CLIP (text and image), T5 encoder and BERT <-> ours: configuration and weights.

A checkpoint's config.json names its network; one map of names serves import and export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.convert.fitting import load_params, save_params
from diffusion_jax.convert.names import Row, by_path
from diffusion_jax.convert.text_rows import (
    BERT_ROWS,
    CLIP_IMAGE_ROWS,
    CLIP_TEXT_ROWS,
    T5_ROWS,
)
from diffusion_jax.models.text.bert import Bert
from diffusion_jax.models.text.clip import ClipText
from diffusion_jax.models.text.t5 import T5Encoder
from diffusion_jax.models.vision.clip_image import ClipImage

State = Mapping[str, np.ndarray]
Config = Mapping[str, Any]


class Layout(NamedTuple):
    """Mapping of one of transformers' networks to the network here.

    Attributes:
        module: the Flax module.
        fields: (config, names of the tensors) -> keyword arguments of ``module``, plain data.
        modern: names of any release's checkpoint -> today's, buffers dropped.
        rows: the name map.
        example: module -> shapes of the inputs of a call.
    """

    module: Callable[..., Any]
    fields: Callable[[Config, Set[str]], dict[str, Any]]
    modern: Callable[[State], dict[str, np.ndarray]]
    rows: tuple[Row, ...]
    example: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]]


def module_of(config: Config, names: Set[str] = frozenset()) -> Any:
    """Our network for a config.json of transformers.

    Args:
        config: its entries; absent ones have transformers' defaults.
        names: names of the checkpoint's tensors, which show parts that the config does not mention.

    Returns:
        A ``ClipText``, ``ClipImage``, ``T5Encoder`` or ``Bert``.

    Raises:
        ValueError: naming an entry that is not supported.
    """
    layout = LAYOUTS[_kind(config)]
    return layout.module(**layout.fields(config, names))


def from_transformers(
    state: State, config: Config, dtype: Any = np.float32
) -> tuple[Any, dict[str, Any]]:
    """Our network with transformers' weights.

    Args:
        state: tensor name -> array of any float type, such as ``read_safetensors`` gives.
        config: as for ``module_of``.
        dtype: dtype of the parameters.

    Returns:
        The network, and its parameters (NumPy arrays).

    Raises:
        ValueError: naming an entry of the config that we have no counterpart for, or listing every
            missing, extra and misshapen tensor by name.
    """
    layout = LAYOUTS[_kind(config)]
    state = layout.modern(state)
    module = module_of(config, set(state))
    return module, load_params(state, parameter_shapes(module, layout), layout.rows, dtype)


def to_transformers(params: Mapping[str, Any], kind: str, dtype: Any = np.float32) -> State:
    """The inverse of ``from_transformers``: tensor name -> array, named as in a checkpoint's file.

    Args:
        params: as ``from_transformers`` gives.
        kind: name in ``LAYOUTS``.
        dtype: dtype of the arrays; None keeps each one's own.
    """
    state = save_params(params, LAYOUTS[kind].rows)
    return {name: np.ascontiguousarray(array, dtype) for name, array in state.items()}


def parameter_shapes(module: Any, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Parameter path -> shape; nothing is computed."""
    inputs = layout.example(module)
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return {path: leaf.shape for path, leaf in by_path(params).items()}


def _kind(config: Config) -> str:
    known = config.get("model_type")
    if known not in _KINDS:
        raise ValueError(f"model_type={known!r} cannot be converted: only {sorted(_KINDS)} can.")
    return _KINDS[known]


def _pick(config: Config, field: str, table: Mapping[Any, Any]) -> Any:
    """The counterpart of config[field], by its default in the table's first row if absent."""
    value = config.get(field, next(iter(table)))
    if value not in table:
        raise ValueError(f"{field}={value!r} cannot be converted: only {list(table)} can.")
    return table[value]


def _projection(config: Config, name: str, names: Set[str]) -> int:
    architectures = config.get("architectures") or ()
    projects = name in names or any(a.endswith("WithProjection") for a in architectures)
    return config.get("projection_dim", 512) if projects else 0


def _clip_text_fields(config: Config, names: Set[str]) -> dict[str, Any]:
    eos = config.get("eos_token_id", 49407)
    return {
        "vocab": config.get("vocab_size", 49408),
        "width": config.get("hidden_size", 512),
        "layers": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 8),
        "mlp_width": config.get("intermediate_size", 2048),
        "positions": config.get("max_position_embeddings", 77),
        "activation": _pick(config, "hidden_act", _ACTIVATIONS),
        "eps": config.get("layer_norm_eps", 1e-5),
        "projection": _projection(config, "text_projection.weight", names),
        # Configs from before 2023 have 2, which no text contains; the largest id was meant.
        "eos": None if eos == 2 else eos,
    }


def _clip_image_fields(config: Config, names: Set[str]) -> dict[str, Any]:
    _pick(config, "num_channels", {3: 3})
    return {
        "width": config.get("hidden_size", 768),
        "layers": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "mlp_width": config.get("intermediate_size", 3072),
        "size": config.get("image_size", 224),
        "patch": config.get("patch_size", 32),
        "activation": _pick(config, "hidden_act", _ACTIVATIONS),
        "eps": config.get("layer_norm_eps", 1e-5),
        "projection": _projection(config, "visual_projection.weight", names),
    }


def _t5_fields(config: Config, names: Set[str]) -> dict[str, Any]:
    return {
        "vocab": config.get("vocab_size", 32128),
        "width": config.get("d_model", 512),
        "layers": config.get("num_layers", 6),
        "heads": config.get("num_heads", 8),
        "head_dim": config.get("d_kv", 64),
        "mlp_width": config.get("d_ff", 2048),
        "mlp": _pick(config, "feed_forward_proj", _T5_MLPS),
        "buckets": config.get("relative_attention_num_buckets", 32),
        "max_distance": config.get("relative_attention_max_distance", 128),
        "eps": config.get("layer_norm_epsilon", 1e-6),
    }


def _bert_fields(config: Config, names: Set[str]) -> dict[str, Any]:
    _pick(config, "position_embedding_type", {"absolute": None})
    return {
        "vocab": config.get("vocab_size", 30522),
        "width": config.get("hidden_size", 768),
        "layers": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "mlp_width": config.get("intermediate_size", 3072),
        "positions": config.get("max_position_embeddings", 512),
        "segments": config.get("type_vocab_size", 2),
        "activation": _pick(config, "hidden_act", {"gelu": "gelu", **_ACTIVATIONS}),
        "eps": config.get("layer_norm_eps", 1e-12),
        "pooler": not names or "pooler.dense.weight" in names,
    }


def _modern_clip(tower: str) -> Callable[[State], dict[str, np.ndarray]]:
    """Releases from 5 on omit the tower's name; files have it."""

    def modern(state: State) -> dict[str, np.ndarray]:
        return {
            f"{tower}.{name}" if name.split(".")[0] in _CLIP_PARTS else name: array
            for name, array in state.items()
            if not name.endswith(".position_ids")
        }

    return modern


def _modern_t5(state: State) -> dict[str, np.ndarray]:
    """The token table once, under its own name; decoder tensors are dropped."""
    out = {n: x for n, x in state.items() if not n.startswith(("decoder.", "lm_head."))}
    if (tied := out.pop("encoder.embed_tokens.weight", None)) is not None:
        out.setdefault("shared.weight", tied)
    return out


def _modern_bert(state: State) -> dict[str, np.ndarray]:
    """Names without the "bert." of models with a head, and of today's norms."""
    out = {}
    for name, array in state.items():
        if name.endswith("embeddings.position_ids") or name.startswith("cls."):
            continue
        name = name.removeprefix("bert.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        out[name.replace("LayerNorm.beta", "LayerNorm.bias")] = array
    return out


def _ids(module: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)


def _pixels(module: ClipImage) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((1, module.size, module.size, 3), jnp.float32),)


_CLIP_PARTS = ("embeddings", "encoder", "final_layer_norm", "pre_layrnorm", "post_layernorm")
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "relu": "relu",
}
_T5_MLPS = {name: name for name in ("relu", "gated-gelu", "gated-silu")}

# model_type of a config.json -> name in LAYOUTS.
_KINDS = {
    "clip_text_model": "clip_text",
    "clip_vision_model": "clip_image",
    "t5": "t5",
    "bert": "bert",
}

LAYOUTS: dict[str, Layout] = {
    "clip_text": Layout(
        ClipText, _clip_text_fields, _modern_clip("text_model"), CLIP_TEXT_ROWS, _ids
    ),
    "clip_image": Layout(
        ClipImage, _clip_image_fields, _modern_clip("vision_model"), CLIP_IMAGE_ROWS, _pixels
    ),
    "t5": Layout(T5Encoder, _t5_fields, _modern_t5, T5_ROWS, _ids),
    "bert": Layout(Bert, _bert_fields, _modern_bert, BERT_ROWS, _ids),
}
