"""The network's building blocks as pure functions: arrays in, arrays out, no parameters kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def silu(x: Array) -> Array:
    """x * sigmoid(x), in x's dtype."""
    return x * jax.nn.sigmoid(x)


def dense(x: Float[Array, "*b m"], kernel: Float[Array, "m n"], bias: Array | None) -> Array:
    """x @ kernel + bias over the last axis."""
    y = x @ kernel
    return y if bias is None else y + bias


def conv(x, kernel, bias=None, stride: int = 1, padding="SAME") -> Array:
    """2-D convolution: x [b, h, w, cin], kernel [kh, kw, cin, cout] -> [b, h', w', cout]."""
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y if bias is None else y + bias


def _affine(x, scale, bias, groups: int, eps: float):
    b, c = x.shape[0], x.shape[-1]
    axes = tuple(range(1, x.ndim - 1))
    x32 = x.astype(jnp.float32)
    n = x.size // (b * groups)
    s1 = x32.sum(axes).reshape(b, groups, -1).sum(-1) / n
    s2 = (x32 * x32).sum(axes).reshape(b, groups, -1).sum(-1) / n
    inv = jax.lax.rsqrt(jnp.maximum(s2 - s1 * s1, 0.0) + eps)
    a = jnp.repeat(inv, c // groups, axis=1) * scale
    return a, bias - jnp.repeat(s1, c // groups, axis=1) * a


def group_norm(x, scale, bias, groups: int, eps: float = 1e-5) -> Array:
    """Group normalisation of [b, ..., c] over space and c / groups channels; float32 statistics."""
    a, d = _affine(x, scale, bias, groups, eps)
    wide = (x.shape[0],) + (1,) * (x.ndim - 2) + (x.shape[-1],)
    return (x * a.reshape(wide) + d.reshape(wide)).astype(x.dtype)


def group_norm_silu(x, scale, bias, groups: int, eps: float = 1e-5, film=None) -> Array:
    """silu(group_norm(x) * (1 + s) + shift), film = (s, shift) each [b, c], or None."""
    a, d = _affine(x, scale, bias, groups, eps)
    if film is not None:
        a, d = a * (1 + film[0]), d * (1 + film[0]) + film[1]
    wide = (x.shape[0],) + (1,) * (x.ndim - 2) + (x.shape[-1],)
    return silu(x * a.reshape(wide) + d.reshape(wide)).astype(x.dtype)


def attention(q, k, v) -> Array:
    """Softmax attention of [b, tokens, heads, dim]; softmax in float32."""
    q, k, v = (jnp.swapaxes(z, 1, 2) for z in (q * q.shape[-1] ** -0.5, k, v))
    w = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k).astype(jnp.float32), axis=-1)
    return jnp.swapaxes(jnp.einsum("bhqk,bhkd->bhqd", w.astype(v.dtype), v), 1, 2)


def upsample_nearest(x) -> Array:
    """Double the height and width of [b, h, w, c] by repeating."""
    b, h, w, c = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return y.reshape(b, 2 * h, 2 * w, c)


def avg_pool(x) -> Array:
    """Halve the height and width of [b, h, w, c] by averaging 2x2 blocks."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
