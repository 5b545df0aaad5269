"""The modules of a checkpoint that adapter files change, under every name that files have for them.

diffusers and PEFT write ``unet.<module>``, before 2024 also ``<attention>.processor.to_q``; PEFT
alone ``base_model.model.<module>`` or the bare module; kohya's scripts and the interfaces that
follow them ``lora_unet_<module>``, dots of the module's name as underscores, SDXL's U-Net in the
original numbering of blocks; ComfyUI ``diffusion_model.<module>`` in that numbering.  The module's
name is that of the base weights, so the base weights' maps are used here too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.convert.names import Leaf, Row, by_path, locate
from diffusion_jax.convert.sd_names import rows as unet_rows
from diffusion_jax.convert.sd_unet import DEFAULTS
from diffusion_jax.convert.single_file import unet_from_diffusers
from diffusion_jax.convert.stable_diffusion import Checkpoint
from diffusion_jax.convert.text_rows import CLIP_TEXT_ROWS

TEXTS = {"text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}
"""Text encoders in their order -> kohya's prefixes of each."""


class Slot(NamedTuple):
    """A parameter that an adapter can change: its path, shape and entry in the base's map."""

    path: str
    shape: tuple[int, ...]
    leaf: Leaf

    @property
    def theirs(self) -> tuple[int, ...]:
        """Its shape there."""
        return self.leaf.save(np.broadcast_to(False, self.shape)).shape


class Module(NamedTuple):
    """A layer of one network.

    Attributes:
        part: "unet", "text_encoder" or "text_encoder_2".
        name: of the layer in diffusers' layout, such as "mid_block.resnets.0.conv1".
        weight: its kernel, a norm's scale or a token table.
        bias: its bias, if there is one.
    """

    part: str
    name: str
    weight: Slot
    bias: Slot | None


def modules(checkpoint: Checkpoint) -> dict[str, Module]:
    """Name such as "unet.mid_block..." -> module, by the maps of the base weights."""
    parts = [("unet", checkpoint.unet.params, unet_rows(checkpoint.configs["unet"]))]
    texts = zip(TEXTS, checkpoint.text_encoders, strict=False)
    parts += [(part, encoder.params, CLIP_TEXT_ROWS) for part, encoder in texts]
    return {f"{m.part}.{m.name}": m for part in parts for m in _of_part(*part)}


def _of_part(part: str, params: Mapping[str, Any], rows: tuple[Row, ...]) -> Iterator[Module]:
    slots: dict[str, dict[str, Slot]] = {}
    for path, array in by_path(params).items():
        leaf = locate(path, rows)
        name, _, kind = leaf.name.rpartition(".")
        slots.setdefault(name, {})[kind] = Slot(path, array.shape, leaf)
    for name, own in slots.items():
        if "weight" in own:
            yield Module(part, name, own["weight"], own.get("bias"))


def aliases(checkpoint: Checkpoint) -> dict[str, Module]:
    """Every name that a file may have for a module -> the module."""
    known = modules(checkpoint)
    found = dict(known)
    unet = {m.name: m for m in known.values() if m.part == "unet"}
    for name, module in unet.items():
        old = re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1", name)
        flat = name.replace(".", "_")
        for said in (old, name):
            found |= {f"unet.{said}": module, said: module, f"base_model.model.{said}": module}
        found |= {f"lora_unet_{flat}": module, f"lycoris_{flat}": module}
    for name, module in _original(unet, checkpoint).items():
        found |= {f"{prefix}{name}": module for prefix in _ORIGINAL}
        found["lora_unet_" + name.replace(".", "_")] = module
    alone = len(checkpoint.text_encoders) == 1
    for module in known.values():
        if module.part in TEXTS:
            found |= {name: module for name in _text_names(module, alone) if name not in found}
    return found


def _original(unet: Mapping[str, Module], checkpoint: Checkpoint) -> dict[str, Module]:
    """The U-Net's modules by their names in the original layout."""
    state: Any = {f"{name}.weight": module for name, module in unet.items()}
    config = {**DEFAULTS, **checkpoint.configs["unet"]}
    named: Any = unet_from_diffusers(state, config)
    return {name.removesuffix(".weight"): module for name, module in named.items()}


def _text_names(module: Module, alone: bool) -> Iterator[str]:
    """Names of a text encoder's module; bare ones too if there is one encoder alone."""
    name, short = module.name, module.name.removeprefix("text_model.")
    yield f"{module.part}.{short}"
    old = re.sub(r"\.(q|k|v|out)_proj$", r".to_\1", name)
    yield f"{module.part}.{old}"
    yield f"base_model.model.{module.part}.{name}"
    for prefix in TEXTS[module.part]:
        yield f"{prefix}_{name.replace('.', '_')}"
    if alone:
        yield from (name, short, f"base_model.model.{name}", f"base_model.model.{short}")


_ORIGINAL = ("diffusion_model.", "model.diffusion_model.")
