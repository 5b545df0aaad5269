"""The network's building blocks as pure functions: arrays in, arrays out, no parameters.

Every function is plain JAX, so reverse mode, forward mode (``jax.jvp``) and their compositions
work through all of them.  Attention has one form for CPUs and one for accelerators, the same maths
with other rounding; ``_by_platform`` alone chooses, when a program is lowered, so that a program
compiled on a CPU for another device gets that device's form.

Group norm sums each channel over space first and the channels of a group afterwards; then
normalisation, affine map, conditioning and SiLU are one pass over x (``group_norm_silu``).

Winograd's F(2x2, 3x3) was tried in place of XLA's convolution and left out: on two CPU cores a
training step took 1.3 to 1.5 times as long with it, and its compilation 2.7 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

Padding = str | Sequence[tuple[int, int]]


def silu(x: Array) -> Array:
    """x·sigmoid(x), in x's dtype."""
    return x * jax.nn.sigmoid(x)


@jax.custom_jvp
def gelu_tanh(x: Array) -> Array:
    """GELU by tanh (Hendrycks & Gimpel 2016, section 2), in x's dtype."""
    return jax.nn.gelu(x, approximate=True)


@gelu_tanh.defjvp
def _gelu_tanh_jvp(at: tuple[Array], along: tuple[Array]) -> tuple[Array, Array]:
    # As x·sigmoid(c·(x + a·x³)), which derivatives share: by tanh's own rule XLA on CPUs fills an
    # array with each constant, and the JVP of an MLP costs three times as much.
    (x,), (dx,), c, a = at, along, 2 * math.sqrt(2 / math.pi), 0.044715
    s = jax.nn.sigmoid(x * (c + c * a * x * x))
    y = x * s
    return y, dx * (s + y * (1 - s) * (c + 3 * c * a * x * x))


def dense(
    x: Float[Array, "*b m"], kernel: Float[Array, "m n"], bias: Float[Array, " n"] | None = None
) -> Float[Array, "*b n"]:
    """x @ kernel + bias over the last axis."""
    y = x @ kernel
    return y if bias is None else y + bias


def conv(
    x: Float[Array, "b h w cin"],
    kernel: Float[Array, "kh kw cin cout"],
    bias: Float[Array, " cout"] | None = None,
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "b h2 w2 cout"]:
    """2-D convolution (cross-correlation, as everywhere in the field).

    Args:
        x: [b, h, w, cin].
        kernel: [kh, kw, cin, cout], of x's dtype.
        bias: [cout] or None.
        stride: of both axes.
        padding: "SAME", "VALID", or ((low, high), (low, high)) of zeros.

    Returns:
        [b, h', w', cout].
    """
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers
    )
    return y if bias is None else y + bias


def group_norm(
    x: Float[Array, "b ... c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    eps: float = 1e-5,
) -> Float[Array, "b ... c"]:
    """Group normalisation (Wu & He 2018): over all of space and c / groups channels.

    Args:
        x: [b, ..., c].
        scale: [c].
        bias: [c].
        groups: a divisor of c.
        eps: added to the variance.

    Returns:
        [b, ..., c] in x's dtype; statistics and arithmetic are float32.
    """
    gain, offset = _group_norm_affine(x, scale, bias, groups, eps)
    return _apply_affine(x, gain, offset).astype(x.dtype)


def group_norm_silu(
    x: Float[Array, "b ... c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    eps: float = 1e-5,
    film: tuple[Float[Array, "b c"], Float[Array, "b c"]] | None = None,
) -> Float[Array, "b ... c"]:
    """silu(group_norm(x)·(1 + s) + shift), everything after the statistics in one pass over x.

    Args:
        x: [b, ..., c].
        scale: [c].
        bias: [c].
        groups: a divisor of c.
        eps: added to the variance.
        film: (s, shift), each [b, c], or None for no conditioning (Perez et al. 2018).

    Returns:
        [b, ..., c] in x's dtype; statistics and arithmetic are float32.
    """
    gain, offset = _group_norm_affine(x, scale, bias, groups, eps)
    if film is not None:
        s, shift = (z.astype(jnp.float32) for z in film)
        gain, offset = gain * (1 + s), offset * (1 + s) + shift
    return silu(_apply_affine(x, gain, offset)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*b c"], scale: Float[Array, " c"], bias: Float[Array, " c"], eps: float = 1e-5
) -> Float[Array, "*b c"]:
    """Layer normalisation over the last axis (Ba et al. 2016).

    Returns:
        x's shape and dtype; statistics and arithmetic are float32.
    """
    centred = x.astype(jnp.float32)
    centred = centred - centred.mean(-1, keepdims=True)
    gain = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return (centred * gain * scale + bias).astype(x.dtype)


def attention(
    q: Float[Array, "b m heads dim"],
    k: Float[Array, "b n heads dim"],
    v: Float[Array, "b n heads dim"],
    mask: Bool[Array, "b n"] | None = None,
) -> Float[Array, "b m heads dim"]:
    """softmax(q·kᵀ / sqrt(dim))·v for each head, the softmax in float32 (Vaswani et al. 2017).

    Args:
        q: [b, m, heads, dim] queries.
        k: [b, n, heads, dim] keys.
        v: [b, n, heads, dim] values.
        mask: [b, n], False for keys to leave out (padding); None keeps all.

    Returns:
        [b, m, heads, dim] in q's dtype.  On a mesh with a sequence axis each device has its part
        of the queries, and gathers all keys and values.
    """
    q, k, v = by_sequence(q), whole_sequence(k), whole_sequence(v)
    if mask is None:
        return by_sequence(_by_platform(_attention_by_head, jax.nn.dot_product_attention, q, k, v))
    fused = lambda q, k, v, mask: jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None])
    return by_sequence(_by_platform(_attention_by_head, fused, q, k, v, mask))


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Double height and width by repetition, [b, h, w, c] -> [b, 2h, 2w, c]."""
    b, h, w, c = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return y.reshape(b, 2 * h, 2 * w, c)


def space_to_depth(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 c2"]:
    """Fold patches into channels: [b, h, w, c] -> [b, h/patch, w/patch, patch²·c]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // patch, w // patch, -1)


def depth_to_space(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 c2"]:
    """The inverse of ``space_to_depth``: [b, h, w, patch²·c] -> [b, h·patch, w·patch, c]."""
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, -1)


def avg_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Halve height and width, both even, by the mean of 2x2 blocks: [b, h/2, w/2, c]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4)).astype(x.dtype)


def _by_platform(on_cpu: Callable[..., Array], elsewhere: Callable[..., Array], *args) -> Array:
    """The one place where the backend matters."""
    return jax.lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)


def _attention_by_head(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    scale = q.shape[-1] ** -0.5
    q, k, v = (z.swapaxes(1, 2) for z in (q * scale, k, v))
    logits = jnp.einsum("bhmd,bhnd->bhmn", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        # Finite, so that a row without any key is a mean and not NaN.
        logits = jnp.where(mask[:, None, None], logits, 0.7 * jnp.finfo(jnp.float32).min)
    weights = _softmax(logits).astype(v.dtype)
    return jnp.einsum("bhmn,bhnd->bhmd", weights, v).swapaxes(1, 2)


@jax.custom_jvp
def _softmax(logits: Array) -> Array:
    return jax.nn.softmax(logits, axis=-1)


@_softmax.defjvp
def _softmax_jvp(at: tuple[Array], along: tuple[Array]) -> tuple[Array, Array]:
    # From the result alone: forward mode through its parts costs attention 2.5 times as much.
    weights, change = _softmax(*at), along[0]
    return weights, weights * (change - (weights * change).sum(-1, keepdims=True))


def _group_norm_affine(x, scale, bias, groups: int, eps: float) -> tuple[Array, Array]:
    """(gain, offset), float32 [b, c], with group_norm(x) = gain·x + offset.

    One pass, E[x²] - E[x]², loses all digits where the mean is large against the deviation, so x is
    first shifted by a number near the mean: the mean of the group in the first pixel, a constant
    to differentiation since the variance does not depend on it.
    """
    b, c = x.shape[0], x.shape[-1]
    space = tuple(range(1, x.ndim - 1))
    over_group = lambda z: jnp.broadcast_to(
        z.reshape(b, groups, -1).mean(-1, keepdims=True), (b, groups, c // groups)
    ).reshape(b, c)
    x = x.astype(jnp.float32)
    shift = jax.lax.stop_gradient(over_group(x[(slice(None), *(0 for _ in space))]))
    moved = x - jnp.expand_dims(shift, space)
    mean = over_group(moved.mean(space))
    square = over_group((moved * moved).mean(space))
    gain = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + eps) * scale
    return gain, bias - (shift + mean) * gain


def _apply_affine(x: Array, gain: Array, offset: Array) -> Array:
    space = tuple(range(1, x.ndim - 1))
    return x.astype(jnp.float32) * jnp.expand_dims(gain, space) + jnp.expand_dims(offset, space)


def by_batch(x: Array) -> Array:
    """x with its examples sharded over the data and fsdp axes of JAX's current mesh, if any.

    Used after each layer: otherwise the partitioner may propagate a parameter's sharding to the
    activations and move these instead of gathering the parameter.  Other dimensions are free.
    """
    axes = _batch_axes(x.shape[0])
    return _constrained(x, axes) if axes else x


def by_sequence(x: Array) -> Array:
    """x [b, tokens, ...], tokens over the mesh's sequence axis, examples as in ``by_batch``.

    Unchanged where the mesh has no such axis, or the axis does not divide the tokens.
    """
    parts = _parts("sequence")
    split = parts > 1 and x.shape[1] % parts == 0
    return _constrained(x, _batch_axes(x.shape[0]), "sequence") if split else x


def whole_sequence(x: Array) -> Array:
    """x [b, tokens, ...] with all tokens on each device of the mesh's sequence axis, if any."""
    return _constrained(x, _batch_axes(x.shape[0]), None) if _parts("sequence") > 1 else x


def _parts(*axes: str) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def _batch_axes(examples: int) -> tuple[str, ...]:
    """The axes that so many examples are sharded over; none if these do not divide them."""
    axes = tuple(axis for axis in ("data", "fsdp") if _parts(axis) > 1)
    return () if examples % _parts(*axes) else axes


def _constrained(x: Array, *leading: Any) -> Array:
    """Dimensions after ``leading`` are unconstrained."""
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(leading))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*leading, *rest))


def gated(gate: Float[Array, " b"], x: Array, other: Array) -> Array:
    """(1 - gate)·x + gate·other of each example, in x's dtype: exactly x at 0, other at 1."""
    gate = jnp.reshape(gate, (-1,) + (1,) * (x.ndim - 1)).astype(x.dtype)
    return (1 - gate) * x + gate * other
