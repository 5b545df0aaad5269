"""Pages of a mapped file, released once their contents are copied elsewhere."""

from __future__ import annotations

import mmap

import numpy as np


def forget(array: np.ndarray) -> None:
    """Release the memory of an array that is a view of a mapped file.

    Its bytes are read from the file again if they are used again.  An array that owns its memory
    is not touched.

    Args:
        array: such as one of ``tensors.read_safetensors``, or a view of it.
    """
    held = array
    while held is not None and not isinstance(held, mmap.mmap):
        held = held.obj if isinstance(held, memoryview) else getattr(held, "base", None)
    if held is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    start = np.frombuffer(held, np.uint8).ctypes.data
    # Only complete pages: neighbouring bytes may be in use.
    first = -(-(low - start) // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (high - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        held.madvise(mmap.MADV_DONTNEED, first, last - first)
