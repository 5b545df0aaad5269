"""FLOPs of matrix products and convolutions, counted in traced JAX programs.

XLA's own count takes the body of a loop once; here all iterations of a scan count.  Products
with the zeros of padding and of dilation do not count, nor does anything elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr


class Flops(NamedTuple):
    """A count, over all devices.

    Attributes:
        total: with all iterations of each scan.
        once: with every loop's body counted once.
        endless: number of while loops of unknown length; they count once.
    """

    total: float = 0.0
    once: float = 0.0
    endless: int = 0


def count(jaxpr: Any) -> Flops:
    """The FLOPs of a jaxpr, such as ``jax.make_jaxpr(f)(x)`` or ``jitted.trace(x).jaxpr``."""
    total, once, endless = 0.0, 0.0, 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        own = _COUNTS.get(equation.primitive.name, _of_parts)(equation)
        total, once, endless = total + own.total, once + own.once, endless + own.endless
    return Flops(total, once, endless)


def _dot(equation: Any) -> Flops:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    flops = 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    return Flops(flops, flops)


def _convolution(equation: Any) -> Flops:
    p = equation.params
    (left, right), out = (v.aval.shape for v in equation.invars), equation.outvars[0].aval.shape
    of_left, of_right, of_out = p["dimension_numbers"]
    products = 2.0 * out[of_out[0]] * out[of_out[1]] * right[of_right[1]]
    for i, (stride, padding, spread, gap) in enumerate(
        zip(p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"], strict=True)
    ):
        at = np.arange(out[of_out[2 + i]])[:, None] * stride - padding[0]
        at = at + np.arange(right[of_right[2 + i]]) * gap
        inside = (at >= 0) & (at <= (left[of_left[2 + i]] - 1) * spread) & (at % spread == 0)
        products *= int(inside.sum())
    return Flops(products, products)


def _scan(equation: Any) -> Flops:
    body = count(equation.params["jaxpr"])
    return body._replace(total=body.total * equation.params["length"])


def _while(equation: Any) -> Flops:
    body = count(equation.params["body_jaxpr"])
    return body._replace(endless=body.endless + 1)


def _cond(equation: Any) -> Flops:
    return max(count(branch) for branch in equation.params["branches"])


def _of_parts(equation: Any) -> Flops:
    """A call, a rematerialised block, a custom derivative: anything that contains jaxprs."""
    parts = [count(part) for part in _jaxprs(equation.params.values())]
    return Flops(*(sum(column) for column in zip(*parts, strict=True))) if parts else Flops()


def _jaxprs(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (Jaxpr, ClosedJaxpr)):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _jaxprs(value)


_COUNTS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
