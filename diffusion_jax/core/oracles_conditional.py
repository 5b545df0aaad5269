"""Gaussian mixtures, conditioned: on some numbers being less noisy than others, or on y = A x0.

With levels of their own, x = a·x0 + s·eps number by number, a and s being vectors, and

    x | k ~ N(a m_k, V_k),    V_k = diag(a) C_k diag(a) + diag(s²)                             (1)
    E[x0  | x, k] = m_k + C_k diag(a) V_k⁻¹ (x - a m_k)                                        (2)
    E[eps | x, k] =       diag(s) V_k⁻¹ (x - a m_k)                                            (3)

With y = A x0 + noise, x0 given y is a mixture again, by the formula for each Gaussian and Bayes'
rule for its weight: the exact answer for inpainting, super-resolution and colouring.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.oracles import GaussianMixture
from diffusion_jax.core.types import NoiseLevel, Prediction, like


def covariances(data: GaussianMixture) -> Float[Array, "k d d"]:
    """C_k."""
    return jnp.einsum("kij,kj,klj->kil", data.axes, data.variances, data.axes)


@jax.jit
def predict(data: GaussianMixture, x: Float[Array, "b ..."], level: NoiseLevel) -> Prediction:
    """The exact denoiser at levels of any shape that multiplies x: E[x0 | x] and E[eps | x].

    Args:
        data: the mixture, of covariances that are not singular where sigma is 0.
        x: [b, ...], flattened to [b, d].
        level: see ``NoiseLevel``: [], [b], or per frame or pixel.
    """
    flat = lambda c: jnp.broadcast_to(like(c, x), x.shape).reshape(len(x), 1, -1)
    a, s = flat(level.alpha), flat(level.sigma)
    c = covariances(data)
    spread = a[..., None] * c * a[..., None, :] + s[..., None] ** 2 * jnp.eye(c.shape[-1])
    gap = x.reshape(len(x), 1, -1) - a * data.means
    root = jnp.linalg.cholesky(spread)
    whitened = jax.scipy.linalg.solve_triangular(root, gap[..., None], lower=True)
    solved = jax.scipy.linalg.solve_triangular(root, whitened, lower=True, trans=1)[..., 0]
    log_det = jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1)
    log_joint = data.log_weights - jnp.sum(whitened[..., 0] ** 2, axis=-1) / 2 - log_det
    r = jax.nn.softmax(log_joint)[..., None]
    x0 = data.means + jnp.einsum("kij,bkj->bki", c, a * solved)
    mean = lambda of_component: jnp.sum(r * of_component, axis=1).reshape(x.shape)
    return Prediction(mean(x0), mean(s * solved))


@jax.jit
def posterior(
    data: GaussianMixture,
    operator: Float[Array, "m d"],
    measurement: Float[Array, "m"],
    noise: float | Array,
) -> GaussianMixture:
    """p(x0 | y) of y = A x0 + noise·z: inpainting, super-resolution, colouring, exactly.

    Args:
        data: p(x0).
        operator: A.
        measurement: y.
        noise: standard deviation, >= 0; 0 if A C_k Aᵀ is not singular.
    """
    c = covariances(data)
    seen = operator @ c  # A C_k
    spread = seen @ operator.T + noise**2 * jnp.eye(operator.shape[0])
    gap = measurement - data.means @ operator.T
    root = jnp.linalg.cholesky(spread)
    solve = lambda b: jax.scipy.linalg.solve_triangular(root, b, lower=True)
    whitened, of_seen = solve(gap[..., None]), solve(seen)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1)
    log_joint = data.log_weights - jnp.sum(whitened**2, axis=(1, 2)) / 2 - log_det
    means = data.means + jnp.einsum("kmi,kmj->ki", of_seen, whitened)
    variances, axes = jnp.linalg.eigh(c - jnp.einsum("kmi,kmj->kij", of_seen, of_seen))
    return GaussianMixture(
        jax.nn.log_softmax(log_joint), means, jnp.maximum(variances, 0.0), axes, data.classes
    )


@jax.jit
def cascade(
    data: GaussianMixture,
    operator: Float[Array, "m d"],
    error: float | Array,
    added: float | Array,
    assumed: float | Array,
) -> tuple[Float[Array, "d"], Float[Array, "d d"]]:
    """Mean and covariance of what an exact second stage makes of an imperfect first one's output.

    The first stage gives y = A x0 + error·z, where A x0 is right; noise of ``added`` goes on top,
    and the second draws x0 from p(x0 | y + added·z') as if all noise in y were of
    ``assumed``.  With assumed = added and no error this is the data's own distribution.

    Args:
        data: of one component.
        operator: A, to the low resolution.
        error: standard deviation of the first stage's fault, white.
        added, assumed: the augmentation's, and the one that the second stage is conditioned on,
            each sigma/alpha of a level; assumed > 0 unless A C Aᵀ is not singular.

    Raises:
        ValueError: for more than one component.
    """
    if data.means.shape[0] != 1:
        raise ValueError(f"cascade is exact for 1 component, got {data.means.shape[0]}")
    c = covariances(data)[0]
    low, white = operator @ c @ operator.T, jnp.eye(operator.shape[0])
    gain = jnp.linalg.solve(low + assumed**2 * white, operator @ c).T
    seen = low + (error**2 + added**2) * white
    return data.means[0], gain @ seen @ gain.T + c - gain @ operator @ c


__all__ = ["cascade", "covariances", "posterior", "predict"]
