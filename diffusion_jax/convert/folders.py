"""Folders of weights: a file or shards with an index, variants of precision, and JSON configs.

A checkpoint is not trusted, so a file name inside it must not point outside of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from diffusion_jax.convert.tensors import read_safetensors, write_safetensors
from diffusion_jax.files import whole

_STEMS = ("diffusion_pytorch_model", "model")
"""Names that diffusers and transformers give to a part's weights."""

_SHARD = re.compile(r"-\d+-of-\d+$")
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
_LARGEST_JSON = 64 * 2**20
"""Bytes; a tokenizer's vocabulary has a few million."""


def inside(root: str | Path, name: str) -> Path:
    """The path of a name within a checkpoint.

    Links are followed as long as they stay inside.  For a snapshot in the cache of the
    Hugging Face hub, models--x--y/snapshots/z, whose files are links to ../../blobs, the whole of
    models--x--y is the checkpoint.

    Args:
        root: the checkpoint's folder.
        name: relative, with forward slashes.

    Raises:
        ValueError: if the name, or a link on its way, leads out of the checkpoint.
    """
    root, parts = Path(root), PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name or "\0" in name:
        raise ValueError(
            f"{name!r} in the checkpoint {root.name} is not a name inside of it: the checkpoint "
            "is damaged or hostile; use another copy."
        )
    path = root / parts
    bound = _bound(root.resolve())
    try:
        real = path.resolve()
        circle = real.is_symlink()  # as newer releases of Python leave it
    except (OSError, RuntimeError):
        circle = True
    if circle:
        raise ValueError(f"{name!r} in the checkpoint {root.name} is a link to itself.")
    if not real.is_relative_to(bound):
        raise ValueError(
            f"{name!r} in the checkpoint {root.name} is a symbolic link out of it: put the file "
            "itself there."
        )
    return path


def _bound(root: Path) -> Path:
    """The folder that the checkpoint's links must not leave."""
    cache = root.parent.parent
    cached = root.parent.name == "snapshots" and cache.name.startswith("models--")
    return cache if cached and (cache / "blobs").is_dir() else root


def read_json(root: str | Path, name: str) -> dict[str, Any]:
    """A JSON object of a checkpoint, such as "unet/config.json".

    Args:
        root: the checkpoint's folder.
        name: the file's, within it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a JSON object, is too large, or is outside of the checkpoint.
    """
    path = inside(root, name)
    if not path.is_file():
        raise FileNotFoundError(f"The checkpoint {Path(root).name} has no {name}: is it complete?")
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{name} has {path.stat().st_size} bytes, too many to be settings.")
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error}): fetch it again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds a {type(value).__name__}, not a JSON object.")
    return value


def write_json(root: str | Path, name: str, value: Mapping[str, Any]) -> None:
    """Write a JSON object into a checkpoint, atomically."""
    with whole(inside(root, name)) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def read_weights(
    root: str | Path, part: str = "", variant: str | None = None
) -> dict[str, np.ndarray]:
    """Every tensor of one part of a checkpoint, mapped into memory (see ``read_safetensors``).

    Args:
        root: the checkpoint's folder.
        part: the folder of the part within it, such as "unet"; "" for root itself.
        variant: such as "fp16" for diffusion_pytorch_model.fp16.safetensors; None for the plain
            file, or, if it is absent, for the only variant.

    Returns:
        Name -> read-only array in the file's dtype.

    Raises:
        FileNotFoundError: if there are no weights, naming the files that exist.
        ValueError: if they are pickles, damaged, or are outside of the checkpoint.
    """
    name = _find(Path(root), part, variant)
    if not name.endswith(".json"):
        return read_safetensors(inside(root, name))
    return _read_shards(Path(root), name)


def _find(root: Path, part: str, variant: str | None) -> str:
    """The name of a part's weights file or index."""
    folder = inside(root, part) if part else root
    if not folder.is_dir():
        raise FileNotFoundError(f"The checkpoint {root.name} has no folder {part!r}.")
    there = sorted(p.name for p in folder.iterdir())
    variants = _variants(there)
    if variant is None and None not in variants and len(variants) == 1:
        (variant,) = variants
    if variant in variants:
        return f"{part}/{variants[variant]}" if part else variants[variant]
    where = part or root.name
    if variants:
        known = ", ".join(repr(v) for v in sorted(variants, key=str))
        raise FileNotFoundError(f"{where} has no weights of variant={variant!r}: give {known}.")
    if pickles := [p.name for pattern in _PICKLES for p in sorted(folder.glob(pattern))]:
        raise ValueError(
            f"{where} has only {', '.join(pickles)}, pickles, which can run code when they are "
            "read: convert them to safetensors where you trust them."
        )
    raise FileNotFoundError(f"{where} has no .safetensors file; it has {', '.join(there[:20])}.")


def _variants(there: list[str]) -> dict[str | None, str]:
    """Variant -> file name; an index before a file that goes by the same name."""
    found: dict[str | None, str] = {}
    for stem in _STEMS:
        for name in sorted(there, key=lambda n: not n.endswith(".json")):
            first, *middle = name.removeprefix(stem).split(".")
            ending = "json" if middle and middle[-1] == "json" else "safetensors"
            known = {"safetensors", "index", "json"} if ending == "json" else {"safetensors"}
            if not name.startswith(stem) or first or not known <= set(middle):
                continue
            rest = [word for word in middle if word not in known]
            if len(rest) <= 1 and not any(_SHARD.search(word) for word in rest):
                found.setdefault(rest[0] if rest else None, name)
    return found


def _read_shards(root: Path, index_name: str) -> dict[str, np.ndarray]:
    index = read_json(root, index_name).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
        raise ValueError(f"{index_name} has no weight_map from tensors to files: fetch it again.")
    part = index_name.rpartition("/")[0]
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(index.values())):
        path = inside(root, f"{part}/{file}" if part and not file.startswith("/") else file)
        if not path.is_file():
            raise FileNotFoundError(f"{index_name} names {file}, which is not there: fetch it.")
        held = read_safetensors(path)
        said = {name for name, where in index.items() if where == file}
        if said != set(held):
            odd = sorted(said ^ set(held))
            raise ValueError(
                f"{index_name} and {file} disagree about {len(odd)} tensors, such as {odd[0]}: "
                "they are of two checkpoints; fetch both again."
            )
        tensors |= held
    return tensors


def write_weights(
    root: str | Path,
    part: str,
    tensors: Mapping[str, Any],
    stem: str = "diffusion_pytorch_model",
    variant: str | None = None,
    most_bytes: int = 10 * 10**9,
) -> list[str]:
    """Write one part's weights, in shards and with an index if they are larger than most_bytes.

    Files are written atomically, the index last.

    Args:
        root: the checkpoint's folder.
        part: the folder of the part within it, created if necessary; "" for root itself.
        tensors: name -> array, written in its dtype.
        stem: "diffusion_pytorch_model", or "model" for a text encoder.
        variant: such as "fp16", for the name only.
        most_bytes: largest size of a file; a larger tensor has its own file.

    Returns:
        The files' names within ``part``.
    """
    folder = inside(root, part) if part else Path(root)
    dotted = f".{variant}" if variant else ""
    shards = list(_shards({n: np.asarray(a) for n, a in tensors.items()}, most_bytes))
    plain = f"{stem}{dotted}.safetensors"
    index = f"{stem}.safetensors.index{dotted}.json"
    if len(shards) == 1:
        write_safetensors(folder / plain, shards[0], {"format": "pt"})
        (folder / index).unlink(missing_ok=True)  # of earlier, larger weights: it would be read
        return [plain]
    # No index while shards are replaced, so that no mixture of both can be read.
    (folder / index).unlink(missing_ok=True)
    count = len(shards)
    names = [f"{stem}{dotted}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard, {"format": "pt"})
    where = {t: name for name, shard in zip(names, shards, strict=True) for t in sorted(shard)}
    total = sum(a.nbytes for shard in shards for a in shard.values())
    write_json(folder, index, {"metadata": {"total_size": total}, "weight_map": where})
    (folder / plain).unlink(missing_ok=True)
    return [*names, index]


def _shards(tensors: Mapping[str, np.ndarray], most_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    """Consecutive tensors, as many as fit; one shard if there is no tensor."""
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, array in tensors.items():
        if shard and size + array.nbytes > most_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += array.nbytes
    yield shard
