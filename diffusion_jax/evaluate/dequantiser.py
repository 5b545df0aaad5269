"""A variational dequantiser, fitted to each image.

The bound of ``core.dequantise`` holds for any q(u | x), so q can be fitted to each x by gradient
descent on the bound itself: a mean and a standard deviation for each pixel, without a network or
training data.  Fit and measurement use independent noise, so the result stays a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion_jax.core import dequantise

_LOG_STD = 0.5  # initial, of the logit: almost uniform (a logistic's is 1.8, u's log 0.6)


def fit(
    key: Array,
    x: Array,
    bits: Callable[[Array, Array], Array],
    steps: int,
    rate: float = 0.05,
    bins: int = 256,
) -> dequantise.Dequantiser:
    """Adam on ``dequantise.objective`` for the means and deviations of a ``logistic_normal``.

    Args:
        key: for the fit's noise.
        x: 8-bit data in [-1, 1], [b, ...].
        bits: (key, x̃) -> an upper bound of -log2 p(x̃)/D, [b], differentiable in x̃.
        steps: Adam steps, each one evaluation and gradient of ``bits``; 0 keeps the initial q.
        rate: learning rate.
        bins: values in [-1, 1].
    """
    start = {"mean": jnp.zeros_like(x), "log_std": jnp.full_like(x, _LOG_STD)}
    tx = optax.adam(rate)

    def loss(q, key):
        dequantiser = dequantise.logistic_normal(q["mean"], q["log_std"], bins)
        # A sum over images, which have separate parameters.
        return dequantise.objective(key, dequantiser, x, bits).sum() * x[0].size

    def step(state, key):
        q, moments = state
        updates, moments = tx.update(jax.grad(loss)(q, key), moments)
        return (optax.apply_updates(q, updates), moments), None

    q: Any = jax.lax.scan(step, (start, tx.init(start)), jax.random.split(key, steps))[0][0]
    return dequantise.logistic_normal(q["mean"], q["log_std"], bins)
