"""OpenCLIP's names of a text transformer <-> transformers': a pure renaming.

Single files of SD 2 and SDXL hold their text encoder under OpenCLIP's names, its query, key and
value as one matrix, and its projection not transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.convert.text_configs import OPEN_CLIP_H

State = Mapping[str, np.ndarray]

# Not used for text states: the temperature of CLIP's loss, and a buffer.
IGNORED = frozenset({"logit_scale", "logit_bias", "attn_mask"})


def under(state: State, prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names start with prefix, such as "cond_stage_model.model.", without it."""
    return {
        name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
    }


def to_transformers(state: State) -> dict[str, np.ndarray]:
    """OpenCLIP's tensors under the names of ``text_encoders.from_transformers``.

    Args:
        state: name -> array, without the prefix that a single file puts before it (``under``);
            ``IGNORED`` is dropped.

    Returns:
        Views of the arrays; with "text_projection.weight" exactly if there is a text_projection.

    Raises:
        ValueError: listing the names that are not OpenCLIP's, or the fused arrays whose rows are
            not three of a kind.
    """
    out: dict[str, np.ndarray] = {}
    unknown = []
    for name, array in state.items():
        if name in IGNORED:
            continue
        if (match := _FUSED.fullmatch(name)) and array.shape[0] % 3 == 0:
            parts = np.split(array, 3)
            out |= {_theirs(match, part): x for part, x in zip("qkv", parts, strict=True)}
        elif name == "text_projection":
            out["text_projection.weight"] = array.T
        elif (known := _renamed(name, _TO)) is not None:
            out[known] = array
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"These are no tensors of an OpenCLIP text encoder: {sorted(unknown)}.")
    return out


def from_transformers(state: State) -> dict[str, np.ndarray]:
    """The inverse of ``to_transformers``, without the dropped tensors.

    Raises:
        ValueError: listing the names that OpenCLIP has no counterpart for, or the layers without
            all of query, key and value.
    """
    out: dict[str, np.ndarray] = {}
    fused: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for name, array in state.items():
        if match := _SPLIT.fullmatch(name):
            layer, part, kind = match.groups()
            fused.setdefault(f"{_LAYER}.{layer}.attn.in_proj_{kind}", {})[part] = array
        elif name == "text_projection.weight":
            out["text_projection"] = array.T
        elif (known := _renamed(name, _FROM)) is not None:
            out[known] = array
        else:
            unknown.append(name)
    unknown += [name for name, parts in fused.items() if set(parts) != set("qkv")]
    if unknown:
        raise ValueError(f"These have no whole counterpart in OpenCLIP: {sorted(unknown)}.")
    out |= {name: np.concatenate([p[x] for x in "qkv"]) for name, p in fused.items()}
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def config_of(state: State) -> dict[str, Any]:
    """The config.json of transformers for OpenCLIP's tensors; heads are 64 wide.

    Args:
        state: as for ``to_transformers``.

    Raises:
        ValueError: if a tensor that determines a size is missing.
    """
    try:
        vocab, width = state["token_embedding.weight"].shape
        positions = state["positional_embedding"].shape[0]
        mlp_width = state[f"{_LAYER}.0.mlp.c_fc.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"The OpenCLIP text encoder lacks the tensor {error}.") from None
    layers = {match[1] for name in state if (match := _FUSED.fullmatch(name))}
    projection = state.get("text_projection")
    kind = "CLIPTextModel" if projection is None else "CLIPTextModelWithProjection"
    return {
        **OPEN_CLIP_H,
        "architectures": [kind],
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "projection_dim": width if projection is None else projection.shape[1],
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // 64,
        "max_position_embeddings": positions,
    }


def _theirs(match: re.Match[str], part: str) -> str:
    layer, kind = match.groups()
    return f"text_model.encoder.layers.{layer}.self_attn.{part}_proj.{kind}"


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    for pattern, template in table.items():
        if match := re.fullmatch(pattern, name):
            return template.format(*match.groups())
    return None


_LAYER = "transformer.resblocks"
_FUSED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_SPLIT = re.compile(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
_NAMES = (
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.{0}", "text_model.final_layer_norm.{0}"),
    *(
        (f"{_LAYER}.{{0}}.{ours}.{{1}}", f"text_model.encoder.layers.{{0}}.{theirs}.{{1}}")
        for ours, theirs in (
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("attn.out_proj", "self_attn.out_proj"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        )
    ),
)


def _pattern(template: str) -> str:
    """A template as the regex of its names."""
    number, kind = r"(\d+)", r"(weight|bias)"
    first = kind if "{1}" not in template else number
    escaped = template.replace(".", r"\.")
    return escaped.replace("{0}", first).replace("{1}", kind)


_TO = {_pattern(ours): theirs for ours, theirs in _NAMES}
_FROM = {_pattern(theirs): ours for ours, theirs in _NAMES}
