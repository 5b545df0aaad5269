"""Captions as outputs of a frozen text encoder, computed once and cached.

An encoder costs more than a step of a small network, and its output is the same each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data.kept import cached

Encode = Callable[[Sequence[str]], Mapping[str, np.ndarray]]
"""n texts -> name -> array [n, ...]."""


class Encoded(NamedTuple):
    """Texts and their encodings.

    Attributes:
        row: text -> index of its row.
        arrays: name -> [n, ...].
    """

    row: dict[str, int]
    arrays: dict[str, np.ndarray]

    def of(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The rows of these texts, name -> [len(texts), ...].

        Raises:
            KeyError: for a text that was not encoded.
        """
        rows = [self.row[str(text)] for text in texts]
        return {name: array[rows] for name, array in self.arrays.items()}

    def attached(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with the encoded captions in place of "caption"."""
        rest = {name: value for name, value in batch.items() if name != "caption"}
        return {**rest, **self.of(batch["caption"])}


def encoded(
    texts: Sequence[str], encode: Encode, name: str, data_dir: str | os.PathLike | None = None
) -> Encoded:
    """The encodings of texts, read from a cache beside the data where there is one.

    Args:
        texts: any texts; each is encoded once.
        encode: the encoder.
        name: identifies the encoder with everything its result depends on; part of the file name.
        data_dir: folder of prepared sets (see ``catalog.data_root``).
    """
    unique = sorted(set(map(str, texts)))
    identity = "\n".join([name, *unique])
    arrays = cached("captions", identity, lambda: encode(unique), data_dir)
    return Encoded({text: i for i, text in enumerate(unique)}, arrays)
