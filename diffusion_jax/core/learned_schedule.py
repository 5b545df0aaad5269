"""A noise schedule with parameters, trained with the network it schedules.

    λ(t) = high - (high - low)·(m(t) - m(0))/(m(1) - m(0)),
    m(t) = w_0·t + Σ_j w_j·sigmoid(a_j·(t - c_j)),     w_j, a_j > 0                          (1)

a monotone network of one hidden layer (Kingma et al. 2021, "Variational Diffusion Models",
appendix H).  Weights are exponentials of parameters, so that Adam changes them by factors: a good
schedule may be a hundred times steeper in one place than in another.  The parameters fall in two
groups:

* the *ends* low and high, which the bound depends on: trained by the bound;
* the *interior* w, a and c, which in continuous time the bound does not depend on, but the variance
  of its estimate does: trained by that variance (appendix I.2).

The variance of L(t, eps), one draw of the diffusion term, is E[L²] - E[L]², and E[L] does not
depend on the interior η; so its gradient is that of E[L²], E[2·L·dL/dη].  For each example dL/dη =
dL/dλ·dλ/dη + dL/dλ'·dλ'/dη, and the row (dL/dλ, dL/dλ') is a by-product of the backward pass that
trains the network.  ``with_variance_gradient`` multiplies this row by L on its way to the interior,
and does not change it on its way to the ends: no second pass is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.process import Schedule
from diffusion_jax.core.types import Params, like

_STEEPNESS = 12.0  # a of a fresh network: units overlap, and no bend is finer than a tenth of time
_BISECTIONS = 50  # halves of [0, 1]: beyond the digits of either precision


class LearnedSchedule(NamedTuple):
    """A schedule with parameters.

    Attributes:
        init: () -> params, {"ends": {...}, "interior": {...}}.
        schedule: params -> Schedule.
    """

    init: Callable[[], Params]
    schedule: Callable[[Params], Schedule]


def learned(low: float = -10.0, high: float = 10.0, width: int = 32) -> LearnedSchedule:
    """Equation (1), nearly linear in t before training.

    Args:
        low: λ at t = 1 before training.
        high: λ at t = 0 before training; 13.3 in VDM, for 8-bit data.
        width: hidden units.

    Raises:
        ValueError: if low is not below high, or width < 1.
    """
    if not low < high:
        raise ValueError(f"learned(low={low}, high={high}): low must be below high")
    if width < 1:
        raise ValueError(f"learned(width={width}) must have at least 1 unit")

    def init() -> Params:
        number = lambda x: jnp.asarray(x, jnp.result_type(float))
        interior = {
            "log_line": number(0.0),
            "log_weight": jnp.full((width,), number(-math.log(width))),
            "log_steepness": jnp.full((width,), number(math.log(_STEEPNESS))),
            "centre": (jnp.arange(width) + number(0.5)) / width,
        }
        # The logarithm keeps the span positive: the ends never cross.
        ends = {"low": number(low), "log_span": number(math.log(high - low))}
        return {"ends": ends, "interior": interior}

    return LearnedSchedule(init, schedule)


def schedule(params: Params) -> Schedule:
    """λ(t) of (1); the inverse is by bisection, 0 or 1 beyond the ends, and differentiable."""
    low, span = params["ends"]["low"], jnp.exp(params["ends"]["log_span"])
    rising = _monotone(params["interior"])

    def log_snr(t: Array) -> Array:
        return low + span * (1 - rising(t))

    def inverse(lam: Array) -> Array:
        inside = jax.lax.stop_gradient(jnp.clip((low + span - lam) / span, 0.0, 1.0))

        def halve(_, interval):
            left, right = interval
            middle = (left + right) / 2
            later = jax.lax.stop_gradient(rising(middle)) < inside
            return jnp.where(later, middle, left), jnp.where(later, right, middle)

        start = (jnp.zeros_like(inside), jnp.ones_like(inside))
        left, right = jax.lax.fori_loop(0, _BISECTIONS, halve, start)
        t = jax.lax.stop_gradient((left + right) / 2)
        # The ends themselves are exact; bisection leaves them half an interval inside.
        t = jnp.where(inside <= 0, 0.0, jnp.where(inside >= 1, 1.0, t))
        # One step of Newton's method with a constant slope changes t by rounding only, and gives it
        # the derivatives of the implicit function theorem.
        slope = jax.lax.stop_gradient(jax.jvp(log_snr, (t,), (jnp.ones_like(t),))[1])
        step = (log_snr(t) - lam) / slope
        within = (inside > 0) & (inside < 1)
        return t - jnp.where(within, step - jax.lax.stop_gradient(step), 0.0)

    return Schedule(log_snr, inverse)


def split(params: Params) -> tuple[Params, Params]:
    """The same parameters twice: the first has gradients for the ends, the second for the rest."""
    stop = jax.lax.stop_gradient
    return (
        {"ends": params["ends"], "interior": stop(params["interior"])},
        {"ends": stop(params["ends"]), "interior": params["interior"]},
    )


def with_variance_gradient(
    losses: Callable[[Any, Any], Float[Array, "b"]],
) -> Callable[[Any, Any, Any], Float[Array, "b"]]:
    """A loss whose rows have one gradient for their mean and another for their variance.

    Args:
        losses: (a, rows) -> [b] >= 0; entry i depends on row i of each [b, ...] of rows alone.

    Returns:
        (a, rows, same_rows) -> losses(a, rows).  With the mean of the result as the objective,
        gradients reach a and rows as ever, and same_rows as gradients of E[L²]/(2·E[L]): the
        variance's, on the scale of the loss, where E[L] does not depend on same_rows.
    """

    @jax.custom_vjp
    def of(a, rows, same_rows):
        del same_rows
        return losses(a, rows)

    def forward(a, rows, same_rows):
        del same_rows
        value, pull = jax.vjp(losses, a, rows)
        return value, (value, pull)

    def backward(residuals, cotangent):
        value, pull = residuals
        of_a, of_rows = pull(cotangent)
        factor = value / jnp.maximum(jnp.mean(value), jnp.finfo(value.dtype).tiny)
        return of_a, of_rows, jax.tree.map(lambda g: like(factor, g) * g, of_rows)

    of.defvjp(forward, backward)
    return of


def _monotone(interior: Params) -> Callable[[Array], Array]:
    """t -> (m(t) - m(0))/(m(1) - m(0)) of (1)."""
    line, weight, steepness = (
        jnp.exp(interior[f"log_{name}"]) for name in ("line", "weight", "steepness")
    )

    def m(t):
        unit = jax.nn.sigmoid(steepness * (t[..., None] - interior["centre"]))
        return line * t + jnp.sum(weight * unit, axis=-1)

    def rising(t):
        first, last = m(jnp.zeros((), t.dtype)), m(jnp.ones((), t.dtype))
        return (m(t) - first) / (last - first)

    return rising


LEARNED: dict[str, Callable[..., LearnedSchedule]] = {"learned": learned}
