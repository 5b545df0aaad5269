"""Branches and loops around gradients of convolutions.

XLA on CPUs compiles such a gradient to fast code only at the top level of a program: in a branch or
a loop it takes tens of times as long (JAX 0.10.2, measured by
scripts/benchmarks/control_flow.py).  These functions have neither on CPUs, and are
``jax.lax`` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

MOST = 8
"""Largest number of iterations that are unrolled: programs grow with them."""


def when(turn: Bool[Array, ""], work: Callable[[], Any]) -> Any:
    """work() where ``turn`` is True, else zeros of that shape; on CPUs it is always computed.

    Args:
        turn: bool [].
        work: () -> a pytree of arrays.
    """
    rest = lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(work))
    choose = lambda a, b: jnp.where(turn, a, b)
    return jax.lax.platform_dependent(
        cpu=lambda: jax.tree.map(choose, work(), rest()),
        default=lambda: jax.lax.cond(turn, work, rest),
    )


def scan(body: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any) -> tuple[Any, Any]:
    """``jax.lax.scan``; on CPUs up to ``MOST`` iterations are unrolled.

    Args:
        body: (carry, slice of xs) -> (carry, y).
        init: the first carry.
        xs: arrays [n, ...].
    """
    if jax.tree.leaves(xs)[0].shape[0] > MOST:
        return jax.lax.scan(body, init, xs)

    in_order = lambda carry, x: body(carry, _after(carry, x))
    return jax.lax.platform_dependent(
        init,
        xs,
        cpu=lambda init, xs: jax.lax.scan(in_order, init, xs, unroll=True),
        default=lambda init, xs: jax.lax.scan(body, init, xs),
    )


def _after(first: Any, then: Any) -> Any:
    """``then``, made to depend on ``first``: otherwise iterations would share memory at once.

    It adds a zero that the compiler cannot detect; XLA on CPUs drops optimisation barriers before
    it schedules.
    """
    is_real = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
    known = [a[(0,) * a.ndim].astype(jnp.float32) for a in jax.tree.leaves(first) if is_real(a)]
    if not known:
        return then
    zero = jnp.minimum(jnp.abs(jnp.stack(known)), 0).sum()
    return jax.tree.map(lambda a: a + zero.astype(a.dtype) if is_real(a) else a, then)
