"""From a density of real numbers to the probability of 8-bit data.

Data x on a grid of ``bins`` values in [-1, 1], w = 2/(bins - 1) apart, is spread within its bin to
x̃ = x + w·(u - ½), u ~ q(u | x) in [0, 1).  For any q (Theis et al. 2016; Ho et al. 2019)

    -log P(x) = -log ∫_bin p(x̃) dx̃ <= E_q[-log p(x̃) + log q(x̃ | x)],                         (1)

which is tight where q ∝ p within the bin.  For uniform q, log q = -log w for each dimension: the
log2(127.5) bits/dim between densities on [-1, 1] and bits of 8-bit pixels.  With k draws
(Burda et al. 2016, eq. 8)

    -log P(x) <= E[-log (1/k)·Σ_i p(x̃_i)/q(x̃_i | x)],                                         (2)

which falls with k towards -log P(x).

The first two kinds of q are fixed; ``logistic_normal`` has parameters, from a network or free for
each image, which are trained on (1) (``objective``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.core.losses import mean_per_example

Dequantiser = Callable[[Array, Array], tuple[Array, Array]]
"""(key, x [b, ...]) -> (x̃ of x's shape, log q(x̃ | x) [b] in nats per dimension)."""

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Dequantised(NamedTuple):
    """-log2 P(x)/D and its parts, bits per dimension.

    Attributes:
        total: [b], their sum, bounding -log2 P(x)/D from above in expectation.
        density: [b], the mean of -log2 p(x̃_i)/D over draws.
        dequantisation: [b], the mean of log2 q(x̃_i | x)/D.
        gain: [b] <= 0, improvement of the k draws of (2) over the mean of (1); 0 for k = 1.
    """

    total: Float[Array, "b"]
    density: Float[Array, "b"]
    dequantisation: Float[Array, "b"]
    gain: Float[Array, "b"]


def width(bins: int = 256) -> float:
    """The width of a bin, in units of data in [-1, 1].

    Raises:
        ValueError: if bins < 2.
    """
    if bins < 2:
        raise ValueError(f"bins = {bins} must be at least 2, the values -1 and 1")
    return 2 / (bins - 1)


def uniform(bins: int = 256) -> Dequantiser:
    """u ~ U[0, 1) (Theis et al. 2016, section 3.1)."""
    w = width(bins)

    def spread(key, x):
        u = jax.random.uniform(key, x.shape, x.dtype)
        return x + w * (u - 0.5), jnp.full(x.shape[:1], -math.log(w), x.dtype)

    return spread


def truncated_normal(std: Float[Array, ""] | float, bins: int = 256) -> Dequantiser:
    """x̃ - x ~ N(0, std²) cut off at the ends of the bin (Zheng et al. 2023, section 4.1).

    With std = sigma/alpha of the level where the flow starts, x̃ is distributed almost as the noised
    data that the network was trained on at that level; the paper starts where a bin reaches to
    3 standard deviations, log-SNR = 13.3 for 8-bit data.

    Args:
        std: > 0, traced.
        bins: values in [-1, 1].
    """
    half = width(bins) / 2

    def spread(key, x):
        scale = jnp.asarray(std, x.dtype)
        reach = half / scale
        # A flat q where the bin is too narrow for differences of the cdf.
        reach = jnp.maximum(reach, 1e-3)
        e = jax.random.truncated_normal(key, -reach, reach, x.shape, x.dtype)
        log_mass = jnp.log(jax.scipy.special.erf(reach / math.sqrt(2)))
        log_q = -0.5 * e**2 - _HALF_LOG_2PI - log_mass - jnp.log(half / reach)
        return x + e * half / reach, mean_per_example(log_q)

    return spread


def logistic_normal(
    mean: Float[Array, "*x"], log_std: Float[Array, "*x"], bins: int = 256
) -> Dequantiser:
    """u = sigmoid(mean + std·e), e ~ N(0, 1): a shape within the bin for each element of x.

    log q(u) = log N(e; 0, 1) - log std - log u - log(1 - u).

    Args:
        mean, log_std: broadcastable to x.
        bins: values in [-1, 1].
    """
    w = width(bins)

    def spread(key, x):
        e = jax.random.normal(key, x.shape, x.dtype)
        logit = mean + jnp.exp(log_std) * e
        log_slope = jax.nn.log_sigmoid(logit) + jax.nn.log_sigmoid(-logit)
        log_q = -0.5 * e**2 - _HALF_LOG_2PI - log_std - log_slope - math.log(w)
        return x + w * (jax.nn.sigmoid(logit) - 0.5), mean_per_example(log_q)

    return spread


def variational(
    apply: Callable[[Any, Array], tuple[Array, Array]], params: Any, bins: int = 256
) -> Dequantiser:
    """``logistic_normal`` with a network's (mean, log_std) of x (Ho et al. 2019, "Flow++").

    Args:
        apply: (params, x) -> (mean, log_std), each of x's shape.
        params: trained by ``objective``.
        bins: values in [-1, 1].
    """
    return lambda key, x: logistic_normal(*apply(params, x), bins)(key, x)


def objective(
    key: Key[Array, ""],
    dequantiser: Dequantiser,
    x: Float[Array, "b ..."],
    bits: Callable[[Array, Array], Array],
) -> Float[Array, "b"]:
    """One draw of (1), bits per dimension: differentiable in the dequantiser's parameters.

    Args:
        key: for x̃ and for ``bits``.
        dequantiser: q.
        x: on the grid.
        bits: (key, x̃) -> -log2 p(x̃)/D or an upper bound of it, [b], differentiable in x̃.
    """
    noise_key, density_key = jax.random.split(key)
    spread, log_q = dequantiser(noise_key, x)
    return bits(density_key, spread) + log_q / math.log(2)


def bound(
    key: Key[Array, ""],
    dequantiser: Dequantiser,
    x: Float[Array, "b ..."],
    bits: Callable[[Array, Array], Array],
    k: int = 1,
) -> Dequantised:
    """(1), or (2) for k > 1 draws, one after the other.

    Args:
        key: for x̃ and for ``bits``.
        dequantiser: q.
        x: on the grid.
        bits: (key, x̃) -> -log2 p(x̃)/D, [b].  It gets the same key for all draws: an estimate whose
            error does not depend on x̃ within the bin (Hutchinson's probes, nearly) then comes out
            of the logarithm of (2), where an independent error would bias it downwards.
        k: draws for each example, >= 1.

    Raises:
        ValueError: if k < 1.
    """
    if k < 1:
        raise ValueError(f"k = {k} draws within a bin: it needs at least 1")
    noise_key, density_key = jax.random.split(key)
    size = math.prod(x.shape[1:])

    def one(key):
        spread, log_q = dequantiser(key, x)
        return bits(density_key, spread), log_q / math.log(2)

    density, log_q = jax.lax.map(one, jax.random.split(noise_key, k))
    log_weight = -(density + log_q) * (size * math.log(2))
    total = -(jax.nn.logsumexp(log_weight, axis=0) - math.log(k)) / (size * math.log(2))
    density, log_q = density.mean(0), log_q.mean(0)
    return Dequantised(total, density, log_q, total - density - log_q)
