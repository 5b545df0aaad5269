"""Building blocks of solver steps.

With l = λ/2 = log(alpha/sigma) and a prediction (x0, eps) at ``now``, the probability flow moves x
to ``nxt`` exactly, if the prediction is constant, to

    follow = alpha_s·x0 + sigma_s·eps.                                                        (1)

A method of higher order adds a small multiple of the *change* of the prediction, never a multiple
of x itself.  In this form nothing divides by alpha, every method starts from pure noise (alpha = 0,
where no finite step in l exists) as its first-order version, and all methods agree where the
denoiser is constant.

Exponential integrators have two forms, by the quantity that is polynomial in l over a step
of size h = l_s - l_t (Lu et al. 2022a, eq. 3.4; Lu et al. 2022b, eq. 8):

    eps:  x_s/alpha_s = x_t/alpha_t - ∫ exp(-l)·eps dl
    x0:   x_s/sigma_s = x_t/sigma_t + ∫ exp(l)·x0 dl

With the value D and its derivatives in l taken at ``now``, the integral from there to ``nxt`` is
∓scale·(h·φ_1·D + h·φ_2·(h·D') + h·φ_3·(h²·D'') + ...), φ_k = φ_k(±h), scale = sigma_s or alpha_s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.process import Process
from diffusion_jax.core.types import NoiseLevel, Prediction, like


def follow(prediction: Prediction, nxt: NoiseLevel) -> Array:
    """Equation (1)."""
    x0, eps = prediction.x0, prediction.eps
    return like(nxt.alpha, x0) * x0 + like(nxt.sigma, x0) * eps


def one_level(name: str, level: NoiseLevel) -> None:
    """Refuse levels of their own for examples, frames or pixels, where a solver takes one way.

    Raises:
        ValueError: unless the level is of shape [].
    """
    if level.log_snr.ndim:
        raise ValueError(
            f"{name} needs one level for the whole batch, got levels of shape "
            f"{level.log_snr.shape}: take a solver such as ddim, heun or dpmpp_2m"
        )


def log_step(now: NoiseLevel, nxt: NoiseLevel) -> Array:
    """h = l_s - l_t; infinite from pure noise or to clean data, 0 between equal levels."""
    return jnp.where(now.log_snr == nxt.log_snr, 0.0, (nxt.log_snr - now.log_snr) / 2)


def finite(c: Array) -> Array:
    """c, or 0 where it is not finite: an infinite step has no correction."""
    return jnp.where(jnp.isfinite(c), c, 0.0)


def eps_factor(now: NoiseLevel, nxt: NoiseLevel) -> Array:
    """alpha_s·(s_s - s_t), s = sigma/alpha: the factor of a change of eps over the step in x."""
    return finite(nxt.sigma - nxt.alpha * (now.sigma / now.alpha))


def between(process: Process, now: NoiseLevel, nxt: NoiseLevel, share: float | Array) -> NoiseLevel:
    """The level at a share of the step to ``nxt`` in log-SNR; ``nxt`` if that is infinite."""
    middle = now.log_snr + share * (nxt.log_snr - now.log_snr)
    return process.at_log_snr(jnp.where(jnp.isfinite(middle), middle, nxt.log_snr))


Terms = tuple[Array, Array, Array]


class Form(NamedTuple):
    """The eps or the x0 form of an exponential integrator.

    Attributes:
        value: prediction -> the quantity that is polynomial.
        terms: (h, level) -> factors of D, h·D' and h²·D'' in x at ``level``, after
            a step of h to it.
        kernel: (l - l_s, level) -> weight of the value at l in x at ``level``.
    """

    value: Callable[[Prediction], Array]
    terms: Callable[[Array, NoiseLevel], Terms]
    kernel: Callable[[Array, NoiseLevel], Array]


def _eps_terms(h: Array, level: NoiseLevel) -> Terms:
    first, second, third = (finite(-level.sigma * h * phi) for phi in phis(h))
    return first, second, third


def _x0_terms(h: Array, level: NoiseLevel) -> Terms:
    first, second, third = (finite(level.alpha * h * phi) for phi in phis(-h))
    return first, second, third


def phis(z: Array) -> Terms:
    """φ_1, φ_2, φ_3 of exponential integrators: φ_1 = (e^z - 1)/z, φ_{k+1} = (φ_k - 1/k!)/z.

    By their series where |z| < 0.5, where the recurrence would cancel.
    """
    small = jnp.abs(z) < 0.5
    safe = jnp.where(small, 1.0, z)
    first = jnp.expm1(safe) / safe
    second = (first - 1) / safe
    third = (second - 0.5) / safe
    near = jnp.where(small, z, 0.0)
    first, second, third = (
        jnp.where(small, _series(near, k), phi) for k, phi in enumerate((first, second, third), 1)
    )
    return first, second, third


def _series(z: Array, k: int, terms: int = 14) -> Array:
    """φ_k(z) = Σ_j z^j/(j + k)!, by Horner's rule."""
    total = jnp.zeros_like(z)
    factorial = [1.0]
    for n in range(1, terms + k):
        factorial.append(factorial[-1] * n)
    for j in reversed(range(terms)):
        total = total * z + 1 / factorial[j + k]
    return total


EPS = Form(
    lambda prediction: prediction.eps,
    _eps_terms,
    lambda offset, level: -level.sigma * jnp.exp(-offset),
)
X0 = Form(
    lambda prediction: prediction.x0,
    _x0_terms,
    lambda offset, level: level.alpha * jnp.exp(offset),
)
FORMS: dict[str, Form] = {"eps": EPS, "x0": X0}
