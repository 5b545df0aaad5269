"""Textual inversion embeddings: files of diffusers, of web interfaces and within LoRA files.

For one text encoder a file has {word: [k, d] or [d]}, or, from web interfaces, {"emb_params":
[k, d]} without the word, or the pickle {"string_to_param": {"*": [k, d]}, "name": word}; for SDXL's
two {"clip_l": [k, 768], "clip_g": [k, 1280]}, also without.  OneTrainer puts them into a LoRA file,
as "bundle_emb.WORD." and one of these names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.convert.file_kinds import described
from diffusion_jax.convert.tensors import (
    finite,
    is_pickle,
    read_metadata,
    read_safetensors,
    write_safetensors,
)
from diffusion_jax.convert.torch_pickle import read_tree

MOST_VECTORS = 1000
"""Most vectors of a word; a prompt's chunk has room for 75."""

BUNDLE = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.\*|emb_params|clip_l|clip_g)")
"""OneTrainer's name of a word's tensor within a LoRA file."""

_NAMELESS = ("emb_params", "string_to_param.*", "clip_l", "clip_g", "*")
_TWO = ("clip_l", "clip_g")


class Word(NamedTuple):
    """A word and its vectors, [k, d] for each text encoder."""

    name: str
    vectors: tuple[np.ndarray, ...]


def read_word(path: str | Path) -> Word:
    """The word of a .safetensors file, or of a pickle (.pt, .bin), of which no code is run.

    Its name is what the file says, or, as web interfaces have it, the file's own.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or of another layout.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no embedding at {path}: name a .safetensors file.")
    if is_pickle(path):
        state, name = _of_tree(read_tree(path))
    else:
        state, name = read_safetensors(path), read_metadata(path).get("word", "")
    return _word(path, state, name, path.stem)


def bundled_words(path: str | Path) -> tuple[Word, ...]:
    """The words that OneTrainer has put into a LoRA file, in the file's order; () for none.

    Raises:
        ValueError: as ``read_word``.
    """
    path, found = Path(path), {}
    for name, array in read_safetensors(path).items():
        if match := BUNDLE.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = array
    return tuple(_word(path, state, name, name) for name, state in found.items())


def _of_tree(tree: Any) -> tuple[dict[str, Any], str]:
    """The tensors of a pickle and the name that it says, or ""."""
    if not isinstance(tree, Mapping):
        return {}, ""
    if isinstance(tree.get("string_to_param"), Mapping):
        return dict(tree["string_to_param"]), str(tree.get("name") or "")
    return {str(k): v for k, v in tree.items() if isinstance(v, np.ndarray)}, ""


def _word(path: Path, state: Mapping[str, Any], name: str, stem: str) -> Word:
    """The word of a file's tensors, checked."""
    keys = _TWO if set(state) == set(_TWO) else tuple(state)
    if keys != _TWO and len(keys) != 1:
        kind = described({str(k): np.shape(v) for k, v in state.items()})
        said = f" (it is {kind})" if kind else ""
        raise ValueError(
            f"{path.name} holds {sorted(map(str, state))[:5]}{said}; an embedding has one tensor "
            "named by its word, or clip_l and clip_g"
        )
    vectors = tuple(np.atleast_2d(state[key]) for key in keys)
    shapes = [v.shape for v in vectors]
    matrices = all(v.ndim == 2 and 0 < len(v) <= MOST_VECTORS for v in vectors)
    if not matrices or len({len(v) for v in vectors}) != 1:
        raise ValueError(
            f"{path.name}: its shapes {shapes} are not [k, d], with 1 to {MOST_VECTORS} vectors"
        )
    if any(v.dtype.kind not in "fV" for v in vectors):
        raise ValueError(f"{path.name}: its vectors are {vectors[0].dtype}, not of a float type")
    finite(dict(zip(keys, vectors, strict=True)))
    said = name or (keys[0] if keys[0] not in _NAMELESS else stem)
    return Word(" ".join(said.split()), vectors)


def write_word(path: str | Path, name: str, vectors: Sequence[np.ndarray]) -> None:
    """The inverse of ``read_word``.

    Args:
        path: the file.
        name: the word.
        vectors: [k, d] for one text encoder, or for SDXL's two.
    """
    keys = (name,) if len(vectors) == 1 else _TWO
    tensors = {key: np.asarray(v) for key, v in zip(keys, vectors, strict=True)}
    write_safetensors(path, tensors, {"format": "pt", "word": name})
