"""The endings of tensors' names in adapter files, and the role that each says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffusion_jax.convert.lora_modules import Module


def grouped(state: Mapping[str, Any], known: Mapping[str, Module]) -> dict[str, dict[str, str]]:
    """Module's name -> {role: tensor's name}, without the names that fit nowhere."""
    groups: dict[str, dict[str, str]] = {}
    for name in state:
        plain = re.sub(r"\.default(?=\.weight$|\.bias$|$)", "", name)  # PEFT's name of an adapter
        tries = ((plain.removesuffix(end), role) for end, role in ENDINGS if plain.endswith(end))
        found = next(((module, role) for module, role in tries if module in known), None)
        # A weight alone is a checkpoint's own.
        if found and found[1] == "scale" and f"{found[0]}.on_input" not in state:
            found = None
        if found and found[1] not in groups.get(found[0], {}):
            groups.setdefault(found[0], {})[found[1]] = name
    return groups


def missing_name(module: str, role: str, roles: Mapping[str, str]) -> str:
    """The name of a tensor that is missing, in the manner of one that is there."""
    ends = {"down": _DOWN, "up": _UP}
    other = {"down": "up", "up": "down"}.get(role, "")
    for down, up in zip(_DOWN, _UP, strict=True):
        have, lack = (up, down) if role == "down" else (down, up)
        if other in roles and roles[other].endswith(have):
            return module + lack
    return module + (ends[role][0] if role in ends else f".{role}")


# In pairs.
_DOWN = (
    ".lora_A.weight", ".lora_down.weight", ".lora_linear_layer.down.weight", ".lora.down.weight",
    "_lora.down.weight",
)  # fmt: skip
_UP = (
    ".lora_B.weight", ".lora_up.weight", ".lora_linear_layer.up.weight", ".lora.up.weight",
    "_lora.up.weight",
)  # fmt: skip
_NAMED = (
    "alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm", "on_input", "ia3_l",
    *(f"hada_{x}" for x in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{x}" for x in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
)  # fmt: skip
ENDINGS: tuple[tuple[str, str], ...] = (
    *((end, "down") for end in _DOWN),
    *((end, "up") for end in _UP),
    (".lora_mid.weight", "mid"),
    (".lora_B.bias", "up_bias"),
    (".lora_magnitude_vector", "magnitude"),
    (".lora_magnitude_vector.weight", "magnitude"),
    *((f".{role}", role) for role in _NAMED),
    (".weight", "scale"),
)
"""Ending of a tensor's name -> its role; longer ones first where one ends the other."""
