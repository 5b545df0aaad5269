"""Samples that explain a measurement y = A(x0) + noise: inpainting, super-resolution, any A.

Each function wraps a Denoise and adds to its score an estimate of ∇ log p(y | x_t), where

    p(y | x_t) = ∫ p(y | x0) p(x0 | x_t) dx0.                                                (1)

They differ in what stands for p(x0 | x_t): a point, a Gaussian of known variance, or the Gaussian
with its first two moments, for which (1) is exact if the data are Gaussian and A linear.  With
x̂0(x) the denoiser, J its Jacobian and r = y - A(x̂0), all are Jᵀ Aᵀ M r for some M.  A backward pass
through the network costs about two evaluations.

x̂0 and A act on each example alone: A maps [b, ...] to [b, ...].  At alpha = 0 nothing is added.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.guidance.moves import move_score
from diffusion_jax.core.guidance.weights import Weight, weight_at
from diffusion_jax.core.types import Denoise, NoiseLevel, Prediction, like

Forward = Callable[[Array], Array]
"""The operator A: x0 [b, ...] -> its measurement, [b, ...] of any shape."""

# Keeps a variance of 0 (no measurement noise, at a level without noise) from dividing 0 by 0.
_SMALLEST_VARIANCE = 1e-20


def reconstruction(
    denoise: Denoise, forward: Forward, measurement: Array, variance: Weight, scale: Weight = 1.0
) -> Denoise:
    """score + scale·∇ log N(y; A(x̂0), variance·I) = score - scale·∇|y - A(x̂0)|²/(2·variance).

    The variance says which method this is: a constant, that of the measurement's noise, is DPS's
    likelihood (Chung et al. 2023, section 3); ``ho_variance`` is reconstruction guidance; noise² +
    ``unit_variance`` is pseudo-inverse guidance for A with A Aᵀ = I (Song et al. 2023).

    Args:
        denoise: the model, guided or not.
        forward: A, differentiable.
        measurement: y, of the shape of A(x0).
        variance: of y given x_t, > 0.
        scale: 1 is Bayes' rule.
    """

    def guided(x: Array, level: NoiseLevel) -> Prediction:
        measured, pull, prediction = _look(denoise, forward, x, level)
        residual = measurement - measured
        v = jnp.maximum(weight_at(variance, level, x), _SMALLEST_VARIANCE)
        (gradient,) = pull(residual / like(v, residual))
        change = like(weight_at(scale, level, x), x) * gradient
        return move_score(prediction, change, level)

    return guided


def ho_variance(level: NoiseLevel) -> Array:
    """sigma²/alpha²: with it, x0 - scale·(alpha/2)·∇|y - A(x̂0)|² (Ho et al. 2022, §3.1)."""
    return jnp.exp(-level.log_snr)


def unit_variance(level: NoiseLevel) -> Array:
    """sigma²/(alpha² + sigma²): Var[x0 | x_t] of N(0, 1) data (Song et al. 2023)."""
    return jax.nn.sigmoid(-level.log_snr)


def dps(denoise: Denoise, forward: Forward, measurement: Array, scale: Weight) -> Denoise:
    """score - scale·∇|y - A(x̂0)|: DPS's step, of one length whatever the residual.

    Chung et al. 2023, algorithm 1 with ζ_i proportional to 1/|y - A(x̂0)|, takes it off x after the
    solver's step; here it is part of the score, so that any solver and grid will do.

    Args:
        denoise, forward, measurement: as in ``reconstruction``.
        scale: length of the step in the score.
    """

    def guided(x: Array, level: NoiseLevel) -> Prediction:
        measured, pull, prediction = _look(denoise, forward, x, level)
        residual = measurement - measured
        norm = jnp.sqrt(_inner(residual, residual))
        (gradient,) = pull(residual / like(jnp.where(norm > 0, norm, 1.0), residual))
        change = like(weight_at(scale, level, x), x) * gradient
        return move_score(prediction, change, level)

    return guided


def pseudo_inverse(
    denoise: Denoise,
    forward: Forward,
    inverse: Forward,
    measurement: Array,
    scale: Weight = 1.0,
    variance: Weight = unit_variance,
) -> Denoise:
    """score + scale·Jᵀ(A⁺(y) - A⁺(A(x̂0)))/variance, y without noise (Song et al. 2023).

    A itself is not differentiated: it may be a JPEG or a quantiser.

    Args:
        denoise, forward, measurement: as in ``reconstruction``.
        inverse: A⁺, from measurements to x0's shape, with A(A⁺(A(x0))) = A(x0).
        scale: 1 is Bayes' rule.
        variance: of x0 given x_t, the paper's r_t².
    """

    def guided(x: Array, level: NoiseLevel) -> Prediction:
        x0, pull, prediction = _look(denoise, lambda x0: x0, x, level)
        v = jnp.maximum(weight_at(variance, level, x), _SMALLEST_VARIANCE)
        (gradient,) = pull((inverse(measurement) - inverse(forward(x0))) / like(v, x))
        change = like(weight_at(scale, level, x), x) * gradient
        return move_score(prediction, change, level)

    return guided


def moment_matching(
    denoise: Denoise,
    forward: Forward,
    measurement: Array,
    noise: float | Array,
    iterations: int = 8,
) -> Denoise:
    """score + Jᵀ Aᵀ (noise²·I + A V Aᵀ)⁻¹ (y - A(x̂0)) (Rozet et al. 2024, section 4).

    V = Cov[x0 | x_t] = (sigma²/alpha)·J, by Tweedie, so that (1) has the right first two moments:
    exact for Gaussian data and linear A.  The inverse is applied by conjugate gradients, each with
    one backward pass through the network; an A that is not linear is linearised at x̂0.

    Args:
        denoise: the model; its J should be symmetric and not negative, as an exact one's is (that
            of strong classifier-free guidance need not be).
        forward: A, differentiable.
        measurement: y, of the shape of A(x0).
        noise: standard deviation of y's noise, []; may be traced.
        iterations: of conjugate gradients; as many as y has numbers are exact, a few are enough.
    """

    def guided(x: Array, level: NoiseLevel) -> Prediction:
        x0, pull, prediction = _look(denoise, lambda x0: x0, x, level)
        measured, push = jax.linearize(forward, x0)
        transpose = jax.linear_transpose(push, x0)
        some = level.alpha > 0
        factor = jnp.where(some, level.sigma**2 / jnp.where(some, level.alpha, 1.0), 0.0)

        def back(u: Array) -> Array:
            return pull(transpose(u)[0])[0]

        def covariance(u: Array) -> Array:
            return noise**2 * u + push(like(factor, x) * back(u))

        solved = _conjugate_gradients(covariance, measurement - measured, iterations)
        return move_score(prediction, back(solved), level)

    return guided


def _look(denoise: Denoise, forward: Forward, x: Array, level: NoiseLevel):
    """(A(x̂0), the pull-back from there to x, the prediction): one evaluation."""

    def measured(x: Array) -> tuple[Array, Prediction]:
        prediction = denoise(x, level)
        return forward(prediction.x0), prediction

    return jax.vjp(measured, x, has_aux=True)


def _conjugate_gradients(apply: Forward, b: Array, iterations: int) -> Array:
    """Solve apply(u) = b, each example by itself; apply is symmetric and not negative."""
    divide = lambda a, c: jnp.where(c > 0, a / jnp.where(c > 0, c, 1.0), 0.0)

    def body(_, state):
        u, r, p, size = state
        image = apply(p)
        step = like(divide(size, _inner(p, image)), b)
        u, r = u + step * p, r - step * image
        after = _inner(r, r)
        return u, r, r + like(divide(after, size), b) * p, after

    start = (jnp.zeros_like(b), b, b, _inner(b, b))
    return jax.lax.fori_loop(0, iterations, body, start)[0]


def _inner(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, tuple(range(1, a.ndim)))
