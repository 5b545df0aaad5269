"""InceptionV3 for FID: the 2,048 pooled features of the 2015 TensorFlow network.

The user provides the weights: a state dict in the layout of torchvision and pytorch-fid (file
pt_inception-2015-12-05), as .safetensors or .pth.  Unlike torchvision's network, average pools do
not count the padding, and the last block has a max pool (Heusel et al. 2017's graph).
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BATCH_NORM_EPS = 1e-3

Params = dict[str, dict[str, np.ndarray]]
"""layer -> {"kernel" [kh, kw, in, out], "bias" [out]}, batch norms folded in."""


def fold(state: Mapping[str, np.ndarray]) -> Params:
    """Parameters from a state dict.

    Raises:
        ValueError: if it is not an InceptionV3's, naming a missing tensor.
    """
    layers = [name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")]
    layers = [name for name in layers if not name.startswith("AuxLogits")]
    try:
        params = {name: _folded(state, name) for name in layers}
        jax.eval_shape(lambda: backbone(params, jnp.zeros((1, 299, 299, 3))))
    except KeyError as error:
        raise ValueError(
            f"the weights lack the tensor {error}; give those of pt_inception-2015-12-05"
        ) from None
    return params


def _folded(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    part = lambda key: np.asarray(state[f"{name}.{key}"], np.float32)
    gain = part("bn.weight") / np.sqrt(part("bn.running_var") + BATCH_NORM_EPS)
    kernel = part("conv.weight") * gain[:, None, None, None]
    return {
        "kernel": np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)),
        "bias": part("bn.bias") - part("bn.running_mean") * gain,
    }


def features(params: Params, images: Array) -> Float[Array, "n 2048"]:
    """Pooled features of images [n, h, w, c], 0 to 255, c 1 (repeated) or 3; float32."""
    x = jnp.asarray(images, jnp.float32)
    shape = (x.shape[0], 299, 299, x.shape[-1])
    x = jax.image.resize(x, shape, "linear", antialias=False) / 127.5 - 1
    x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
    return backbone(params, x)


def backbone(params: Params, x: Float[Array, "n h w 3"]) -> Float[Array, "n 2048"]:
    """The network on images already sized and scaled to [-1, 1]."""
    x = _conv(params, "Conv2d_1a_3x3", x, stride=2, padding="VALID")
    x = _conv(params, "Conv2d_2a_3x3", x, padding="VALID")
    x = _max_pool(_conv(params, "Conv2d_2b_3x3", x))
    x = _conv(params, "Conv2d_3b_1x1", x)
    x = _max_pool(_conv(params, "Conv2d_4a_3x3", x, padding="VALID"))
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _block_a(params, name, x)
    x = _block_b(params, "Mixed_6a", x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _block_c(params, name, x)
    x = _block_d(params, "Mixed_7a", x)
    x = _block_e(params, "Mixed_7b", x, _mean_pool)
    x = _block_e(params, "Mixed_7c", x, _max_pool_same)
    return x.mean((1, 2))


def _block_a(params, name, x):
    one = _chain(params, name, x, "branch1x1")
    five = _chain(params, name, x, "branch5x5_1", "branch5x5_2")
    three = _chain(params, name, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
    return _join(one, five, three, _chain(params, name, _mean_pool(x), "branch_pool"))


def _block_b(params, name, x):
    three = _conv(params, f"{name}.branch3x3", x, stride=2, padding="VALID")
    double = _chain(params, name, x, "branch3x3dbl_1", "branch3x3dbl_2")
    double = _conv(params, f"{name}.branch3x3dbl_3", double, stride=2, padding="VALID")
    return _join(three, double, _max_pool(x))


def _block_c(params, name, x):
    one = _chain(params, name, x, "branch1x1")
    seven = _chain(params, name, x, "branch7x7_1", "branch7x7_2", "branch7x7_3")
    double = _chain(params, name, x, *(f"branch7x7dbl_{i}" for i in range(1, 6)))
    return _join(one, seven, double, _chain(params, name, _mean_pool(x), "branch_pool"))


def _block_d(params, name, x):
    three = _chain(params, name, x, "branch3x3_1")
    three = _conv(params, f"{name}.branch3x3_2", three, stride=2, padding="VALID")
    seven = _chain(params, name, x, "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3")
    seven = _conv(params, f"{name}.branch7x7x3_4", seven, stride=2, padding="VALID")
    return _join(three, seven, _max_pool(x))


def _block_e(params, name, x, pool):
    one = _chain(params, name, x, "branch1x1")
    three = _chain(params, name, x, "branch3x3_1")
    three = [_chain(params, name, three, f"branch3x3_2{side}") for side in "ab"]
    double = _chain(params, name, x, "branch3x3dbl_1", "branch3x3dbl_2")
    double = [_chain(params, name, double, f"branch3x3dbl_3{side}") for side in "ab"]
    return _join(one, *three, *double, _chain(params, name, pool(x), "branch_pool"))


def _chain(params: Params, block: str, x: Array, *layers: str) -> Array:
    for layer in layers:
        x = _conv(params, f"{block}.{layer}", x)
    return x


def _conv(params: Params, name: str, x: Array, stride: int = 1, padding: str = "SAME") -> Array:
    layer = params[name]
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(layer["kernel"]),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(y + jnp.asarray(layer["bias"]))


def _max_pool(x: Array) -> Array:
    return _window(x, -jnp.inf, jax.lax.max, 2, "VALID")


def _max_pool_same(x: Array) -> Array:
    return _window(x, -jnp.inf, jax.lax.max, 1, "SAME")


def _mean_pool(x: Array) -> Array:
    total = lambda z: _window(z, 0.0, jax.lax.add, 1, "SAME")
    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1)))


def _window(x: Array, start: float, combine, stride: int, padding: str) -> Array:
    return jax.lax.reduce_window(x, start, combine, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _join(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)
