"""Tensor files: safetensors in, nothing that can run code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

_PICKLE_STARTS = (b"\x80", b"PK\x03\x04")
"""First bytes of a bare pickle, and of the zip that torch.save writes."""


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a .safetensors file, by name.

    Args:
        path: the file.

    Returns:
        Name -> array in the file's dtype.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is a pickle (such as .bin, .pt or .ckpt), or damaged.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(4)
    # A safetensors file starts with the length of its header, then that header's opening brace.
    if start.startswith(_PICKLE_STARTS) and not _has_header(path):
        raise ValueError(
            f"{path.name} is a pickle, which can run code when it is read: convert it to "
            "safetensors where you trust it, and give that file."
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file ({error}).") from error


def _has_header(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"
