"""VGG16's features (Simonyan & Zisserman 2015) for LPIPS (Zhang et al. 2018).

The user provides the weights: see ``convert.vgg``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.models import primitives

# Widths of the convolutions of each stage; a stage's last activation is a feature, then it halves.
STAGES = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)

# LPIPS's scaling of images in [-1, 1].
_MEAN = np.array([-0.030, -0.088, -0.188], np.float32)
_DEVIATION = np.array([0.458, 0.448, 0.450], np.float32)

Params = Mapping[str, Any]
"""{"conv_S_I": {"kernel" [3, 3, in, out], "bias" [out]}, "head_S": {"weight" [out]}}."""


def shapes() -> dict[str, tuple[int, ...]]:
    """Parameter path -> shape."""
    found, before = {}, 3
    for i, stage in enumerate(STAGES):
        for j, width in enumerate(stage):
            found[f"conv_{i}_{j}/kernel"] = (3, 3, before, width)
            found[f"conv_{i}_{j}/bias"] = (width,)
            before = width
        found[f"head_{i}/weight"] = (before,)
    return found


def features(params: Params, pixels: Float[Array, "b h w c"]) -> list[Array]:
    """Pixels in [-1, 1], sides of at least 16, c 1 (repeated) or 3 -> relu1_2 ... relu5_3."""
    x = (jnp.broadcast_to(pixels, (*pixels.shape[:-1], 3)) - _MEAN) / _DEVIATION
    out = []
    for i, stage in enumerate(STAGES):
        if i:
            x = _max_pool(x)
        for j in range(len(stage)):
            layer = params[f"conv_{i}_{j}"]
            x = jax.nn.relu(primitives.conv(x, layer["kernel"], layer["bias"]))
        out.append(x)
    return out


def heads(params: Params) -> list[Array]:
    """LPIPS's weights of the channels of each feature, [c] each."""
    return [params[f"head_{i}"]["weight"] for i in range(len(STAGES))]


def _max_pool(x: Float[Array, "b h w c"]) -> Array:
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
