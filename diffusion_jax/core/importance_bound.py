"""The importance-weighted bound over whole noisings (Burda et al. 2016, applied to Ho et al. 2020).

With x_T, ..., x_1 ~ q(· | x0), drawn backwards by x_s ~ q(x_s | x_t, x0), the weight

    w = p(x_T)·Π p(x_s | x_t)·p(x0 | x_1) / (q(x_T | x0)·Π q(x_s | x_t, x0))                  (1)

has mean p(x0), and k draws of it give -log p(x0) <= E[-log (1/k)·Σ_i w_i] (Burda et al. 2016, eq.
8), which falls with k towards -log p(x0), that of the model at these levels.  For k = 1 it is the
discrete bound of ``likelihood`` with each KL replaced by one draw of its log-ratio.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.core.likelihood import Decoder, before_last
from diffusion_jax.core.losses import decoder_term, discretised_log_likelihood, mean_per_example
from diffusion_jax.core.process import corrupt, posterior
from diffusion_jax.core.sampling import pairs
from diffusion_jax.core.solvers.ancestral import LogVariance, fixed_small
from diffusion_jax.core.types import Denoise, NoiseLevel, like


class ImportanceBound(NamedTuple):
    """Bits per dimension.

    Attributes:
        total: [b], the sum of the others.
        single: [b], the mean of -log2 w_i/D: the bound of one draw.
        gain: [b] <= 0, improvement by k draws together.
    """

    total: Float[Array, "b"]
    single: Float[Array, "b"]
    gain: Float[Array, "b"]


def importance_weighted_bound(
    key: Key[Array, ""],
    denoise: Denoise,
    x0: Float[Array, "b ..."],
    levels: NoiseLevel,
    k: int,
    variance: LogVariance = fixed_small,
    decoder: Decoder = discretised_log_likelihood,
) -> ImportanceBound:
    """The bound from k·T network evaluations.

    Args:
        key: for the noise.
        denoise: the conditioned model.
        x0: data; 8-bit data in [-1, 1] for the discretised decoder.
        levels: [T], noisiest first, sigma > 0.
        k: draws for each example, >= 1.
        variance: log variance of p(x_s | x_t); where data are not one point, ``fixed_large`` has
            the wider tails, and weights of smaller spread.
        decoder: the last step's log-likelihood.

    Raises:
        ValueError: if k < 1.
    """
    if k < 1:
        raise ValueError(f"k = {k} draws of the importance-weighted bound: it needs at least 1")
    nats = math.log(2) * math.prod(x0.shape[1:])
    one = lambda key: _log_weight(key, denoise, x0, levels, variance, decoder)
    log_weight = jax.lax.map(one, jax.random.split(key, k))
    total = -(jax.nn.logsumexp(log_weight, axis=0) - math.log(k)) / nats
    single = -log_weight.mean(0) / nats
    return ImportanceBound(total, single, total - single)


def _log_weight(key, denoise, x0, levels, variance, decoder) -> Array:
    """log of (1), nats, [b]."""
    first_key, steps_key = jax.random.split(key)
    now, nxt, last = pairs(levels)
    draw = lambda key: jax.random.normal(key, x0.shape, x0.dtype)
    eps = draw(first_key)
    first = jax.tree.map(lambda leaf: leaf[0], levels)
    x = corrupt(x0, eps, first)
    start = _log_ratio(x, eps, jnp.log(first.alpha**2 + first.sigma**2), 2 * jnp.log(first.sigma))

    def body(carry, inputs):
        (x, total), (key, now, nxt) = carry, inputs
        eps = draw(key)
        mean, var = posterior(x, x0, now, nxt)
        prediction = denoise(x, now)
        mean_p, _ = posterior(x, prediction.x0, now, nxt)
        moved = mean + like(jnp.sqrt(var), x) * eps
        log_var = like(variance(now, nxt, prediction), x)
        step = _log_ratio(moved - mean_p, eps, log_var, jnp.log(var))
        return (moved.astype(x.dtype), total + step), None

    inputs = (jax.random.split(steps_key, now.t.shape[0]), now, nxt)
    (x, total), _ = jax.lax.scan(body, (x, start), inputs)
    prediction, before = denoise(x, last), before_last(levels)
    total = total - decoder_term(x0, prediction, last, variance, decoder, before)
    return total * math.prod(x0.shape[1:])


def _log_ratio(error: Array, eps: Array, log_var_p: Array, log_var_q: Array) -> Array:
    """log N(error; 0, p's variance) - log N(q's std·eps; 0, q's variance), nats per dimension."""
    log_p = -0.5 * (error**2 * jnp.exp(-log_var_p) + log_var_p)
    return mean_per_example(log_p + 0.5 * (eps**2 + log_var_q))
