"""Noise sources of stochastic solvers.

A ``Noise`` is (key, x, now, nxt) -> standard normal array of x's shape, for the step between two
levels.  ``white`` draws it anew at every step.  ``brownian`` takes increments of one Brownian
motion, so that a grid of more steps refines the same random path: samples with 20 and 200 steps are
the same picture, and the error of an SDE solver can be measured path by path.

Its clock is τ = exp(λ), the signal-to-noise ratio.  The exact reverse SDE (eta = 1) adds

    y_s ∋ s_s²·(B(τ_s) - B(τ_t)),    y = x/alpha, s = sigma/alpha,                         (1)

of variance s_s²·(1 - s_s²/s_t²), and two steps of (1) add up to one long step exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from diffusion_jax.core.types import NoiseLevel, like

Noise = Callable[[Array, Array, NoiseLevel, NoiseLevel], Array]
"""(key, x [b, ...], now, nxt) -> z ~ N(0, I) of x's shape."""


def white(key: Key[Array, ""], x: Array, now: NoiseLevel, nxt: NoiseLevel) -> Array:
    """Independent noise at every step, from the step's own key."""
    del now, nxt
    return jax.random.normal(key, x.shape, x.dtype)


def joined(
    first: Array, second: Array, now: NoiseLevel, middle: NoiseLevel, nxt: NoiseLevel
) -> Array:
    """The noise of a step from those of its two parts, by (1): weights sqrt of shares of τ."""
    before = -jnp.expm1(now.log_snr - middle.log_snr) * jnp.exp(middle.log_snr - nxt.log_snr)
    after = -jnp.expm1(middle.log_snr - nxt.log_snr)
    whole = jnp.where(before + after > 0, before + after, 1.0)
    weigh = lambda share, z: like(jnp.sqrt(jnp.maximum(share, 0.0) / whole), z) * z
    return weigh(before, first) + weigh(after, second)


class _Interval(NamedTuple):
    """A node of the tree: ends in λ, the motion at both, and the node's number."""

    left: Array
    right: Array
    at_left: Array
    at_right: Array
    node: Array


def brownian(key: Key[Array, ""], low: float = -18.0, high: float = 18.0, depth: int = 14) -> Noise:
    """Increments of one Brownian motion, the same for every grid.

    The motion is computed at any λ by descending a binary tree of Brownian bridges, without
    storage; it costs 2·depth arrays of noise per step.  Halves are equal in λ, bridges are in τ.

    Args:
        key: for the motion; the step's own key is not used.
        low, high: range of λ, beyond which it is cut off.
        depth: depth of the tree: steps shorter than (high - low)/2^depth in λ are not resolved.

    Returns:
        A Noise for levels of shape [].
    """

    def noise(step_key: Array, x: Array, now: NoiseLevel, nxt: NoiseLevel) -> Array:
        del step_key
        at = lambda level: _motion(key, x, level.log_snr, low, high, depth)
        cut = lambda level: jnp.clip(level.log_snr, low, high)
        gap = jnp.exp(cut(nxt)) * -jnp.expm1(cut(now) - cut(nxt))
        scale = jnp.where(gap == 0, 0.0, jax.lax.rsqrt(jnp.where(gap == 0, 1.0, jnp.abs(gap))))
        return (scale * (at(nxt) - at(now))).astype(x.dtype)

    return noise


def _motion(key: Array, x: Array, log_snr: Array, low: float, high: float, depth: int) -> Array:
    """B(exp(λ)) of x's shape."""
    if jnp.ndim(log_snr):
        raise ValueError("brownian noise needs one level for the whole batch, got one per example")
    target = jnp.clip(log_snr, low, high)
    draw = lambda node: jax.random.normal(jax.random.fold_in(key, node), x.shape, x.dtype)
    left, right = jnp.asarray(low, target.dtype), jnp.asarray(high, target.dtype)
    first = jnp.exp(left / 2) * draw(0)
    whole = jnp.exp(right / 2) * jnp.sqrt(-jnp.expm1(left - right))
    root = _Interval(left, right, first, first + whole * draw(1), jnp.uint32(2))

    def descend(_, interval: _Interval) -> _Interval:
        middle = (interval.left + interval.right) / 2
        value = _bridge(interval, middle, draw(interval.node))
        right = target > middle
        pick = lambda a, b: jnp.where(right, a, b)
        return _Interval(
            pick(middle, interval.left),
            pick(interval.right, middle),
            pick(value, interval.at_left),
            pick(interval.at_right, value),
            2 * interval.node + right.astype(jnp.uint32),
        )

    leaf = jax.lax.fori_loop(0, depth, descend, root)
    return _bridge(leaf, target, draw(leaf.node))


def _bridge(interval: _Interval, at: Array, z: Array) -> Array:
    """A draw of B(τ) given both ends: mean linear in τ, variance (τ - τ_l)(τ_r - τ)/(τ_r - τ_l)."""
    to_right = -jnp.expm1(at - interval.right)  # (τ_r - τ)/τ_r
    from_left = -jnp.expm1(interval.left - at) * jnp.exp(at - interval.right)  # (τ - τ_l)/τ_r
    whole = -jnp.expm1(interval.left - interval.right)
    share = from_left / whole
    std = jnp.exp(interval.right / 2) * jnp.sqrt(jnp.maximum(from_left * to_right / whole, 0.0))
    return interval.at_left + share * (interval.at_right - interval.at_left) + std * z
