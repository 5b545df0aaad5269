"""The network's building blocks as pure functions: arrays in, arrays out, no parameters kept.

Every function is plain JAX, so reverse mode, forward mode (``jax.jvp``) and their compositions
work through all of them.  Two have one form for CPUs and one for accelerators, the same maths with
other rounding; ``_by_platform`` alone chooses, when a program is lowered, so that a program
compiled on a CPU for another device gets that device's form.  Measured on XLA:CPU in float32:

* A 3x3 convolution by Winograd's F(2x2, 3x3) does 2.25 times fewer multiplications, and its
  gradients inherit that, whereas XLA's convolution gradients are its slowest part on a CPU.
* Group norm sums each channel over space first and the channels of a group afterwards; then
  normalisation, affine map, conditioning and SiLU are one pass over x (``group_norm_silu``).
* Attention as two batched products on [b, heads, tokens, dim] beats the fused call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Padding = str | Sequence[tuple[int, int]]

# Winograd's transforms cost compile time and some passes over x; below this many multiplications
# per kernel tap, b·h·w·cin·cout, or in thin layers, they are not earned back.
_WINOGRAD_LEAST_WORK = 2**24
_WINOGRAD_LEAST_CHANNELS = 64


def silu(x: Array) -> Array:
    """x·sigmoid(x), in x's dtype."""
    return x * jax.nn.sigmoid(x)


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
    if _suits_winograd(x, kernel, stride, padding):
        y = _by_platform(_winograd, _direct, x, kernel)
    else:
        y = _direct(x, kernel, stride, padding)
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


def attention(
    q: Float[Array, "b m heads dim"],
    k: Float[Array, "b n heads dim"],
    v: Float[Array, "b n heads dim"],
) -> Float[Array, "b m heads dim"]:
    """softmax(q·kᵀ / sqrt(dim))·v for each head, the softmax in float32 (Vaswani et al. 2017).

    Args:
        q: [b, m, heads, dim] queries.
        k: [b, n, heads, dim] keys.
        v: [b, n, heads, dim] values.

    Returns:
        [b, m, heads, dim] in q's dtype.
    """
    return _by_platform(_attention_by_head, jax.nn.dot_product_attention, q, k, v)


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Double height and width by repetition, [b, h, w, c] -> [b, 2h, 2w, c]."""
    b, h, w, c = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return y.reshape(b, 2 * h, 2 * w, c)


def avg_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Halve height and width, both even, by the mean of 2x2 blocks: [b, h/2, w/2, c]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4)).astype(x.dtype)


def _by_platform(on_cpu: Callable[..., Array], elsewhere: Callable[..., Array], *args) -> Array:
    """The one place where the backend matters."""
    return jax.lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)


def _direct(x: Array, kernel: Array, stride: int = 1, padding: Padding = "SAME") -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers
    )


def _suits_winograd(x: Array, kernel: Array, stride: int, padding: Padding) -> bool:
    same = padding == "SAME" if isinstance(padding, str) else tuple(padding) == ((1, 1), (1, 1))
    if not (same and stride == 1 and kernel.shape[:2] == (3, 3) and x.dtype == jnp.float32):
        return False
    if not all(isinstance(n, int) for n in x.shape):  # a symbolic batch of jax.export
        return False
    cin, cout = kernel.shape[2:]
    work = x.shape[0] * x.shape[1] * x.shape[2] * cin * cout
    return work >= _WINOGRAD_LEAST_WORK and min(cin, cout) >= _WINOGRAD_LEAST_CHANNELS


@jax.checkpoint
def _winograd(x: Float[Array, "b h w m"], kernel: Float[Array, "kh kw m n"]) -> Array:
    """3x3, stride 1, zero padding 1, by F(2x2, 3x3) (Lavin & Gray 2016, section 4.1).

    Each 2x2 tile of the output is Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A of a 4x4 tile d of the input; summed
    over channels, ⊙ is 16 matrix products over all tiles.  The 16 stay apart, since stacking them
    costs more than it saves.  Tiles overlap by 2, so row i of a tile is a slice of the even or of
    the odd rows: the transforms are sums of slices.  The checkpoint makes x and kernel the only
    residuals, those of the direct form: where that one is chosen, nothing else is kept.
    """
    (b, h, w, m), n = x.shape, kernel.shape[-1]
    rows, cols = (h + 1) // 2, (w + 1) // 2
    x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - h), (1, 2 * cols + 1 - w), (0, 0)))
    x = x.reshape(b, rows + 1, 2, cols + 1, 2, m)
    # down[j][i]: Bᵀ along the rows, of the even (j = 0) or odd columns.
    down = [_input_transform(x[:, :, 0, :, j], x[:, :, 1, :, j], axis=1) for j in (0, 1)]
    g = jnp.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], kernel.dtype)
    g = jnp.einsum("ia,jb,abmn->ijmn", g, g, kernel, precision=jax.lax.Precision.HIGHEST)
    tiles = []
    for i in range(4):
        across = _input_transform(down[0][i], down[1][i], axis=2)
        # As matrices: contracting three axes at once makes the kernel's gradient slow.
        products = [across[j].reshape(-1, m) @ g[i, j] for j in range(4)]
        tiles.append(_output_transform([p.reshape(b, rows, cols, n) for p in products]))
    left, right = (_output_transform([t[side] for t in tiles]) for side in (0, 1))
    y = jnp.stack([jnp.stack([left[r], right[r]], axis=3) for r in (0, 1)], axis=2)
    return y.reshape(b, 2 * rows, 2 * cols, n)[:, :h, :w]


def _input_transform(even: Array, odd: Array, axis: int) -> tuple[Array, ...]:
    """Bᵀ d along an axis; d_0, d_2 are consecutive even rows, d_1, d_3 consecutive odd ones."""
    n = even.shape[axis] - 1
    d0, d1 = (jax.lax.slice_in_dim(z, 0, n, axis=axis) for z in (even, odd))
    d2, d3 = (jax.lax.slice_in_dim(z, 1, n + 1, axis=axis) for z in (even, odd))
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _output_transform(m: Sequence[Array]) -> tuple[Array, Array]:
    """Aᵀ m: 4 numbers to 2."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _attention_by_head(q: Array, k: Array, v: Array) -> Array:
    scale = q.shape[-1] ** -0.5
    q, k, v = (z.swapaxes(1, 2) for z in (q * scale, k, v))
    logits = jnp.einsum("bhmd,bhnd->bhmn", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhmn,bhnd->bhmd", weights, v).swapaxes(1, 2)


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
