"""SA-Solver: stochastic Adams, any amount of noise at any level (Xue et al. 2023).

The reverse SDE with noise τ(level) is solved with x0 a polynomial in l = log(alpha/sigma), over a
step of size h on which τ is constant (its eq. 14):

    x_s = (sigma_s/sigma_t)·exp(-τ²h)·x_t + alpha_s ∫ (1 + τ²)·exp((1 + τ²)(l - l_s))·x0(l) dl
          + sigma_s·sqrt(1 - exp(-2τ²h))·z.                                               (1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.noise import Noise, white
from diffusion_jax.core.solvers.history import History, add, allowed_order, empty, push
from diffusion_jax.core.solvers.multistep import adams_factors, in_log_snr
from diffusion_jax.core.solvers.steps import X0, finite, follow, log_step, one_level
from diffusion_jax.core.types import NoiseLevel, Prediction, Solver, like


class _State(NamedTuple):
    history: History
    moved: Array
    order: Array


def sa_solver(
    order: int = 2,
    corrector_order: int = 2,
    tau: float | Array | Callable[[NoiseLevel], Array] = 1.0,
    rule: str = "exact",
    lower_order_final: int | Array | None = None,
    noise: Noise = white,
) -> Solver:
    """Stochastic Adams predictor and corrector, 1 NFE per step (Xue et al. 2023, algorithm 1).

    Args:
        order: number of the predictor's values, 1 to 3.
        corrector_order: number of the corrector's values, the next one included; 0 for none.
        tau: 0 for the ODE, 1 for DDPM's noise; traced, or a function of the level.
        rule: how second-order steps weight the slope of x0: by its integral in (1), "exact", or by
            (1 + τ²)·h²/2, "half", as the published code does.
        lower_order_final: see ``history.allowed_order``.
        noise: source of fresh noise.

    Raises:
        ValueError: for an order out of range.
    """
    if not (1 <= order <= 3 and 0 <= corrector_order <= 3 and rule in ("exact", "half")):
        raise ValueError(
            f"sa_solver(order={order}, corrector_order={corrector_order}, rule={rule!r}): order is "
            "1 to 3, corrector_order 0 to 3, rule exact or half"
        )
    slope = _half_slope if rule == "half" else lambda factors, *_: factors
    tau_at = tau if callable(tau) else lambda level: jnp.asarray(tau)
    room = max(order, corrector_order, 2)

    def step(key, denoise, x, now, nxt, state):
        one_level("sa_solver", now)
        prediction = denoise(x, now)
        if corrector_order:
            x = _correct(state, x, prediction.x0, now)
        history = push(state.history, prediction.x0, now)
        reached = allowed_order(history, order, nxt, lower_order_final)
        squared = tau_at(now) ** 2
        own = prediction if not corrector_order else _consistent(x, prediction, now)
        mean, factors = _mean(history, own, squared, now, nxt, reached)
        back = log_step(jax.tree.map(lambda leaf: leaf[1], history.levels), now)
        factors = slope(factors, reached, 1, squared, now, nxt, -back)
        predicted = add(mean, factors, history)
        std = nxt.sigma * jnp.sqrt(jnp.maximum(-jnp.expm1(-2 * _lost(squared, now, nxt)), 0.0))
        kick = like(std, x) * noise(key, x, now, nxt)
        upcoming = jnp.minimum(corrector_order, reached + 1)
        return predicted + kick, _State(history, (mean + kick).astype(x.dtype), upcoming)

    def _correct(state, x, x0, now):
        """Repeat the last step, with x0 at ``now`` as another value and the same noise."""
        before = jax.tree.map(lambda leaf: leaf[0], state.history.levels)
        seen = push(state.history, x0, now)
        kernel = _kernel(tau_at(before) ** 2)
        factors = adams_factors(X0, in_log_snr, seen.levels, before, now, state.order, kernel)
        factors = slope(
            factors, state.order, 0, tau_at(before) ** 2, before, now, log_step(before, now)
        )
        corrected = state.moved
        for i in range(room):
            if i != 1:  # values_1 is the one that ``moved`` was computed with
                corrected = corrected + like(factors[i], x) * (seen.values[i] - seen.values[1])
        return jnp.where(state.history.count > 0, corrected, x)

    init = lambda x: _State(empty(x, room), x, jnp.zeros((), jnp.int32))
    return Solver(init, step)


def _mean(
    history: History, prediction: Prediction, squared: Array, now: NoiseLevel, nxt: NoiseLevel,
    order: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """(1) without noise as its first-order version, and the factors of the rest."""
    decay = jnp.exp(-_lost(squared, now, nxt))
    mean = follow(prediction, nxt._replace(sigma=nxt.sigma * decay))
    kernel = _kernel(squared)
    return mean, adams_factors(X0, in_log_snr, history.levels, now, nxt, order, kernel)


def _half_slope(
    factors: Array, order: Array, index: int, squared: Array, now: NoiseLevel, nxt: NoiseLevel,
    gap: Array,
) -> Array:  # fmt: skip
    """In steps of order 2, the factor of value ``index``, ``gap`` in l away from ``now``."""
    slope = nxt.alpha * (1 + squared) * log_step(now, nxt) ** 2 / 2
    half = finite(slope / jnp.where(gap == 0, jnp.inf, gap))
    return jnp.where((order == 2) & (jnp.arange(factors.shape[0]) == index), half, factors)


def _kernel(squared: Array) -> Callable[[Array, NoiseLevel], Array]:
    return lambda offset, level: level.alpha * (1 + squared) * jnp.exp((1 + squared) * offset)


def _lost(squared: Array, now: NoiseLevel, nxt: NoiseLevel) -> Array:
    """τ²h, 0 where τ is."""
    return jnp.where(squared == 0, 0.0, squared * log_step(now, nxt))


def _consistent(x: Array, prediction: Prediction, now: NoiseLevel) -> Prediction:
    """eps of the corrected x; at alpha = 0 x is not corrected, and eps is unchanged."""
    sigma = like(jnp.where(now.sigma > 0, now.sigma, 1.0), x)
    eps = (x - like(now.alpha, x) * prediction.x0) / sigma
    return Prediction(prediction.x0, jnp.where(now.alpha > 0, eps, prediction.eps))
