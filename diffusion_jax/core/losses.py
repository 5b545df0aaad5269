"""Losses of one example at one level, before weighting and averaging over the batch.

The training loss of diffusion is clean regression: no adversary, no reconstruction term.

    draw x0, t, eps;  x = alpha·x0 + sigma·eps;  L = w(level)·‖net(x) - F‖²,  F = p·x0 + q·eps

The variational terms at the end of the file train a learned variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.process import clean, posterior
from diffusion_jax.core.solvers.ancestral import LogVariance
from diffusion_jax.core.targets import express
from diffusion_jax.core.types import NoiseLevel, Prediction, Target, like


def mean_per_example(x: Float[Array, "b ..."]) -> Float[Array, "b"]:
    """The mean over all axes but the first."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def regression(
    target: Target,
    out: Float[Array, "b ..."],
    x0: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    level: NoiseLevel,
) -> Float[Array, "b"]:
    """Mean squared error to F = p·x0 + q·eps (Ho et al. 2020, eq. 14, for the target eps).

    Args:
        target: what the network predicts.
        out: its output, [b, ..., c or more]; channels beyond those of x0 are ignored.
        x0: clean data.
        eps: the noise that was added.
        level: [b].
    """
    return mean_per_example((out[..., : x0.shape[-1]] - express(target, x0, eps, level)) ** 2)


Distance = Callable[[Array, Array], Array]
"""Two arrays [b, ...] -> [b], 0 where they are equal."""


def squared() -> Distance:
    """The mean squared difference."""
    return lambda a, b: mean_per_example((a - b) ** 2)


def absolute() -> Distance:
    """The mean absolute difference, ℓ1 of Song et al. 2023, section 6.1.

    Its gradient does not fade with the error, so faint grain on a uniform background is removed
    too; and its minimum is a median, which one-sided errors, as of a clipped target, do not move.
    """
    return lambda a, b: mean_per_example(jnp.abs(a - b))


def pseudo_huber(c: float | None = None) -> Distance:
    """sqrt(‖a - b‖² + c²) - c (Song & Dhariwal 2024, section 3.3).

    Written as ‖a - b‖²/(sqrt(‖a - b‖² + c²) + c), which is precise near 0; c = 0 is the plain
    norm, with gradient 0 where a = b.

    Args:
        c: where it turns from a square into a norm; None for 0.00054·sqrt(number of dimensions).
    """

    def distance(a: Array, b: Array) -> Array:
        square = jnp.sum((a - b) ** 2, axis=tuple(range(1, a.ndim)))
        constant = 0.00054 * math.sqrt(math.prod(a.shape[1:])) if c is None else c
        total = square + constant**2
        return square / (jnp.sqrt(jnp.where(total > 0, total, 1.0)) + constant)

    return distance


def adaptive(power: float = 1.0, c: float = 0.01) -> Distance:
    """‖a - b‖²/stopgrad(‖a - b‖² + c)^p (Geng et al. 2024 and 2025, equation 22).

    For p = 1 the gradient has a squared norm's direction and a size that hardly depends on the
    norm; for p = 1/2 it is that of a norm.

    Args:
        power: p; 0 is the plain square, summed.
        c: keeps the weight finite where a = b.
    """

    def distance(a: Array, b: Array) -> Array:
        square = jnp.sum((a - b) ** 2, axis=tuple(range(1, a.ndim)))
        return square / jax.lax.stop_gradient(square + c) ** power

    return distance


def normal_kl(mean_q: Array, log_var_q: Array, mean_p: Array, log_var_p: Array) -> Array:
    """KL(N(mean_q, e^log_var_q) || N(mean_p, e^log_var_p)) per element, nats; broadcasts."""
    ratio = log_var_q - log_var_p
    return 0.5 * (jnp.expm1(ratio) - ratio + (mean_q - mean_p) ** 2 * jnp.exp(-log_var_p))


def discretised_log_likelihood(x: Array, mean: Array, log_var: Array, bins: int = 256) -> Array:
    """log of the Gaussian mass of x's bin, per element, nats (Ho et al. 2020, eq. 13).

    Args:
        x: data in [-1, 1] on a grid of ``bins`` values (8-bit pixels).
        mean: mean of the Gaussian, broadcastable to x.
        log_var: log of its variance, broadcastable to x.
        bins: number of values; the outermost bins reach to ∓infinity.
    """
    half = 1 / (bins - 1)
    scale = jnp.exp(-0.5 * log_var)
    lower, upper = (x - mean - half) * scale, (x - mean + half) * scale
    # Mirror into the left tail, where the difference of log cdfs is precise.
    flip = lower + upper > 0
    low, high = jnp.where(flip, -upper, lower), jnp.where(flip, -lower, upper)
    log_low, log_high = jax.scipy.stats.norm.logcdf(low), jax.scipy.stats.norm.logcdf(high)
    inner = log_high + jnp.log(-jnp.expm1(jnp.minimum(log_low - log_high, -1e-7)))
    first = jax.scipy.stats.norm.logcdf(upper)
    last = jax.scipy.stats.norm.logcdf(-lower)
    return jnp.where(x <= -1 + half, first, jnp.where(x >= 1 - half, last, inner))


def kl_term(
    x0: Float[Array, "b ..."],
    x: Float[Array, "b ..."],
    prediction: Prediction,
    now: NoiseLevel,
    nxt: NoiseLevel,
    variance: LogVariance,
) -> Float[Array, "b"]:
    """KL(q(x_s | x_t, x0) || p(x_s | x_t)), nats per dimension (Ho et al. 2020, eq. 5).

    Args:
        x0: clean data.
        x: x_t.
        prediction: the model's prediction at (x, now).
        now, nxt: levels of t and s, [b] or []; where nxt is clean the result is finite but
            meaningless.
        variance: log variance of p, one of ``solvers.ancestral.VARIANCES``.
    """
    mean_p, _ = posterior(x, prediction.x0, now, nxt)
    mean_q, var_q = posterior(x, x0, now, nxt)
    log_var_q = jnp.log(jnp.where(nxt.sigma > 0, var_q, 1.0))
    log_var_p = like(variance(now, nxt, prediction), x)
    return mean_per_example(normal_kl(mean_q, like(log_var_q, x), mean_p, log_var_p))


def decoder_term(
    x0: Float[Array, "b ..."],
    prediction: Prediction,
    now: NoiseLevel,
    variance: LogVariance,
    decoder: Callable[[Array, Array, Array], Array] = discretised_log_likelihood,
    before: NoiseLevel | None = None,
) -> Float[Array, "b"]:
    """-log p(x0 | x_t) of the step to the clean level, nats per dimension.

    Args:
        x0: clean data in [-1, 1].
        prediction: the model's prediction at level ``now``; its x0 is the mean.
        now: level of t, [b] or [].
        variance: log variance of p, one of ``solvers.ancestral.VARIANCES``.
        decoder: (x0, mean, log variance) -> log-likelihood per element, nats.
        before: the level before ``now`` on the grid, see ``solvers.ancestral``; None without one.
    """
    log_var = like(variance(now, clean(now), prediction, before), x0)
    return -mean_per_example(decoder(x0, prediction.x0, log_var))


def variational_term(
    x0: Float[Array, "b ..."],
    x: Float[Array, "b ..."],
    prediction: Prediction,
    now: NoiseLevel,
    nxt: NoiseLevel,
    variance: LogVariance,
    before: NoiseLevel | None = None,
) -> Float[Array, "b"]:
    """Any step of the bound: ``decoder_term`` where ``nxt`` is clean, else ``kl_term``."""
    kl = kl_term(x0, x, prediction, now, nxt, variance)
    decoder = decoder_term(x0, prediction, now, variance, before=before)
    return jnp.where(nxt.sigma == 0, decoder, kl)


DISTANCES: dict[str, Callable[..., Distance]] = {
    "squared": squared,
    "absolute": absolute,
    "pseudo_huber": pseudo_huber,
    "adaptive": adaptive,
}
