"""Heights and widths of all images of a set, from their headers, measured once and cached."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data import picture_files
from diffusion_jax.data.kept import cached

log = logging.getLogger(__name__)

_AT_ONCE = 64  # encoded images in memory


def stamp(folder: str | os.PathLike) -> str:
    """Text that identifies the files of a prepared set by names, sizes and times."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    stats = [(path.name, path.stat()) for path in files]
    return " ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


def image_sizes(
    records: Any,
    key: str,
    shape: tuple[int | None, ...],
    identity: str,
    data_dir: str | os.PathLike | None = None,
) -> np.ndarray:
    """(height, width) of each image, int32 [n, 2].

    Args:
        records: n records, read by ``__getitems__``.
        key: key of the encoded image.
        shape: (height, width) of all images; None where they differ.
        identity: identifies this set and split.
        data_dir: folder of prepared sets.

    Raises:
        ValueError: if no image's header can be read.
    """
    if None not in shape:
        return np.tile(np.array(shape, np.int32), (len(records), 1))
    make = lambda: {"sizes": _measured(records, key)}
    return cached("sizes", identity, make, data_dir)["sizes"]


def _measured(records: Any, key: str) -> np.ndarray:
    n = len(records)
    log.info("reading the sizes of %d images", n)
    found = np.zeros((n, 2), np.int32)
    for start in range(0, n, _AT_ONCE):
        which = list(range(start, min(start + _AT_ONCE, n)))
        for i, record in zip(which, records.__getitems__(which), strict=True):
            found[i] = _size(record[key])
    whole = np.flatnonzero(found[:, 0])
    if not len(whole):
        raise ValueError(f"the size of none of {n} images can be read; prepare the data set anew.")
    # A broken record is replaced by the next good one (see ``faults``), and has its size.
    following = whole[np.searchsorted(whole, np.arange(n)) % len(whole)]
    return found[following]


def _size(encoded: bytes) -> tuple[int, int]:
    try:
        return picture_files.size_of(encoded)
    except Exception:  # a decoder may raise anything; the fault is counted when the image is read
        return (0, 0)
