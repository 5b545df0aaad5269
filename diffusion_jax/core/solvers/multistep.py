"""Linear multistep solvers: one network evaluation per step, and a history of earlier ones.

Over a step the value D (eps or x0) is replaced by the polynomial through its last k values, in some
variable u(l) of the level, and the integral of ``steps.Form`` is taken exactly (an Adams-Bashforth
method with variable steps).  Two choices name the methods of the literature:

    eps in u = sigma/alpha   LMS of k-diffusion = ρAB of Zhang & Chen 2023
    eps in u = t             tAB-DEIS of Zhang & Chen 2023
    eps in u = l             the "log ρ" variant of DEIS
    x0  in u = l             exponential Adams-Bashforth; DPM-Solver++ and UniPC to its own order

PLMS and iPNDM use the factors of constant steps whatever the steps are (Liu et al. 2022).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers.history import (
    Cap,
    History,
    add,
    allowed_order,
    check_order,
    each_level,
    empty,
    integrate,
    lagrange,
    push,
)
from diffusion_jax.core.solvers.steps import EPS, X0, Form, eps_factor, follow
from diffusion_jax.core.types import NoiseLevel, Prediction, Solver, like

Variable = Callable[[Array], Array]
"""l = log(alpha/sigma) -> the variable that values are polynomial in."""


def adams(
    form: Form, variable: Variable, order: int, lower_order_final: int | Array | Cap | None = None
) -> Solver:
    """The Adams-Bashforth method of a form in a variable; lower order while it warms up.

    Args:
        form: ``steps.EPS`` or ``steps.X0``.
        variable: l -> u.
        order: number of values used, >= 1.
        lower_order_final: see ``history.allowed_order``.
    """

    def step(key, denoise, x, now, nxt, history):
        del key
        prediction = denoise(x, now)
        history = push(history, form.value(prediction), now)
        factors = adams_factors(
            form,
            variable,
            history.levels,
            now,
            nxt,
            allowed_order(history, order, nxt, lower_order_final),
        )
        return add(follow(prediction, nxt), factors, history), history

    return Solver(lambda x: empty(x, order), step)


def adams_factors(
    form: Form,
    variable: Variable,
    seen: NoiseLevel,
    now: NoiseLevel,
    nxt: NoiseLevel,
    order: Array,
    kernel: Callable[[Array, NoiseLevel], Array] | None = None,
) -> Array:
    """Factor of each remembered value in x at ``nxt``, [k, ...]; only their differences count.

    Values at pure noise have no finite l and are ignored.

    Args:
        form, variable: as in ``adams``.
        seen: levels of the values, newest (or the one ahead) first, leaves [k, ...].
        now, nxt: the step, of levels [...].
        order: how many values to use.
        kernel: in place of the form's own.
    """
    factors = functools.partial(_adams_factors, kernel or form.kernel, variable)
    order = jnp.broadcast_to(order, now.log_snr.shape)
    return each_level(factors, now)(seen, now, nxt, order)


def _adams_factors(
    kernel: Callable[[Array, NoiseLevel], Array],
    variable: Variable,
    seen: NoiseLevel,
    now: NoiseLevel,
    nxt: NoiseLevel,
    order: Array,
) -> Array:
    l_now, l_nxt = now.log_snr / 2, nxt.log_snr / 2
    whole = jnp.isfinite(l_now) & jnp.isfinite(l_nxt)
    known = jnp.cumprod(jnp.isfinite(seen.log_snr)).sum(dtype=jnp.int32)
    order = jnp.where(whole, jnp.minimum(order, known), 1)
    nodes = variable(jnp.where(jnp.isfinite(seen.log_snr), seen.log_snr / 2, 0.0))
    low, high = (jnp.where(whole, end, 0.0) for end in (l_now, l_nxt))
    weights = lambda at: lagrange(nodes, order, variable(at)) * kernel(at - high, nxt)
    return jnp.where(whole, integrate(weights, low, high), 0.0)


def in_log_snr(half_log_snr: Array) -> Array:
    """The variable l itself."""
    return half_log_snr


def lms(order: int = 4, lower_order_final: int | Array | Cap | None = None) -> Solver:
    """Linear multistep in sigma/alpha (k-diffusion's LMS; ρAB of Zhang & Chen 2023).

    Args:
        order: 1 to 4 past values.
        lower_order_final: see ``history.allowed_order``.
    """
    check_order("lms", order, 4)

    def step(key, denoise, x, now, nxt, history):
        del key
        prediction = denoise(x, now)
        history = push(history, prediction.eps, now)
        reached = allowed_order(history, order, nxt, lower_order_final)
        reached = jnp.broadcast_to(reached, now.log_snr.shape)
        factors = each_level(_lms_factors, now)(history.levels, now, nxt, reached)
        return add(follow(prediction, nxt), factors, history), history

    return Solver(lambda x: empty(x, order), step)


def _lms_factors(seen: NoiseLevel, now: NoiseLevel, nxt: NoiseLevel, order: Array) -> Array:
    """As ``adams_factors``, over sigma/alpha itself, which is finite up to the clean level."""
    known = jnp.cumprod(seen.alpha > 0).sum(dtype=jnp.int32)
    ratio = lambda level: level.sigma / jnp.where(level.alpha > 0, level.alpha, 1.0)
    nodes = jnp.where(seen.alpha > 0, ratio(seen), 0.0)
    weights = lambda at: lagrange(nodes, jnp.minimum(order, known), at)
    factors = nxt.alpha * integrate(weights, ratio(now), ratio(nxt), points=2)
    return jnp.where(now.alpha > 0, factors, 0.0)


def deis(process: Process, order: int = 3, variable: str = "t") -> Solver:
    """DEIS: eps a polynomial in t, ``variable="t"`` (Zhang & Chen 2023, eq. 15), or in log ρ.

    Args:
        process: the model's process, whose time is the variable.
        order: 1 to 4 values: the paper's tAB0 to tAB3.
        variable: "t"; "log_rho", which needs no process and is what diffusers calls DEIS; "rho".

    Raises:
        ValueError: for an unknown variable or order.
    """
    check_order("deis", order, 4)
    variables = {
        "t": lambda half: process.schedule.inverse(2 * half),
        "log_rho": in_log_snr,
        "rho": lambda half: jnp.exp(-half),
    }
    if variable not in variables:
        raise ValueError(f"deis(variable={variable!r}): known are {', '.join(variables)}")
    return adams(EPS, variables[variable], order)


def exponential_adams(order: int = 3, lower_order_final: int | Array | Cap | None = None) -> Solver:
    """x0 a polynomial in l, integrated exactly (Hochbruck & Ostermann 2010, eq. 2.59).

    Args:
        order: 1 to 4.
        lower_order_final: see ``history.allowed_order``.
    """
    check_order("exponential_adams", order, 4)
    return adams(X0, in_log_snr, order, lower_order_final)


# Adams-Bashforth with constant steps, orders 1 to 4, newest first.
CONSTANT = np.array(
    [[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0],
     [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
)  # fmt: skip


def ipndm(order: int = 4) -> Solver:
    """Improved PNDM: constant-step factors on eps, with orders 1, 2, 3, ... to start.

    (Liu et al. 2022, eq. 12, for the transfer; Zhang & Chen 2023, appendix H.2, for the start.)
    It has this order for levels evenly spaced in sigma/alpha, otherwise order 1.

    Args:
        order: 1 to 4.
    """
    check_order("ipndm", order, 4)

    def step(key, denoise, x, now, nxt, history):
        del key
        prediction = denoise(x, now)
        history = push(history, prediction.eps, now)
        return _transfer(prediction, history, order, now, nxt), history

    return Solver(lambda x: empty(x, order), step)


def plms() -> Solver:
    """Pseudo linear multistep, order 4 (Liu et al. 2022, eq. 12; the sampler of latent diffusion).

    The first step is a pseudo Heun step, with two network evaluations; then orders 2, 3, 4.
    """

    def first(denoise, x, now, nxt, history):
        start = denoise(x, now)
        end = denoise(follow(start, nxt), nxt)
        change = like(eps_factor(now, nxt), x) * (end.eps - start.eps) / 2
        return follow(start, nxt) + change, push(history, start.eps, now)

    return _with_start(first, count=1)


def pndm(process: Process) -> Solver:
    """``plms`` after three pseudo Runge-Kutta steps of 4 NFE (Liu et al. 2022, eq. 13).

    Args:
        process: gives the level half way in time.
    """

    def first(denoise, x, now, nxt, history):
        middle = process.at((now.t + nxt.t) / 2)
        e1 = denoise(x, now)
        moved = lambda eps, to: follow(e1, to) + like(eps_factor(now, to), x) * (eps - e1.eps)
        e2 = denoise(moved(e1.eps, middle), middle).eps
        e3 = denoise(moved(e2, middle), middle).eps
        e4 = denoise(moved(e3, nxt), nxt).eps
        return moved((e1.eps + 2 * e2 + 2 * e3 + e4) / 6, nxt), push(history, e1.eps, now)

    return _with_start(first, count=3)


def _with_start(first: Callable, count: int) -> Solver:
    def later(denoise, x, now, nxt, history):
        prediction = denoise(x, now)
        history = push(history, prediction.eps, now)
        return _transfer(prediction, history, 4, now, nxt), history

    def step(key, denoise, x, now, nxt, history):
        del key
        run = lambda way: lambda x, history: way(denoise, x, now, nxt, history)
        return jax.lax.cond(history.count < count, run(first), run(later), x, history)

    return Solver(lambda x: empty(x, 4), step)


def _transfer(
    prediction: Prediction, history: History, order: int, now: NoiseLevel, nxt: NoiseLevel
) -> Array:
    """Move with Σ_i c_i·eps_i in place of eps; Σ c_i = 1, so only differences enter."""
    row = jnp.asarray(CONSTANT, jnp.result_type(float))[allowed_order(history, order, nxt) - 1]
    row = jnp.moveaxis(row, -1, 0)[:order]
    return add(follow(prediction, nxt), row * eps_factor(now, nxt), history)
