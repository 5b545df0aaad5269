"""Attention with memory linear in the number of tokens, and the table of all kinds.

``chunked`` is exact: the softmax over a row is built chunk by chunk of the keys (Milakov &
Gimelshein 2018, "Online normalizer calculation for softmax"; Rabe & Staats 2021, "Self-attention
does not need O(n²) memory").  It is plain JAX, so forward mode, reverse mode and vmap go through.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_jax.models import primitives


def full(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """``primitives.attention``, looked up at each call."""
    return primitives.attention(q, k, v, *(() if mask is None else (mask,)))


def chunked(
    q: Float[Array, "b m heads dim"],
    k: Float[Array, "b n heads dim"],
    v: Float[Array, "b n heads dim"],
    mask: Bool[Array, "b n"] | None = None,
    queries: int = 512,
    keys: int = 1024,
) -> Float[Array, "b m heads dim"]:
    """The result of ``primitives.attention``, computed in blocks of queries·keys logits.

    The backward pass recomputes each block, so its memory is linear in the tokens too; it costs
    two forward passes more than that of the full form.

    Args:
        q: [b, m, heads, dim] queries.
        k: [b, n, heads, dim] keys.
        v: [b, n, heads, dim] values.
        mask: [b, n], False for keys to ignore; None keeps all.
        queries: largest number of queries in a block.
        keys: largest number of keys in a block.

    Returns:
        [b, m, heads, dim] in q's dtype; logits, weights' sums and accumulators are float32.

    Raises:
        ValueError: if a block would be empty.
    """
    if min(queries, keys) < 1:
        raise ValueError(f"A block of queries={queries} by keys={keys} is empty: give 1 or more.")
    (b, m), n = q.shape[:2], k.shape[1]
    queries, keys = min(queries, m), min(keys, n)
    if mask is None:
        mask = jnp.ones((b, n), bool)
    # Masked keys have a finite logit, as in the full form; those that only fill a block have none.
    low = jnp.where(mask, 0.0, _LOWEST)
    low = jnp.pad(low, ((0, 0), (0, -n % keys)), constant_values=-jnp.inf)
    blocks = (_split(k, keys), _split(v, keys), low.reshape(b, -1, keys).swapaxes(0, 1))
    one = jax.checkpoint(partial(_row_of_blocks, blocks=blocks))
    out = jax.lax.map(one, _split(q * q.shape[-1] ** -0.5, queries))
    return out.swapaxes(0, 1).reshape(b, -1, *q.shape[2:])[:, :m].astype(q.dtype)


def by_size(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """``chunked`` for many logits per head, where they cost time too; ``full`` elsewhere."""
    few = q.shape[1] * k.shape[1] <= _FEW
    return (full if few else chunked)(q, k, v, mask)


def flash(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """cuDNN's attention for half precision on a GPU without a mask; ``chunked`` everywhere else.

    cuDNN's form has no forward mode: ``jax.jvp`` on a GPU needs "chunked" or "full".
    """
    half = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    # Tracing cuDNN's form loads the library, so it must not happen where there is none.
    if jax.default_backend() != "gpu" or not half or mask is not None:
        return chunked(q, k, v, mask)
    fused = partial(jax.nn.dot_product_attention, implementation="cudnn")
    return jax.lax.platform_dependent(q, k, v, cuda=fused, default=chunked)


# Logits of a head, 1 MB in float32: beyond, CPUs take longer to write them than to compute them.
_FEW = 1 << 18

# As in ``primitives``: finite, so that a row without any key is a mean and not NaN.
_LOWEST = 0.7 * float(jnp.finfo(jnp.float32).min)


def _split(x: Array, size: int) -> Array:
    """[b, n, ...] -> [ceil(n / size), b, size, ...], zeros after the end."""
    b, n = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, -n % size)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(b, -1, size, *x.shape[2:]).swapaxes(0, 1)


def _row_of_blocks(q: Array, blocks: tuple[Array, Array, Array]) -> Array:
    """One chunk of queries, [b, m, heads, dim], against all chunks of keys; float32."""
    b, m, heads, dim = q.shape
    start = (
        jnp.zeros((b, heads, m, dim), jnp.float32),
        jnp.zeros((b, heads, m), jnp.float32),
        jnp.full((b, heads, m), -jnp.inf, jnp.float32),
    )
    body = jax.checkpoint(lambda carry, block: (_add_block(q, carry, block), None))
    (total, weight, _), _ = jax.lax.scan(body, start, blocks)
    return (total / weight[..., None]).swapaxes(1, 2)


def _add_block(q: Array, carry: tuple[Array, ...], block: tuple[Array, ...]) -> tuple[Array, ...]:
    """(Σ w·v, Σ w, largest logit), w relative to that logit, with one more chunk of keys."""
    (total, weight, largest), (k, v, low) = carry, block
    logits = jnp.einsum("bmhd,bnhd->bhmn", q, k, preferred_element_type=jnp.float32)
    low = low[:, None, None]
    logits = jnp.where(low == 0, logits, low)
    # The result does not depend on the shift, so neither does any derivative.
    new = jax.lax.stop_gradient(jnp.maximum(largest, logits.max(-1)))
    w, old = jnp.exp(logits - new[..., None]), jnp.exp(largest - new)
    added = jnp.einsum("bhmn,bnhd->bhmd", w.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return total * old[..., None] + added, weight * old + w.sum(-1), new


# Each (q [b, m, heads, dim], k [b, n, heads, dim], v, mask [b, n] or nothing) -> q's shape.
ATTENTIONS: dict[str, Callable[..., Array]] = {
    "full": full,
    "chunked": chunked,
    "by_size": by_size,
    "flash": flash,
}
