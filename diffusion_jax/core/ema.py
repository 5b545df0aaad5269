"""Moving averages of parameters, which are sampled from, and are the teacher of some losses.

Every average here is one recurrence, with a rate r_k in [0, 1] at the k-th update (k from 0):

    e <- e + r_k · (p - e)                                                                (1)

so after n updates e = Σ_k w_k p_k with w_k = r_k · Π_{j>k} (1 - r_j), plus Π_j (1 - r_j) of the
initialisation.  Averages are float32 whatever the parameters' dtype: at a decay of 0.9999, (1)
changes less than half a bfloat16 step and would have no effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.core.power_ema import exponent
from diffusion_jax.core.types import Params

Rate = Callable[[Int[Array, ""]], Float[Array, ""]]
"""Updates done before this one -> r_k of (1)."""


class Ema(NamedTuple):
    """An average as three pure functions.

    Attributes:
        init: params -> state, a pytree.  Holds the average; a method that needs several averages
            (power-function profiles) holds several.
        update: (state, params after the step, steps done before it: int32 []) -> state.
        params: state -> the averaged parameters, in the structure of params.
    """

    init: Callable[[Params], Any]
    update: Callable[[Any, Params, Array], Any]
    params: Callable[[Any], Params]


def constant(decay: float = 0.9999) -> Ema:
    """r_k = 1 - decay.  The initialisation keeps the weight decay^n.

    Args:
        decay: in [0, 1); 0 copies the parameters.
    """
    _check_decay("constant", decay)
    return averaged(lambda k: jnp.float32(1 - decay))


def warmup(decay: float = 0.9999) -> Ema:
    """r_k = 1 - min(decay, (1 + k)/(10 + k)): early parameters are forgotten fast.

    The decay reaches its final value at k = (10·decay - 1)/(1 - decay), about 9/(1 - decay).

    Args:
        decay: in [0, 1), the final one.
    """
    _check_decay("warmup", decay)
    return averaged(lambda k: jnp.maximum(1 - decay, 9.0 / (10.0 + k)).astype(jnp.float32))


def halflife(steps: int, ramp: float | None = 0.05) -> Ema:
    """r_k = 1 - 2^(-1/h), h = min(steps, ramp·k) (Karras et al. 2022, training code of EDM).

    Args:
        steps: half-life in optimiser steps, > 0: a weight halves in so many steps.
        ramp: largest half-life as a share of the steps done; None for no ramp.  With a ramp the
            first update is a copy, so the initialisation has no weight.
    """
    if not steps > 0 or (ramp is not None and not ramp > 0):
        raise ValueError(
            f"config.ema: halflife(steps={steps!r}, ramp={ramp!r}) needs steps > 0, "
            "and ramp > 0 or None"
        )

    def rate(k):
        longest = jnp.float32(steps)
        half = longest if ramp is None else jnp.minimum(longest, ramp * k)
        return -jnp.expm1(-math.log(2) / jnp.maximum(half, 1e-8)).astype(jnp.float32)

    return averaged(rate)


def power(sigma_rel: float | Sequence[float] = (0.05, 0.1)) -> Ema:
    """r_k = 1 - (1 - 1/t)^(γ + 1), t = k + 1 (Karras et al. 2024, "EDM2", eq. 127).

    The weight of θ_t after n updates is (t/n)^(γ + 1) - ((t - 1)/n)^(γ + 1): the integral of the
    profile of ``core.power_ema``, which gives γ for a width.  The first update is a copy.

    Args:
        sigma_rel: width, or several that are tracked at once: the state is {width: average}, and
            ``params`` gives the first.  Snapshots of two span any other (``power_ema``).
    """
    try:
        widths = [float(w) for w in np.atleast_1d(sigma_rel)]
        profiles = {repr(w): averaged(_power_rate(exponent(w) + 1)) for w in widths}
    except ValueError as error:
        raise ValueError(f"config.ema: power(sigma_rel={sigma_rel!r}): {error}") from None
    if not widths or len(profiles) < len(widths):
        raise ValueError(f"config.ema: power(sigma_rel={sigma_rel!r}) needs different widths")
    first = repr(widths[0])
    return Ema(
        lambda params: {name: one.init(params) for name, one in profiles.items()},
        lambda state, params, k: {
            name: one.update(state[name], params, k) for name, one in profiles.items()
        },
        lambda state: state[first],
    )


def _power_rate(power: float) -> Rate:
    return lambda k: -jnp.expm1(power * jnp.log1p(-1 / (k + 1.0))).astype(jnp.float32)


def averaged(rate: Rate) -> Ema:
    """The recurrence (1) with any rate.  Leaves that are not floating point are copied."""

    def init(params):
        return jax.tree.map(lambda p: _wide(p) if _floating(p) else p, params)

    def update(state, params, k):
        r = rate(k)
        return jax.tree.map(
            lambda e, p: e + r * (_wide(p) - e) if _floating(p) else p, state, params
        )

    return Ema(init, update, lambda state: state)


def _wide(p: Array) -> Array:
    return jnp.asarray(p, jnp.promote_types(jnp.float32, p.dtype))


def _floating(p: Array) -> bool:
    return jnp.issubdtype(p.dtype, jnp.floating)


def _check_decay(name: str, decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"config.ema: {name}(decay={decay!r}) must have 0 <= decay < 1")


EMAS: dict[str, Callable[..., Ema]] = {
    "constant": constant,
    "warmup": warmup,
    "halflife": halflife,
    "power": power,
}

__all__ = ["EMAS", "Ema", "Rate", "averaged", "constant", "halflife", "power", "warmup"]
