"""Likelihood by the discrete variational bound, term by term, in bits per dimension.

For levels T, ..., 1 of a grid and x_t ~ q(x_t | x0) (Ho et al. 2020, eq. 5; Sohl-Dickstein et al.
2015),

    -log p(x0) <= KL(q(x_T | x0) || p(x_T)) + Σ_t KL(q(x_s | x_t, x0) || p(x_s | x_t))
                  - log p(x0 | x_1),                                                           (1)

the prior, one KL for each step t -> s of the grid, and the decoder.  Any grid gives a valid bound;
that of the sampler, with all T levels, gives the model's.

Nats become bits per dimension by 1/(D log 2).  For 8-bit data with the discretised decoder they are
bits of lossless code per channel of a pixel.  With a density as decoder they are -log2 p(x0)/D in
the units of x0, and may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.core import step_draws
from diffusion_jax.core.losses import (
    decoder_term,
    discretised_log_likelihood,
    kl_term,
    mean_per_example,
    normal_kl,
)
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.sampling import pairs
from diffusion_jax.core.solvers.ancestral import LogVariance, fixed_small
from diffusion_jax.core.types import Denoise, NoiseLevel

Decoder = Callable[[Array, Array, Array], Array]
"""(x0, mean, log variance) -> log p(x0 | x_1) per element, nats."""


class Bound(NamedTuple):
    """The terms of (1), bits per dimension; total is the sum of the others.

    Attributes:
        total: [b].
        prior: [b], information of x_T about x0.
        steps: [T - 1, b], the KL of each step of the grid, noisiest first (of ``estimate_bound``:
            [n, b], drawn terms, each over the chance of its draw).
        decoder: [b].
    """

    total: Float[Array, "b"]
    prior: Float[Array, "b"]
    steps: Float[Array, "n b"]
    decoder: Float[Array, "b"]


def variational_bound(
    key: Key[Array, ""],
    denoise: Denoise,
    x0: Float[Array, "b ..."],
    levels: NoiseLevel,
    variance: LogVariance = fixed_small,
    decoder: Decoder = discretised_log_likelihood,
) -> Bound:
    """All terms of (1), with one draw of x_t and one network evaluation for each of T levels.

    Args:
        key: for the noise.
        denoise: the conditioned model.
        x0: data; 8-bit data in [-1, 1] for the discretised decoder.
        levels: [T], noisiest first, sigma > 0, such as ``grids.trailing(process, T)``.
        variance: log variance of p(x_s | x_t), as the sampler's: ``solvers.ancestral.VARIANCES``.
        decoder: the last step's log-likelihood: ``discretised_log_likelihood`` or
            ``gaussian_log_likelihood``.
    """
    steps_key, decoder_key = jax.random.split(key)
    now, nxt, _ = pairs(levels)
    keys = jax.random.split(steps_key, now.t.shape[0])

    def body(_, inputs):
        key, now, nxt = inputs
        return None, _step_kl(key, now, nxt, denoise, x0, variance)

    _, steps = jax.lax.scan(body, None, (keys, now, nxt))
    final = _decoder_term(decoder_key, levels, denoise, x0, variance, decoder)
    return _bound(prior_kl(x0, levels), steps, final)


def estimate_bound(
    key: Key[Array, ""],
    denoise: Denoise,
    x0: Float[Array, "b ..."],
    levels: NoiseLevel,
    n: int,
    variance: LogVariance = fixed_small,
    decoder: Decoder = discretised_log_likelihood,
) -> Bound:
    """An unbiased estimate of ``variational_bound`` by n + 1 network evaluations in place of T.

    Each example takes n distinct steps, with probabilities by their likely size
    (``step_draws.chances``); prior and decoder are always included.  Examples draw
    independently, so ``standard_error(total)`` covers the draw too.

    Args:
        n: steps taken per example, >= 1; from T - 1 on it is ``variational_bound`` itself.

    Raises:
        ValueError: if n < 1, or levels has no step.
    """
    now, nxt, _ = pairs(levels)
    count = now.t.shape[0]
    if n < 1 or count < 1:
        raise ValueError(f"n = {n} terms of {count} steps: the estimate needs at least 1 of each")
    if n >= count:
        return variational_bound(key, denoise, x0, levels, variance, decoder)
    index_key, steps_key, decoder_key = jax.random.split(key, 3)
    chances = step_draws.chances(now, nxt, n)
    index = step_draws.systematic(jax.random.uniform(index_key, x0.shape[:1]), chances, n)

    def body(_, inputs):
        key, i = inputs
        now_i, nxt_i = (jax.tree.map(lambda leaf: leaf[i], level) for level in (now, nxt))
        return None, _step_kl(key, now_i, nxt_i, denoise, x0, variance) / chances[i]

    _, steps = jax.lax.scan(body, None, (jax.random.split(steps_key, n), index))
    final = _decoder_term(decoder_key, levels, denoise, x0, variance, decoder)
    return _bound(prior_kl(x0, levels), steps, final)


def prior_kl(x0: Float[Array, "b ..."], levels: NoiseLevel) -> Float[Array, "b"]:
    """KL(q(x_T | x0) || N(0, alpha_T² + sigma_T²)), nats per dimension.

    That prior is what ``sampling.prior`` draws from: N(0, I) on the variance preserving path.
    """
    alpha, sigma = levels.alpha[0], levels.sigma[0]
    return mean_per_example(
        normal_kl(alpha * x0, 2 * jnp.log(sigma), jnp.zeros(()), jnp.log(alpha**2 + sigma**2))
    )


def gaussian_log_likelihood(x0: Array, mean: Array, log_var: Array) -> Array:
    """log N(x0; mean, e^log_var) per element, nats: the decoder of continuous data."""
    return -0.5 * ((x0 - mean) ** 2 * jnp.exp(-log_var) + log_var + math.log(2 * math.pi))


def standard_error(values: Float[Array, "b"]) -> Float[Array, ""]:
    """Standard error of the mean of b independent values: sample std / sqrt(b); NaN if b is 1."""
    return jnp.std(values, ddof=1) / math.sqrt(len(values))


def _step_kl(key, now, nxt, denoise, x0, variance) -> Array:
    x = corrupt(x0, jax.random.normal(key, x0.shape, x0.dtype), now)
    return kl_term(x0, x, denoise(x, now), now, nxt, variance)


def _decoder_term(key, levels, denoise, x0, variance, decoder) -> Array:
    last, before = pairs(levels)[2], before_last(levels)
    x = corrupt(x0, jax.random.normal(key, x0.shape, x0.dtype), last)
    return decoder_term(x0, denoise(x, last), last, variance, decoder, before)


def before_last(levels: NoiseLevel) -> NoiseLevel | None:
    """The last level but one, which the variance of the step to the clean one reads."""
    return jax.tree.map(lambda leaf: leaf[-2], levels) if levels.t.shape[0] > 1 else None


def _bound(prior: Array, steps: Array, decoder: Array) -> Bound:
    prior, steps, decoder = (term / math.log(2) for term in (prior, steps, decoder))
    return Bound(prior + steps.sum(0) + decoder, prior, steps, decoder)


DECODERS: dict[str, Decoder] = {
    "discretised": discretised_log_likelihood,
    "gaussian": gaussian_log_likelihood,
}
