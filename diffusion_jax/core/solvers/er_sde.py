"""ER-SDE-Solvers: the reverse SDE with another noise scale (Cui et al. 2023).

In y = x/alpha, s = sigma/alpha the extended reverse SDE with noise scale φ(s) has the solution

    y_s = r·y_t + φ(s_s) ∫_{s_s}^{s_t} x0(s)·φ'(s)/φ(s)² ds + sqrt(s_s² - r² s_t²)·z

with r = φ(s_s)/φ(s_t) (its proposition 3), x0 being a Taylor polynomial in s whose derivatives are
divided differences.
φ(s) = s is the ODE, φ(s) = s² DDPM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.noise import Noise, white
from diffusion_jax.core.solvers.history import (
    add,
    allowed_order,
    each_level,
    empty,
    integrate,
    push,
)
from diffusion_jax.core.solvers.steps import finite, follow
from diffusion_jax.core.types import NoiseLevel, Solver, like

Scale = Callable[[Array], Array]
"""log s -> log(φ(s)/s), increasing."""


def er_sde(
    order: int = 3,
    scale: str = "er_sde_5",
    lower_order_final: int | Array | None = None,
    noise: Noise = white,
) -> Solver:
    """ER-SDE-Solver-1, -2 or -3, 1 NFE per step (Cui et al. 2023, algorithms 1 to 3).

    Args:
        order: 1 to 3 values.
        scale: φ, one of ``SCALES``.
        lower_order_final: see ``history.allowed_order``.
        noise: source of fresh noise.

    Raises:
        ValueError: for an unknown scale or order.
    """
    if scale not in SCALES or not 1 <= order <= 3:
        raise ValueError(
            f"er_sde(order={order}, scale={scale!r}): order is 1 to 3, scales are "
            f"{', '.join(SCALES)}"
        )
    excess = SCALES[scale]

    def step(key, denoise, x, now, nxt, history):
        prediction = denoise(x, now)
        history = push(history, prediction.x0, now)
        reached = allowed_order(history, order, nxt, lower_order_final)
        start, end = -now.log_snr / 2, -nxt.log_snr / 2  # log s
        # r·s_t <= s_s, in a form that holds where s_t is infinite.
        down = nxt.sigma * jnp.exp(excess(end) - excess(start))
        moved = follow(prediction, nxt._replace(sigma=down))
        of_levels = functools.partial(_factors, excess)
        factors = each_level(of_levels, now)(history.levels, start, end, nxt, reached)
        # sigma_s² - down², without cancelling: 0 exactly where φ is the ODE's.
        up = nxt.sigma * jnp.sqrt(jnp.maximum(-jnp.expm1(2 * (excess(end) - excess(start))), 0.0))
        return add(moved, factors, history) + like(up, x) * noise(key, x, now, nxt), history

    return Solver(lambda x: empty(x, order), step)


def _factors(
    excess: Scale, seen: NoiseLevel, start: Array, end: Array, nxt: NoiseLevel, order: Array
) -> Array:
    """Factors of values_i - values_0 from the slope and the curvature of x0 in s.

    By parts, a term f(s) of x0 with f(s_t) = 0 gives f(s_s) + φ(s_s) ∫ f'(s)/φ(s) ds.
    """
    k = seen.log_snr.shape[0]
    if k == 1:
        return jnp.zeros(1)
    start = jnp.where(jnp.isfinite(start), start, end)
    here, there = jnp.exp(start), jnp.exp(end)
    moment = lambda f: integrate(
        lambda log_s: f(jnp.exp(log_s)) * jnp.exp(end + excess(end) - excess(log_s)), end, start
    )
    slope = nxt.alpha * ((there - here) + moment(jnp.ones_like))
    curve = nxt.alpha * ((there - here) ** 2 / 2 + moment(lambda s: s - here))
    s = jnp.exp(-seen.log_snr / 2)
    gap = lambda i, j: jnp.where(s[i] == s[j], jnp.inf, s[i] - s[j])
    # With D[0,1] = (v0 - v1)/(s0 - s1): D' = D[0,1], D'' = 2(D[0,1] - D[1,2])/(s0 - s2).
    first = finite(-slope / gap(0, 1))
    if k == 2:
        return jnp.stack([0.0, jnp.where(order > 1, first, 0.0)])
    bend = 2 * curve / gap(0, 2)
    one = finite(-bend * (1 / gap(0, 1) + 1 / gap(1, 2)))
    two = finite(bend / gap(1, 2))
    third = order > 2
    return jnp.stack(
        [0.0, jnp.where(order > 1, first, 0.0) + jnp.where(third, one, 0.0),
         jnp.where(third, two, 0.0)]
    )  # fmt: skip


SCALES: dict[str, Scale] = {
    "ode": jnp.zeros_like,
    "sde": lambda log_s: log_s,
    # φ(s) = s·(exp(s^0.3) + 10), the paper's choice.
    "er_sde_5": lambda log_s: jnp.logaddexp(jnp.exp(0.3 * log_s), jnp.log(10.0)),
}
