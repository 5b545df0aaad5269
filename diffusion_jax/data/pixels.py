"""Conversion between bytes and real numbers, the same everywhere in the project.

    x = byte / 127.5 - 1,        byte = round(clip((x + 1) * 127.5, 0, 255)).

Exact inverses on the 256 bytes; 0 becomes -1, 255 becomes 1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _backend(x: Any) -> Any:
    return jnp if isinstance(x, jax.Array) else np


def to_unit(image: Any) -> Any:
    """Bytes uint8 [...] in 0..255 -> float32 [...] in [-1, 1]; numpy stays numpy, jax stays jax."""
    xp = _backend(image)
    return xp.asarray(image, xp.float32) / xp.float32(127.5) - xp.float32(1)


def to_uint8(x: Any) -> Any:
    """Real values [...], nominally in [-1, 1], -> the nearest bytes, uint8 [...]."""
    xp = _backend(x)
    scaled = (xp.asarray(x, xp.float32) + xp.float32(1)) * xp.float32(127.5)
    return xp.round(xp.clip(scaled, 0, 255)).astype(xp.uint8)
