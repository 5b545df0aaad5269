"""Past values of multistep solvers, and polynomials through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.core.types import NoiseLevel, like

Cap = Callable[[NoiseLevel], Array]
"""The level after a step -> the most that the step's order may be, shaped as the level."""


class History(NamedTuple):
    """The last k values of a quantity, newest first.

    Attributes:
        values: [k, b, ...]; zeros where nothing has been seen yet.
        levels: where they were seen, leaves [k], or [k, b, f...].
        count: how many have been seen, int32 [] (may exceed k).
    """

    values: Float[Array, "k b ..."]
    levels: NoiseLevel
    count: Int[Array, ""]


def empty(x: Array, k: int) -> History:
    """Room for k values of x's shape, at scalar levels; ``push`` makes room for others."""
    zeros = jnp.zeros(k, jnp.result_type(float))
    return History(
        jnp.zeros((k, *x.shape), x.dtype), NoiseLevel(*[zeros] * 4), jnp.zeros((), jnp.int32)
    )


def push(history: History, value: Array, level: NoiseLevel) -> History:
    """Remember a new value, and forget the oldest."""

    def shift(old: Array, new: Array) -> Array:
        new = jnp.asarray(new, old.dtype)
        old = jnp.broadcast_to(
            old.reshape(old.shape + (1,) * (1 + new.ndim - old.ndim)), (len(old), *new.shape)
        )
        return jnp.concatenate([new[None], old[:-1]])

    return History(
        shift(history.values, value),
        jax.tree.map(shift, history.levels, level),
        history.count + 1,
    )


def allowed_order(
    history: History, order: int, nxt: NoiseLevel, levels: int | Array | Cap | None = None
) -> Int[Array, "*b"]:
    """The order of this step: what has been seen on this way allows, falling to 1 towards the end.

    Shaped as the level: a frame that waited at its level starts anew.

    Args:
        history: including the present value.
        order: the wanted order.
        nxt: level after the step.  Values from before a turn (a grid that goes up and down) do not
            count: no polynomial goes through two values at one level.
        levels: number of levels of the grid if its last steps are to be of falling order, down to
            the step to the clean level, of order 1 ("lower_order_final" elsewhere; may be traced);
            or a function that says so of the level after the step; None for full order throughout.
    """
    way = jnp.concatenate([nxt.log_snr[None], history.levels.log_snr])
    gaps = jnp.where(way[:-1] == way[1:], 0.0, way[:-1] - way[1:])
    same_way = jnp.cumprod(gaps[1:] * jnp.sign(gaps[0]) > 0, axis=0).sum(axis=0, dtype=jnp.int32)
    reached = jnp.minimum(jnp.minimum(order, history.count), 1 + same_way)
    if levels is None:
        return reached
    if callable(levels):
        return jnp.minimum(reached, levels(nxt))
    return jnp.clip(levels - history.count + 1, 1, reached)


def lagrange(
    nodes: Float[Array, "k"], order: Int[Array, ""], at: Float[Array, "q"]
) -> Float[Array, "k q"]:
    """Lagrange basis polynomials of the first ``order`` nodes, at q points; 0 for the others."""
    k = nodes.shape[0]
    index = jnp.arange(k)
    used = index < order
    # The factor of (j, m) is (at - u_m)/(u_j - u_m), and 1 for m = j or an unused m.
    gap = nodes[:, None] - nodes[None, :]
    other = used[None, :] & (index[:, None] != index[None, :])
    ratio = (at[None, None, :] - nodes[None, :, None]) / jnp.where(other, gap, 1.0)[:, :, None]
    basis = jnp.prod(jnp.where(other[:, :, None], ratio, 1.0), axis=1)
    return jnp.where(used[:, None], basis, 0.0)


def integrate(
    kernel: Callable[[Array], Array],
    low: Float[Array, ""],
    high: Float[Array, ""],
    points: int = 16,
) -> Array:
    """∫ kernel(l) dl by Gauss-Legendre quadrature.

    Args:
        kernel: [points] -> [..., points].
        low, high: ends.
        points: exact to rounding for the kernels here, e^l times a polynomial, over steps up to 8.
    """
    node, weight = np.polynomial.legendre.leggauss(points)
    half = (high - low) / 2
    return half * jnp.sum(weight * kernel(low + half * (node + 1)), axis=-1)


def each_level(function: Callable[..., Array], level: NoiseLevel) -> Callable[..., Array]:
    """A function of levels [] and of histories [k], for levels shaped as the given one.

    All arguments are pytrees whose leaves have the level's axes last, as has what it returns.
    """
    for _ in range(level.log_snr.ndim):
        function = jax.vmap(function, in_axes=-1, out_axes=-1)
    return function


def add(x: Array, factors: Float[Array, "k *b"], history: History) -> Array:
    """x + Σ_i factors_i·(values_i - values_0), i >= 1."""
    for i in range(1, factors.shape[0]):
        x = x + like(factors[i], x).astype(x.dtype) * (history.values[i] - history.values[0])
    return x


def check_order(name: str, order: int, most: int, least: int = 1) -> None:
    """Raise ValueError unless least <= order <= most."""
    if not least <= order <= most:
        first = "" if least == 1 else "; order 1 is ddim()"
        raise ValueError(f"{name}(order={order}) must be {least} to {most}{first}")
