"""Adapter files of Stable Diffusion 1.x, 2.x and XL: read in every dialect, diffusers' written.

Each tensor's name is a module's (``lora_modules``) and an ending of ``lora_endings.ENDINGS``, which
says its role in one of ``lora_algebra.ALGEBRAS``; what a module's tensors say together is a
``Change`` of its weight and one of its bias.  A name that fits nowhere is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.convert.file_kinds import described
from diffusion_jax.convert.fitting import differences
from diffusion_jax.convert.lora_algebra import ALGEBRAS, Algebra, decomposed
from diffusion_jax.convert.lora_endings import grouped, missing_name
from diffusion_jax.convert.lora_modules import Module, aliases, modules
from diffusion_jax.convert.lora_settings import Told, told_of
from diffusion_jax.convert.stable_diffusion import Checkpoint
from diffusion_jax.convert.tensors import (
    finite,
    read_metadata,
    read_safetensors,
    write_safetensors,
)
from diffusion_jax.convert.textual_inversion import BUNDLE

Change = Callable[[np.ndarray], np.ndarray]
"""A parameter in float32, as it is here -> its difference, float32 of the same shape."""

Factors = dict[str, dict[str, np.ndarray]]


class LowRank(NamedTuple):
    """alpha/rank·down·up: the ``Change`` of a LoRA.

    Attributes:
        down: [..., m, r], in the file's dtype.
        up: [r, n].
        alpha: None for the rank.
    """

    down: np.ndarray
    up: np.ndarray
    alpha: float | None = None

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        ratio = 1.0 if self.alpha is None else self.alpha / len(self.up)
        down, up = (np.asarray(x, np.float32) for x in (self.down, self.up))
        return np.float32(ratio) * np.matmul(down, up)


class Lora(NamedTuple):
    """The adapter of one network.

    Attributes:
        changes: parameter path -> its ``Change``.
    """

    changes: dict[str, Change]

    @property
    def factors(self) -> Factors:
        """Path -> {"down", "up"} of the changes of low rank."""
        low = {p: c for p, c in self.changes.items() if isinstance(c, LowRank)}
        return {path: {"down": c.down, "up": c.up} for path, c in low.items()}

    @property
    def alphas(self) -> dict[str, float]:
        """Path -> alpha of the changes of low rank that have one; the default is the rank."""
        low = {p: c.alpha for p, c in self.changes.items() if isinstance(c, LowRank)}
        return {path: alpha for path, alpha in low.items() if alpha is not None}


def low_rank(factors: Mapping[str, Mapping[str, Any]], alphas: Mapping[str, float]) -> Lora:
    """The adapter of a LoRA's factors."""
    pairs = {
        path: LowRank(np.asarray(own["down"]), np.asarray(own["up"]), alphas.get(path))
        for path, own in factors.items()
    }
    return Lora(dict(pairs))


def read_lora(path: str | Path, checkpoint: Checkpoint) -> dict[str, Lora]:
    """The adapters of a .safetensors file, of any dialect, or of PEFT's folder.

    Words that the file brings along are left to ``textual_inversion.bundled_words``.

    Args:
        path: the file, or a folder with adapter_model.safetensors and adapter_config.json.
        checkpoint: the checkpoint that it adapts.

    Returns:
        "unet", "text_encoder" or "text_encoder_2" -> Lora, for those in the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a pickle or damaged, saying what it is if it is something else, or
            listing by name every tensor without a counterpart in the checkpoint, without the
            others of its kind, or of a wrong shape.
    """
    path = lora_file(path)
    state = {n: a for n, a in read_safetensors(path).items() if not BUNDLE.fullmatch(n)}
    metadata, known = read_metadata(path), aliases(checkpoint)
    groups = grouped(state, known)
    wanted: dict[str, tuple[int, ...]] = {}
    for module, roles in groups.items():
        wanted |= _wanted(state, roles, module, known[module])
    shapes = {name: array.shape for name, array in state.items()}
    if fault := differences(wanted, shapes):
        kind = described(shapes, metadata)
        said = f"it is {kind}; " if kind else ""
        raise ValueError(f"{path.name} does not fit the checkpoint: {said}{fault}.")
    if not groups:
        raise ValueError(f"{path.name} holds no tensor: fetch or export it again.")
    finite(state)
    told, made = told_of(path, metadata), {}
    for name, roles in groups.items():
        module = known[name]
        changes = made.setdefault(module.part, Lora({})).changes
        tensors = {role: state[tensor] for role, tensor in roles.items()}
        for slot, change in _changes(module, tensors, told(module)):
            if slot.path in changes:
                raise ValueError(f"{path.name} adapts {slot.leaf.name} twice, under two names.")
            changes[slot.path] = change
    return made


def lora_file(path: str | Path) -> Path:
    """The file of an adapter: itself, or that of PEFT's folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if path.is_dir():
        held = [path / name for name in _IN_FOLDER if (path / name).is_file()]
        path = held[0] if held else path / _IN_FOLDER[0]
    if not path.exists():
        raise FileNotFoundError(f"There is no LoRA at {path}: name a .safetensors file.")
    return path


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
        ValueError: for a path that the checkpoint lacks, or a change that is not of low rank.
    """
    known = {(m.part, m.weight.path): (name, m) for name, m in modules(checkpoint).items()}
    out = {}
    for part, lora in loras.items():
        for where, pair in lora.changes.items():
            if (part, where) not in known:
                raise ValueError(f"{part} has no kernel {where!r} that a LoRA could change.")
            if not isinstance(pair, LowRank):
                raise ValueError(f"the change of {part}'s {where!r} is not of low rank.")
            name, (_, _, slot, _) = known[part, where]
            up, rank = np.asarray(pair.up), len(pair.up)
            ratio = 1 if pair.alpha is None else pair.alpha / rank
            if ratio != 1:
                up = (up.astype(np.float32) * ratio).astype(up.dtype)
            up = up.reshape((1,) * (len(slot.shape) - 2) + up.shape)
            save = lambda x, slot=slot: np.ascontiguousarray(slot.leaf.save(x))
            out[f"{name}.lora_A.weight"] = save(np.asarray(pair.down))
            out[f"{name}.lora_B.weight"] = save(up)
    write_safetensors(path, out, {"format": "pt", **(metadata or {})})


def _wanted(
    state: Mapping[str, np.ndarray], roles: Mapping[str, str], name: str, module: Module
) -> dict[str, tuple[int, ...]]:
    """Tensor's name -> shape, of all that a module's tensors must be."""
    algebra, shapes = _algebra(roles), {role: state[n].shape for role, n in roles.items()}
    weight = module.weight.theirs
    needs = algebra.needs(frozenset(roles))
    wanted = {role: () for role in needs} | algebra.shapes(shapes, weight)
    single = lambda role, n: shapes[role] if state[roles[role]].size == n else (n,)
    if "alpha" in roles:
        wanted["alpha"] = single("alpha", 1)
    if "magnitude" in roles:
        wanted["magnitude"] = single("magnitude", weight[0])
    if "dora_scale" in roles:
        sizes = (weight[0], *weight[1:2])
        fits = state[roles["dora_scale"]].size in sizes
        wanted["dora_scale"] = shapes["dora_scale"] if fits else (weight[0],)
    if module.bias is not None:
        wanted |= {role: weight[:1] for role in _BIASES if role in roles}
    elif "up_bias" in wanted:
        del wanted["up_bias"]
    allowed = needs | algebra.may | set(_BIASES)
    return {
        roles.get(role) or missing_name(name, role, roles): shape
        for role, shape in wanted.items()
        if role in allowed and (role in roles or role in needs)
    }


def _algebra(roles: Mapping[str, str]) -> Algebra:
    there = frozenset(roles)
    return next(a for a in ALGEBRAS if not (needs := a.needs(there)) or needs & there)


def _of_inputs(factors: np.ndarray, module: Module, told: Told) -> bool:
    """Whether PEFT's (IA)^3 scales inputs: [1, in] of a dense layer; of a convolution, [1, n, 1, 1]
    in any case, as its settings say, or as the sizes do.
    """
    out, into, *kernel = module.weight.theirs
    if not kernel or (out != into and told.on_input is None):
        return factors.shape[0] != out if not kernel else factors.size != out
    return bool(told.on_input)


def _changes(module: Module, tensors: Mapping[str, np.ndarray], told: Told):
    """(slot, its change) of a module's weight and bias."""
    algebra = _algebra(dict.fromkeys(tensors, ""))
    rank = algebra.rank({role: x.shape for role, x in tensors.items()})
    alpha = float(tensors["alpha"].reshape(())) if "alpha" in tensors else None
    if alpha is None:
        alpha = told.alpha(rank)
    dense = module.weight.path.endswith("/kernel")
    if dense and set(tensors) <= {"down", "up", "alpha"}:
        down, up = (module.weight.leaf.load(tensors[role]) for role in ("down", "up"))
        yield module.weight, LowRank(down, up.reshape(up.shape[-2:]), alpha)
        return
    if "ia3_l" in tensors:
        tensors = {**tensors, "on_input": np.array(_of_inputs(tensors["ia3_l"], module, told))}
    s = told.bare if rank is None else 1.0 if alpha is None else alpha / rank
    wide = lambda: {role: np.asarray(x, np.float32) for role, x in tensors.items()}

    def weight(ours: np.ndarray) -> np.ndarray:
        own, theirs = wide(), np.ascontiguousarray(module.weight.leaf.save(ours))
        change = algebra.weight(own, theirs, s)
        change = np.zeros_like(theirs) if change is None else change.reshape(theirs.shape)
        if "dora_scale" in own or "magnitude" in own:
            change = decomposed(theirs, change, own)
        return module.weight.leaf.load(change)

    def bias(ours: np.ndarray) -> np.ndarray:
        own = wide()
        added = [own[role] for role in ("diff_b", "b_norm") if role in own]
        change = algebra.bias(own, ours, s)
        total = np.zeros_like(ours) if change is None else np.zeros_like(ours) + change
        for more in added:
            total = total + more
        return total

    if algebra.needs(frozenset(tensors)):
        yield module.weight, weight
    touched = any(role in tensors for role in (*_BIASES, "ia3_l"))
    if touched and module.bias is not None:
        yield module.bias, bias


_IN_FOLDER = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_BIASES = ("diff_b", "b_norm", "up_bias")
