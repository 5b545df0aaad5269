"""Runge-Kutta solvers of the probability-flow ODE, in two coordinates where it is smooth.

    sigma:  y = x/alpha,          u = sigma/alpha,          dy/du = eps (Karras et al. 2022)
    flow:   z = x/(alpha+sigma),  u = sigma/(alpha+sigma),  dz/du = eps - x0 (Liu et al. 2023)

In both, Euler's method is ``steps.follow``, which is DDIM: so "Euler", "flow-matching Euler" and
DDIM are one solver, and the methods here add the differences between stages to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers.steps import finite, follow
from diffusion_jax.core.types import NoiseLevel, Prediction, Solver, like


class Coordinate(NamedTuple):
    """The coordinate in which a method takes its steps.

    Attributes:
        clock: level -> u.
        scale: level -> factor from the coordinate's state to x.
        velocity: prediction -> derivative of the state in u.
        log_snr: u -> λ.
    """

    clock: Callable[[NoiseLevel], Array]
    scale: Callable[[NoiseLevel], Array]
    velocity: Callable[[Prediction], Array]
    log_snr: Callable[[Array], Array]


SIGMA = Coordinate(
    lambda level: level.sigma / level.alpha,
    lambda level: level.alpha,
    lambda prediction: prediction.eps,
    lambda u: -2 * jnp.log(u),
)
FLOW = Coordinate(
    lambda level: level.sigma / (level.alpha + level.sigma),
    lambda level: level.alpha + level.sigma,
    lambda prediction: prediction.eps - prediction.x0,
    lambda u: 2 * (jnp.log1p(-u) - jnp.log(u)),
)


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method.

    Attributes:
        stages: rows a_i of the second and later stages; their nodes c_i are the sums of the rows.
        weights: b, one more than stages, of sum 1.
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


EULER = Tableau((), (1.0,))
HEUN = Tableau(((1.0,),), (1 / 2, 1 / 2))
MIDPOINT = Tableau(((1 / 2,),), (0.0, 1.0))
RK4 = Tableau(((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def runge_kutta(coordinate: Coordinate, tableau: Tableau, process: Process | None = None) -> Solver:
    """The explicit method of a tableau in a coordinate.

    Args:
        coordinate: ``SIGMA`` or ``FLOW``.
        tableau: its stages and weights.
        process: gives the levels of nodes other than 0 and 1; None if there are none.
    """

    def step(key, denoise, x, now, nxt, state):
        del key
        first = denoise(x, now)
        start, end = coordinate.clock(now), coordinate.clock(nxt)
        h = end - start
        slopes = [coordinate.velocity(first)]

        def arrive(level, row):
            differences = sum(
                (a * (slope - slopes[0]) for a, slope in zip(row[1:], slopes[1:], strict=True)),
                jnp.zeros_like(x),
            )
            moved = like(finite(h * coordinate.scale(level)), x) * differences
            return follow(first, level) + moved

        for row in tableau.stages:
            node = sum(row)
            level = nxt if node == 1 else _inside(process, coordinate, start + node * h, nxt)
            slopes.append(coordinate.velocity(denoise(arrive(level, row), level)))
        return arrive(nxt, tableau.weights), state

    return Solver(lambda x: (), step)


def _inside(
    process: Process | None, coordinate: Coordinate, u: Array, nxt: NoiseLevel
) -> NoiseLevel:
    if process is None:
        raise ValueError("stages between two levels need the process, to know the levels there")
    # From pure noise u of SIGMA is infinite: the stage is then at the end of the step.
    return process.at_log_snr(jnp.where(jnp.isfinite(u), coordinate.log_snr(u), nxt.log_snr))


def euler() -> Solver:
    """Euler's method in either coordinate: another name of ``ddim()``, order 1."""
    return runge_kutta(SIGMA, EULER)


def heun() -> Solver:
    """Heun's method in sigma/alpha: order 2, 2 NFE per step (Karras et al. 2022, algorithm 1).

    A step that divides sigma/alpha by r weights the change of x0 by (r - 1)/2: give it a grid that
    is even there (karras); on one that starts far out in t, ``flow_heun`` does not have this.
    """
    return runge_kutta(SIGMA, HEUN)


def flow_heun() -> Solver:
    """Heun's method in rectified time: the second-order sampler of flow matching."""
    return runge_kutta(FLOW, HEUN)


def midpoint(process: Process) -> Solver:
    """The midpoint rule in sigma/alpha: order 2, two network evaluations per step."""
    return runge_kutta(SIGMA, MIDPOINT, process)


def rk4(process: Process) -> Solver:
    """The classical method in rectified time: order 4, four network evaluations per step."""
    return runge_kutta(FLOW, RK4, process)
