"""UniPC: a predictor and a corrector with one network evaluation per step (Zhao et al. 2023).

The predictor UniP-p is the exponential Adams method of order p on x0; the corrector UniC-p repeats
the step that led to ``now`` once the prediction at ``now`` is known, as another node of the
polynomial (an Adams-Moulton method of order p + 1), and moves x before the next step.  The paper's
free function B(h) cancels except where it replaces a linear system by the weight 1/2: in the
predictor of order 2 and the corrector of order 1 (its section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.solvers.history import Cap, History, add, allowed_order, empty, push
from diffusion_jax.core.solvers.multistep import adams_factors, in_log_snr
from diffusion_jax.core.solvers.steps import X0, finite, follow, log_step
from diffusion_jax.core.types import NoiseLevel, Prediction, Solver, like


class _State(NamedTuple):
    """x0 at the levels so far; the last level's x (corrected) and the order of the step from it."""

    history: History
    x: Array
    order: Array


def unipc(
    order: int = 2,
    variant: str = "bh2",
    corrector: bool | Array = True,
    lower_order_final: int | Array | Cap | None = None,
) -> Solver:
    """UniPC on x0 (Zhao et al. 2023, algorithms 5 to 8).

    Args:
        order: order of the predictor, 1 to 3; the corrector adds one.
        variant: B(h): "bh1" is h, "bh2" is e^h - 1.
        corrector: whether to correct; may be traced.
        lower_order_final: see ``history.allowed_order``.

    Raises:
        ValueError: for an unknown variant or order.
    """
    if variant not in VARIANTS or not 1 <= order <= 3:
        raise ValueError(
            f"unipc(order={order}, variant={variant!r}): order is 1 to 3, "
            f"variants are {', '.join(VARIANTS)}"
        )
    half = VARIANTS[variant]

    def step(key, denoise, x, now, nxt, state):
        del key
        prediction = denoise(x, now)
        corrected = _correct(state, prediction.x0, now, half)
        x = jnp.where(corrector & (state.history.count > 0), corrected.astype(x.dtype), x)
        history = push(state.history, prediction.x0, now)
        reached = allowed_order(history, order, nxt, lower_order_final)
        moved = follow(_at(x, prediction.x0, now), nxt)
        # The prediction at pure noise has no eps to move along but its own.
        moved = jnp.where(like(now.alpha > 0, x), moved, follow(prediction, nxt))
        factors = adams_factors(X0, in_log_snr, history.levels, now, nxt, reached)
        simple = _simple(half, history.levels, now, nxt, factors)
        factors = jnp.where(reached == 2, simple, factors)
        return add(moved, factors, history), _State(history, x, reached)

    # The corrector of order p uses p values and the next one.
    return Solver(lambda x: _State(empty(x, order + 1), x, jnp.zeros((), jnp.int32)), step)


def _correct(state: _State, x0: Array, now: NoiseLevel, half: Callable) -> Array:
    """x at ``now`` by repeating the last step with x0 at ``now`` as one more value."""
    seen = push(state.history, x0, now)
    before, last = jax.tree.map(lambda leaf: leaf[1], (seen.levels, seen.values))
    start = follow(_at(state.x, last, before), now)
    factors = adams_factors(X0, in_log_snr, seen.levels, before, now, state.order + 1)
    # Of order 1 the system is replaced by weight 1/2 of B(h).
    simple = jnp.zeros_like(factors).at[0].set(finite(half(log_step(before, now), now)))
    factors = jnp.where(state.order == 1, simple, factors)
    for i in range(factors.shape[0]):
        if i != 1:
            start = start + like(factors[i], x0) * (seen.values[i] - last)
    return start


def _at(x: Array, x0: Array, level: NoiseLevel) -> Prediction:
    """The prediction of (x, x0) at ``level``; x may have been corrected since x0 was predicted."""
    eps = (x - like(level.alpha, x) * x0) / like(jnp.where(level.sigma > 0, level.sigma, 1.0), x)
    return Prediction(x0, eps)


def _simple(
    half: Callable, seen: NoiseLevel, now: NoiseLevel, nxt: NoiseLevel, factors: Array
) -> Array:
    """Second-order predictor factors: B(h)/2 of (D_1 - D_0)/r_1."""
    first = jax.tree.map(lambda leaf: leaf[1], seen)
    h, back = log_step(now, nxt), log_step(now, first)
    share = finite(half(h, nxt)) * finite(h / jnp.where(back == 0, jnp.inf, back))
    return jnp.zeros_like(factors).at[1].set(share)


VARIANTS: dict[str, Callable[[Array, NoiseLevel], Array]] = {
    "bh1": lambda h, level: level.alpha * h / 2,
    "bh2": lambda h, level: -level.alpha * jnp.expm1(-h) / 2,
}
