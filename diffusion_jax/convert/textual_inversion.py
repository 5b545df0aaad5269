"""Textual inversion embeddings: files in the layout of diffusers.

For one text encoder a file has {word: [k, d] or [d]}, or, from web interfaces, {"emb_params":
[k, d]} without the word; for SDXL's two {"clip_l": [k, 768], "clip_g": [k, 1280]}, also without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.convert.tensors import (
    finite,
    read_metadata,
    read_safetensors,
    write_safetensors,
)


class Word(NamedTuple):
    """A word and its vectors, [k, d] for each text encoder; "" if the file has no name."""

    name: str
    vectors: tuple[np.ndarray, ...]


def read_word(path: str | Path) -> Word:
    """The word of a .safetensors file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a pickle, damaged, or of another layout.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no embedding at {path}: name a .safetensors file.")
    state = read_safetensors(path)
    finite(state)
    if set(state) == {"clip_l", "clip_g"}:
        name, vectors = read_metadata(path).get("word", ""), (state["clip_l"], state["clip_g"])
    elif len(state) == 1:
        ((name, array),) = state.items()
        name, vectors = "" if name == "emb_params" else name, (array,)
    else:
        raise ValueError(
            f"{path.name} holds {sorted(state)[:5]}; an embedding has one tensor named by its "
            "word, or clip_l and clip_g"
        )
    vectors = tuple(np.atleast_2d(v) for v in vectors)
    if any(v.ndim != 2 for v in vectors) or len({len(v) for v in vectors}) != 1:
        raise ValueError(f"{path.name}: its shapes {[v.shape for v in vectors]} are not [k, d]")
    return Word(name, vectors)


def write_word(path: str | Path, name: str, vectors: Sequence[np.ndarray]) -> None:
    """The inverse of ``read_word``.

    Args:
        path: the file.
        name: the word.
        vectors: [k, d] for one text encoder, or for SDXL's two.
    """
    keys = (name,) if len(vectors) == 1 else ("clip_l", "clip_g")
    tensors = {key: np.asarray(v) for key, v in zip(keys, vectors, strict=True)}
    write_safetensors(path, tensors, {"format": "pt", "word": name})
