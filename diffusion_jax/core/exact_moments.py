"""Exact mean and covariance of a sampler's output, where every step is affine in x.

A Gaussian in d dimensions is written as 2d + 1 sigma points: its mean m, and m + r_i with
Σ_i r_i r_iᵀ its covariance S.  An affine map of the points is the same map of the Gaussian.
Independent noise of covariance s²·I adds s²·I to S exactly if its points are orthonormal columns,
orthogonal to those of the r_i; 2d rows have room for both.  So a sampler that gets the points as
its batch and ``orthogonal_noise`` as its noise returns the points of the distribution it samples
from, without sampling error: for Gaussian data, an exact denoiser (``oracles.predict``) and any
guidance that is affine in x, such as ``guidance.projected``.

Solvers that add noise and remember earlier predictions are not covered: the noise is orthogonal to
x alone.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core.types import NoiseLevel


def sigma_points(mean: Float[Array, "d"], covariance: Float[Array, "d d"]) -> Float[Array, "n d"]:
    """The 2d + 1 points of N(mean, covariance): a batch to call a sampler with."""
    root = jnp.linalg.cholesky(covariance)
    return mean + jnp.concatenate([jnp.zeros_like(mean)[None], root.T, jnp.zeros_like(root)])


def orthogonal_noise(
    key: Array, x: Float[Array, "n ..."], now: NoiseLevel, nxt: NoiseLevel
) -> Array:
    """A ``Noise``: the points of N(0, I), independent of those of x; the key is not used."""
    del key, now, nxt
    flat = x.reshape(len(x), -1)
    rows, d = len(x) - 1, flat.shape[1]
    if rows != 2 * d:
        raise ValueError(
            f"orthogonal_noise needs the 2d + 1 = {2 * d + 1} points of sigma_points, "
            f"got {rows + 1}"
        )
    # The last columns of a complete QR decomposition are orthogonal to all of the given ones.
    complete, _ = jnp.linalg.qr(flat[1:] - flat[0], mode="complete")
    z = jnp.concatenate([jnp.zeros_like(flat[:1]), complete[:, d:]])
    return z.reshape(x.shape)


def moments(x: Float[Array, "n ..."]) -> tuple[Float[Array, "d"], Float[Array, "d d"]]:
    """(mean, covariance) that the points represent."""
    flat = x.reshape(len(x), -1)
    gap = flat[1:] - flat[0]
    return flat[0], gap.T @ gap


def gaussian_kl(mean, covariance, of_mean, of_covariance) -> float:
    """KL(N(mean, covariance) || N(of_mean, of_covariance)), nats, in double precision.

    Args:
        mean, covariance: of the samples, array-likes [d] and [d, d].
        of_mean, of_covariance: of the distribution they should have.
    """
    mean, s, m, c = (np.asarray(a, np.float64) for a in (mean, covariance, of_mean, of_covariance))
    gap = m - mean
    shape = np.trace(np.linalg.solve(c, s)) + gap @ np.linalg.solve(c, gap) - len(gap)
    return float((shape + np.linalg.slogdet(c)[1] - np.linalg.slogdet(s)[1]) / 2)
