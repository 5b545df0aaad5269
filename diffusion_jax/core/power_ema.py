"""Power-function averages, and the average of any width after the fact (EDM2: Karras et al. 2024).

An average of the parameters θ over training time t > 0 weights time by a profile

    p_{t,γ}(τ) = (γ + 1)·τ^γ / t^(γ+1)    for 0 < τ <= t, else 0                             (1)

(its eqs. 108 and 121).  The width of a profile is its standard deviation over t,

    σ_rel = (γ + 1)^(1/2) · (γ + 2)^(-1) · (γ + 3)^(-1/2)                                    (2)

(its eq. 123): σ_rel = 0.1 averages over about a tenth of the training, however long it has been.
``ema.power`` tracks such averages.  Snapshots of a few approximate any other: the
wanted profile is projected on the stored ones, and the same weights combine their averages.  All
here is float64 numpy on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The width of γ = 0, the plain mean, the largest supported.
WIDEST = 12**-0.5


class Profile(NamedTuple):
    """A profile (1).

    Attributes:
        step: t, optimiser steps done, >= 1.
        sigma_rel: width, in (0, ``WIDEST``].
    """

    step: int
    sigma_rel: float


class Combination(NamedTuple):
    """An average as a combination of stored ones.

    Attributes:
        weights: float64 [n], of sum 1; some are negative.
        error: L2 distance of the combined profile from the one wanted, over the norm of the latter.
    """

    weights: np.ndarray
    error: float


def exponent(sigma_rel: float) -> float:
    """γ of (2): the real root >= 0 of (γ + 2)²·(γ + 3) = (γ + 1)/σ_rel² (its eq. 126).

    Raises:
        ValueError: for a width outside of (0, ``WIDEST``].
    """
    if not 0 < sigma_rel <= WIDEST * (1 + 1e-9):
        raise ValueError(
            f"sigma_rel = {sigma_rel!r} must be above 0 and at most {WIDEST:.4f}, the plain mean; "
            "0.05 to 0.25 is usual"
        )
    t = sigma_rel**-2.0
    roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
    return max(float(np.max(roots[np.abs(roots.imag) < 1e-6 * t].real)), 0.0)


def width(gamma: float) -> float:
    """σ_rel of γ > -1, by (2)."""
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def inner_products(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """∫ p_a(τ)·p_b(τ) dτ of every pair, float64 [len(a), len(b)].

    With t_1 <= t_2 the integral ends at t_1, and is (γ_1 + 1)(γ_2 + 1)/(γ_1 + γ_2 + 1) ·
    (t_1/t_2)^γ_2 / t_2 (its eq. 151).
    """
    (ta, ga), (tb, gb) = _columns(a), _columns(b)
    ta, ga, tb, gb = ta[:, None], ga[:, None], tb[None], gb[None]
    first, last = np.minimum(ta, tb), np.maximum(ta, tb)
    later = np.where(ta < tb, gb, ga)
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * (first / last) ** later / last


def combine(stored: Sequence[Profile], wanted: Profile) -> Combination:
    """The combination of stored profiles nearest, in L2, to the wanted one.

    Least squares A·x = b with A the inner products of the stored ones, and b those with the one
    wanted (its algorithm 3), under the constraint Σx = 1, so that constant parameters are
    reproduced exactly.

    Raises:
        ValueError: if nothing is stored up to the step wanted.
    """
    if not any(p.step <= wanted.step for p in stored):
        raise ValueError(
            f"no snapshot is of step {wanted.step} or before; the steps stored are "
            f"{sorted({p.step for p in stored}) or 'none'}"
        )
    a, b = inner_products(stored, stored), inner_products(stored, [wanted])[:, 0]
    norm = 1 / np.sqrt(np.diag(a))  # profiles scaled to unit norm: A gets its best condition
    solve = lambda right: norm * np.linalg.lstsq(norm[:, None] * a * norm, norm * right)[0]
    free, ones = solve(b), solve(np.ones(len(b)))
    x = free + ones * (1 - free.sum()) / ones.sum()
    whole = inner_products([wanted], [wanted])[0, 0]
    error = max(whole - 2 * x @ b + x @ a @ x, 0.0) / whole
    return Combination(x, float(np.sqrt(error)))


def _columns(profiles: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    gamma = [exponent(p.sigma_rel) for p in profiles]
    return np.array([p.step for p in profiles], np.float64), np.array(gamma, np.float64)


__all__ = ["WIDEST", "Combination", "Profile", "combine", "exponent", "inner_products", "width"]
