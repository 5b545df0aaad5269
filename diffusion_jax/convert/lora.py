"""LoRA files of Stable Diffusion 1.x, 2.x and XL: both common layouts are read, diffusers' written.

diffusers and PEFT write ``unet.<module>.lora_A.weight`` and ``lora_B.weight``, before 2024 also
``lora.down`` and ``lora.up``, or ``processor.to_q_lora.down``; kohya's scripts and the interfaces
that follow them write ``lora_unet_<module>.lora_down.weight``, ``lora_up.weight`` and ``alpha``,
dots of the module's name as underscores, SDXL's U-Net in the original numbering of blocks.  The
module's name is that of the base weights, so the base weights' maps are used here too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.convert.fitting import differences
from diffusion_jax.convert.names import Leaf, Row, by_path, locate
from diffusion_jax.convert.sd_names import rows as unet_rows
from diffusion_jax.convert.sd_unet import DEFAULTS
from diffusion_jax.convert.single_file import unet_from_diffusers
from diffusion_jax.convert.stable_diffusion import Checkpoint
from diffusion_jax.convert.tensors import (
    finite,
    read_metadata,
    read_safetensors,
    write_safetensors,
)
from diffusion_jax.convert.text_rows import CLIP_TEXT_ROWS

Factors = dict[str, dict[str, np.ndarray]]


class Lora(NamedTuple):
    """The LoRA of one network.

    Attributes:
        factors: parameter path -> {"down" [..., m, r], "up" [r, n]}, in the file's dtype.
        alphas: parameter path -> alpha, for those with one; the default is the rank.
    """

    factors: Factors
    alphas: dict[str, float]


class _Slot(NamedTuple):
    """A kernel that a LoRA can change: its network, path, shape and entry in the base's map."""

    part: str
    path: str
    shape: tuple[int, ...]
    leaf: Leaf


class _Pair(NamedTuple):
    """A module's name in a file, and the full names of its two tensors."""

    module: str
    down: str
    up: str


def read_lora(path: str | Path, checkpoint: Checkpoint) -> dict[str, Lora]:
    """The LoRA of a .safetensors file, of either layout.

    Args:
        path: the file.
        checkpoint: the checkpoint that it adapts.

    Returns:
        "unet", "text_encoder" or "text_encoder_2" -> Lora, for those in the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a pickle or damaged, or listing by name every tensor without a
            counterpart in the checkpoint, without its other factor, or of a wrong shape.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no LoRA at {path}: name a .safetensors file.")
    state, slots = read_safetensors(path), _aliases(checkpoint)
    pairs, alphas = _sorted(state, slots)
    wanted = {n: s for pair in pairs for n, s in _shapes(state, pair, slots[pair.module]).items()}
    adapted = {pair.module for pair in pairs}
    scalar = lambda array: array.shape if array.size == 1 else ()
    wanted |= {name: scalar(state[name]) for m, name in alphas.items() if m in adapted}
    if fault := differences(wanted, {name: array.shape for name, array in state.items()}):
        raise ValueError(f"{path.name} does not fit the checkpoint: {fault}.")
    if not pairs:
        raise ValueError(f"{path.name} holds no tensor: fetch or export it again.")
    finite(state)
    told, made = _metadata_alphas(path, dict(_modules(checkpoint))), {}
    for pair in pairs:
        slot = slots[pair.module]
        own = made.setdefault(slot.part, Lora({}, {}))
        if slot.path in own.factors:
            raise ValueError(f"{path.name} adapts {slot.leaf.name} twice, under two names.")
        down, up = (slot.leaf.load(state[name]) for name in (pair.down, pair.up))
        own.factors[slot.path] = {"down": down, "up": up.reshape(up.shape[-2:])}
        if pair.module in alphas:
            own.alphas[slot.path] = float(state[alphas[pair.module]].reshape(()))
        elif (slot.part, slot.path) in told:
            own.alphas[slot.path] = told[slot.part, slot.path]
    return made


def write_lora(
    path: str | Path,
    loras: Mapping[str, Lora],
    checkpoint: Checkpoint,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the layout of diffusers and PEFT, each array in its dtype.

    That layout has no alphas that all tools read, so alpha/rank is multiplied into "up"; where
    alpha is the rank, tensors are unchanged, and a file that was read is written back the same.

    Args:
        path: the file.
        loras: "unet", "text_encoder", "text_encoder_2" -> Lora.
        checkpoint: the checkpoint that they adapt.
        metadata: texts to store in the header.

    Raises:
        ValueError: for a path that the checkpoint lacks.
    """
    known = {(slot.part, slot.path): (name, slot) for name, slot in _modules(checkpoint)}
    out = {}
    for part, lora in loras.items():
        for where, pair in lora.factors.items():
            if (part, where) not in known:
                raise ValueError(f"{part} has no kernel {where!r} that a LoRA could change.")
            name, slot = known[part, where]
            up = np.asarray(pair["up"])
            ratio = lora.alphas.get(where, up.shape[0]) / up.shape[0]
            if ratio != 1:
                up = (up.astype(np.float32) * ratio).astype(up.dtype)
            up = up.reshape((1,) * (len(slot.shape) - 2) + up.shape)
            save = lambda x, slot=slot: np.ascontiguousarray(slot.leaf.save(x))
            out[f"{name}.lora_A.weight"] = save(np.asarray(pair["down"]))
            out[f"{name}.lora_B.weight"] = save(up)
    write_safetensors(path, out, {"format": "pt", **(metadata or {})})


def _modules(checkpoint: Checkpoint) -> Iterator[tuple[str, _Slot]]:
    """Name such as unet.mid_block... -> slot, of each kernel, by the maps of the base weights."""
    config = checkpoint.configs["unet"]
    yield from _of_part("unet", checkpoint.unet.params, unet_rows(config))
    for part, encoder in zip(_TEXTS, checkpoint.text_encoders, strict=False):
        yield from _of_part(part, encoder.params, CLIP_TEXT_ROWS)


def _of_part(
    part: str, params: Mapping[str, Any], rows: tuple[Row, ...]
) -> Iterator[tuple[str, _Slot]]:
    for path, array in by_path(params).items():
        if path.endswith("/kernel"):
            leaf = locate(path, rows)
            yield (
                f"{part}.{leaf.name.removesuffix('.weight')}",
                _Slot(part, path, array.shape, leaf),
            )


def _aliases(checkpoint: Checkpoint) -> dict[str, _Slot]:
    """Every name that a file may have for a module -> its slot."""
    slots = dict(_modules(checkpoint))
    found = dict(slots)
    unet = {n.removeprefix("unet."): s for n, s in slots.items() if s.part == "unet"}
    for name, slot in unet.items():
        old = re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1", name)
        found[f"unet.{old}"] = slot
        found["lora_unet_" + name.replace(".", "_")] = slot
    state: Any = {f"{name}.weight": slot for name, slot in unet.items()}
    original = unet_from_diffusers(state, {**DEFAULTS, **checkpoint.configs["unet"]})
    for name, slot in original.items():
        kohya = name.removesuffix(".weight").replace(".", "_")
        found[f"lora_unet_{kohya}"] = slot  # pyright: ignore[reportArgumentType]
    for name, slot in slots.items():
        if slot.part == "unet":
            continue
        module = name.removeprefix(f"{slot.part}.")
        found[f"{slot.part}.{module.removeprefix('text_model.')}"] = slot
        old = re.sub(r"\.(q|k|v|out)_proj$", r".to_\1", module)
        found.setdefault(f"{slot.part}.{old}", slot)
        for prefix in _TEXTS[slot.part]:
            found[f"{prefix}_{module.replace('.', '_')}"] = slot
    return found


def _sorted(
    state: Mapping[str, Any], slots: Mapping[str, _Slot]
) -> tuple[list[_Pair], dict[str, str]]:
    """Names of tensors as (down, up) pairs, and module -> its alpha's name."""
    pairs, alphas = {}, {}
    for name in state:
        if name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha")] = name
        for down, up in _ENDINGS:
            ending = next((e for e in (down, up) if name.endswith(e)), None)
            if ending and (module := name.removesuffix(ending)) in slots:
                pairs[_Pair(module, module + down, module + up)] = None
                break
    return list(pairs), alphas


def _shapes(
    state: Mapping[str, np.ndarray], pair: _Pair, slot: _Slot
) -> dict[str, tuple[int, ...]]:
    """The shapes that a pair's tensors must have, given the rank of one of them."""
    rank = 1
    for name, axis in ((pair.up, 1), (pair.down, 0)):  # [out, r, ...] and [r, in, ...] there
        if name in state and state[name].ndim > axis:
            rank = state[name].shape[axis]
    *inputs, outputs = slot.shape
    ours = {pair.down: (*inputs, rank), pair.up: (*(1,) * (len(inputs) - 1), rank, outputs)}
    wanted = {n: slot.leaf.save(np.broadcast_to(False, s)).shape for n, s in ours.items()}
    # A 1x1 convolution there may be adapted as a dense layer, which it is here.
    flat = lambda name: len(slot.shape) == 2 and name in state and state[name].ndim == 2
    return {name: shape[:2] if flat(name) else shape for name, shape in wanted.items()}


def _metadata_alphas(path: Path, modules: Mapping[str, _Slot]) -> dict[tuple[str, str], float]:
    """Slot -> alpha, from the metadata that recent releases of diffusers write."""
    try:
        settings = json.loads(read_metadata(path).get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise ValueError(f"{path.name}: lora_adapter_metadata is not JSON ({error}).") from None
    if scaled := [
        name for name, value in settings.items() if name.endswith("use_rslora") and value
    ]:
        raise ValueError(f"{path.name}: {scaled[0]} = true cannot be converted: only false can.")
    alphas = {}
    for name, slot in modules.items():
        alpha = settings.get(f"{slot.part}.lora_alpha")
        for pattern, own in (settings.get(f"{slot.part}.alpha_pattern") or {}).items():
            if f".{name}".endswith("." + pattern.removeprefix("^")):
                alpha = own
        if alpha is not None:
            alphas[slot.part, slot.path] = float(alpha)
    return alphas


_TEXTS = {"text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}
"""Text encoders in their order -> kohya's prefixes of each."""

# Down and up, longer suffixes first.
_ENDINGS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
