"""Sampling of a grid's steps for estimates of a sum over them, and its probabilities.

Terms of the discrete bound differ by orders of magnitude: on a cosine schedule of 1000 levels the
last three steps of 999 hold half of a digit's bits, so n steps drawn uniformly mostly miss them and
n draws tell nothing of their own spread.  Here step i is taken with a known chance π_i, large where
its term is likely large, and counts by 1/π_i, which is unbiased for any π > 0 (Horvitz & Thompson
1952, "A generalization of sampling without replacement from a finite universe").
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.core.types import NoiseLevel


def stratified(key: Key[Array, ""], n: int, b: int, count: int) -> Int[Array, "n b"]:
    """For each of b examples one index of [0, count) from each of n equal parts.

    Row j is ⌊(j + u)·count/n⌋, u ~ U(0, 1), so the mean of f over rows has expectation
    Σ_i f(i)/count whether or not n divides count.
    """
    u = jax.random.uniform(key, (n, b))
    return jnp.minimum(((jnp.arange(n)[:, None] + u) * count / n).astype(int), count - 1)


def chances(now: NoiseLevel, nxt: NoiseLevel, n: int) -> Float[Array, "count"]:
    """π: the probability of each step t -> s to be among the n distinct ones of ``systematic``.

    π = min(1, c·q) with Σ π = n, and q, of the levels alone, a sum of three shares:

    * ½ in proportion to (SNR_s - SNR_t)/(1 + SNR_t), which is the KL of a step up to a factor
      (Kingma et al. 2021, eq. 14) where the error of x0 is what the best linear denoiser of white
      data of unit variance leaves;
    * ¼ in proportion to 1 - SNR_t/SNR_s, λ's step where that is small: an error of eps that does
      not vanish with the noise, as that of a network that predicts it;
    * ¼ uniform, so that no 1/π is above 4 times that of a uniform draw.

    Args:
        now, nxt: [count], the levels of t and of s; an infinite λ at the noisy end is fine.
        n: in [1, count].
    """
    # Two levels at λ = -inf are the same level: the difference is 0, not NaN.
    gap = jnp.where(now.log_snr == nxt.log_snr, 0.0, nxt.log_snr - now.log_snr)
    lost = jnp.maximum(-jnp.expm1(-gap), 0.0)
    linear = jnp.exp(nxt.log_snr + jax.nn.log_sigmoid(-now.log_snr)) * lost
    share = lambda x: x / jnp.maximum(x.sum(), jnp.finfo(x.dtype).tiny)
    q = 0.5 * share(linear) + 0.25 * share(lost) + 0.25 / lost.size
    # With the k largest at 1, c is (n - k) over the sum of the others.  For any k that is at most
    # the c of Σ min(1, c·q) = n, and for the right k it is that c: hence the largest.
    falling = jnp.sort(q, descending=True)
    others = jnp.cumsum(falling[::-1])[::-1][:n]
    return jnp.minimum(1.0, q * jnp.max((n - jnp.arange(n)) / others))


def systematic(u: Float[Array, "b"], chances: Float[Array, "count"], n: int) -> Int[Array, "n b"]:
    """For each of b offsets n distinct indices, i with probability π_i over u ~ U(0, 1).

    The indices at which the running sum of π passes u, 1 + u, ..., n - 1 + u (Madow 1949, "On the
    theory of systematic sampling, II"): rising, spread over the grid, and each π_i = 1 among them.

    Args:
        u: in [0, 1); an offset for each example makes examples independent.
        chances: π in (0, 1], of sum n.
        n: number of indices.
    """
    edges = jnp.cumsum(chances)
    edges = edges * (n / edges[-1])
    at = jnp.arange(n)[:, None] + u
    return jnp.minimum(jnp.searchsorted(edges, at, side="right"), chances.size - 1)
