"""Gaussian mixtures, where everything a diffusion model estimates has a closed form.

Data x0 ~ Σ_k w_k N(m_k, C_k) and x_t = alpha·x0 + sigma·eps give, with C_k = U diag(c) Uᵀ,

    x_t | k      ~ N(alpha·m_k, U diag(v) Uᵀ),        v = alpha²·c + sigma²                    (1)
    E[x0  | x,k] = m_k + U diag(alpha·c / v) z,       z = Uᵀ (x - alpha·m_k)                   (2)
    E[eps | x,k] =       U diag(sigma   / v) z                                                (3)
    Cov[x0| x,k] =       U diag(sigma²·c / v) Uᵀ                                              (4)

(conditioning one Gaussian on another).  With r_k = P(k | x), a softmax of log w_k + log N(x; (1)),
the mixture's exact denoiser is Σ_k r_k E[· | x, k], its score is -E[eps | x]/sigma = -Σ_k r_k
U diag(1/v) z, and its posterior covariance is the mean of (4) plus the covariance of (2) over k.

The probability-flow ODE in y = x/alpha, s = sigma/alpha is dy/ds = E[eps | x] (Karras et al. 2022,
eq. 1).  For one Gaussian, by (3), d(y - m)/ds = s·(y - m)/(c + s²) along each axis of U, so that
(y - m)/sqrt(c + s²), that is z/sqrt(v), is constant: a closed form between any two levels.

Functions take x of [b, ...], flattened to [b, d]; levels are [] or [b].  They are jitted:
each is one program by itself.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.core.types import Cond, Denoiser, NoiseLevel, Prediction, like


class GaussianMixture(NamedTuple):
    """k Gaussians in d dimensions, each covariance by its eigenvalues and eigenvectors.

    Attributes:
        log_weights: [k], normalised.
        means: [k, d].
        variances: [k, d] eigenvalues c of the covariances, >= 0 (0, a point, where sigma > 0).
        axes: [k, d, d] eigenvectors U, in columns.
        classes: [k] int, the class of each component, 0 ... number of classes - 1.
    """

    log_weights: Float[Array, "k"]
    means: Float[Array, "k d"]
    variances: Float[Array, "k d"]
    axes: Float[Array, "k d d"]
    classes: Int[Array, "k"]


def mixture(weights, means, covariances, classes=None) -> GaussianMixture:
    """A mixture from array-likes.

    Args:
        weights: [k], > 0; normalised here.
        means: [k, d].
        covariances: [k, d, d] symmetric, or [k, d] diagonals, or [k] multiples of the identity.
        classes: [k] ints; each component is its own class if None.

    Raises:
        ValueError: if a weight is not positive or a shape does not fit the means.
    """
    weights, means = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    covariances = np.asarray(covariances, np.float64)
    if means.ndim != 2 or weights.shape != means.shape[:1] or not (weights > 0).all():
        raise ValueError(
            f"weights {weights} must be one positive number for each row of means {means.shape}"
        )
    k, d = means.shape
    if covariances.shape not in ((k,), (k, d), (k, d, d)):
        raise ValueError(
            f"covariances has shape {covariances.shape}: give {(k,)}, {(k, d)} or {(k, d, d)}"
        )
    if covariances.ndim == 3:
        variances, axes = np.linalg.eigh(covariances)
    else:
        variances = np.broadcast_to(covariances.reshape(k, -1), (k, d))
        axes = np.broadcast_to(np.eye(d), (k, d, d))
    to_float = lambda x: jnp.asarray(x, jnp.result_type(float))
    return GaussianMixture(
        to_float(np.log(weights / weights.sum())),
        to_float(means),
        to_float(variances),
        to_float(axes),
        jnp.arange(k) if classes is None else jnp.asarray(classes, jnp.result_type(int)),
    )


@functools.partial(jax.jit, static_argnames="n")
def sample(key: Key[Array, ""], data: GaussianMixture, n: int) -> Float[Array, "n d"]:
    """n independent draws of x0."""
    component_key, noise_key = jax.random.split(key)
    index = jax.random.categorical(component_key, data.log_weights, shape=(n,))
    noise = jax.random.normal(noise_key, (n, data.means.shape[1]), data.means.dtype)
    spread = jnp.sqrt(data.variances[index]) * noise
    return data.means[index] + jnp.einsum("nij,nj->ni", data.axes[index], spread)


@jax.jit
def moments(
    data: GaussianMixture, level: NoiseLevel | None = None
) -> tuple[Float[Array, "d"], Float[Array, "d d"]]:
    """Mean and covariance of x_t at a level of shape [] (of x0 if None)."""
    weights = jnp.exp(data.log_weights)
    mean = weights @ data.means
    gap = data.means - mean
    covariance = jnp.einsum("k,kij,kj,klj->il", weights, data.axes, data.variances, data.axes)
    covariance += jnp.einsum("k,ki,kj->ij", weights, gap, gap)
    if level is None:
        return mean, covariance
    return level.alpha * mean, level.alpha**2 * covariance + level.sigma**2 * jnp.eye(mean.size)


@jax.jit
def log_prob(
    data: GaussianMixture, x: Float[Array, "b ..."], level: NoiseLevel | None = None
) -> Float[Array, "b"]:
    """log density of x_t = x at a level (of x0 if None), nats."""
    return jax.nn.logsumexp(_components(data, x, level).log_joint, axis=-1)


@jax.jit
def score(data: GaussianMixture, x: Float[Array, "b ..."], level: NoiseLevel) -> Array:
    """∇ log p(x_t = x), in x's shape."""
    c = _components(data, x, level)
    r = jax.nn.softmax(c.log_joint)
    return -jnp.einsum("bk,kij,bkj->bi", r, data.axes, c.z / c.v).reshape(x.shape)


@jax.jit
def predict(data: GaussianMixture, x: Float[Array, "b ..."], level: NoiseLevel) -> Prediction:
    """The exact denoiser: E[x0 | x_t = x] and E[eps | x_t = x], in x's shape.

    Finite at both ends of time: alpha = 0 gives the mean of the data, sigma = 0 gives x itself.
    """
    c = _components(data, x, level)
    r = jax.nn.softmax(c.log_joint)
    x0 = _component_means(data, c)
    eps = jnp.einsum("bk,kij,bkj->bi", r, data.axes, c.sigma * c.z / c.v)
    return Prediction(jnp.einsum("bk,bki->bi", r, x0).reshape(x.shape), eps.reshape(x.shape))


@jax.jit
def posterior_covariance(
    data: GaussianMixture, x: Float[Array, "b ..."], level: NoiseLevel
) -> Float[Array, "b d d"]:
    """Cov[x0 | x_t = x]: equation (4) averaged over components, plus the spread of (2)."""
    c = _components(data, x, level)
    r = jax.nn.softmax(c.log_joint)
    within = c.sigma**2 * data.variances / c.v
    x0 = _component_means(data, c)
    gap = x0 - jnp.einsum("bk,bki->bi", r, x0)[:, None]
    return jnp.einsum("bk,kij,bkj,klj->bil", r, data.axes, within, data.axes) + jnp.einsum(
        "bk,bki,bkj->bij", r, gap, gap
    )


def denoiser(data: GaussianMixture) -> Denoiser:
    """The exact class-conditional model.

    ``cond["label"]`` [b] keeps the components of that class; a label that no component has (the
    null class), or ``{}``, keeps all.
    """

    def denoise(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        if "label" not in cond:
            return predict(data, x, level)
        return jax.vmap(of_one, in_axes=(0, 0 if jnp.ndim(level.t) else None, 0))(
            x, level, cond["label"]
        )

    def of_one(x: Array, level: NoiseLevel, label: Array) -> Prediction:
        return jax.tree.map(lambda a: a[0], predict(of_class(data, label), x[None], level))

    return denoise


def of_class(data: GaussianMixture, label: Int[Array, ""]) -> GaussianMixture:
    """p(x0 | class); for a label that no component has, all of the data.  May be traced."""
    in_class = data.classes == label
    log_weights = jnp.where(in_class | ~in_class.any(), data.log_weights, -jnp.inf)
    return data._replace(log_weights=jax.nn.log_softmax(log_weights))


@jax.jit
def flow_map(
    data: GaussianMixture, x: Float[Array, "b ..."], now: NoiseLevel, nxt: NoiseLevel
) -> Float[Array, "b ..."]:
    """Where the probability flow takes x from one level to any other; exact, for one Gaussian.

    Raises:
        ValueError: if the mixture has more than one component (see ``flow_map_numeric``).
    """
    if data.means.shape[0] != 1:
        raise ValueError(
            f"flow_map is exact for 1 component, got {data.means.shape[0]}: use flow_map_numeric"
        )
    before, after = _components(data, x, now), _components(data, x, nxt)
    y = jnp.einsum("kij,bkj->bi", data.axes, jnp.sqrt(after.v / before.v) * before.z)
    return (like(nxt.alpha, y) * data.means + y).reshape(x.shape)


@functools.partial(jax.jit, static_argnames="steps")
def flow_map_numeric(
    data: GaussianMixture,
    x: Float[Array, "b ..."],
    now: NoiseLevel,
    nxt: NoiseLevel,
    steps: int = 256,
) -> Float[Array, "b ..."]:
    """As ``flow_map`` for any mixture, by classical Runge-Kutta of order 4: not exact.

    On the circle alpha = cos φ, sigma = sin φ the flow is dx/dφ = cos φ·eps - sin φ·x0 (Salimans &
    Ho 2022, appendix D), finite at both ends; x is scaled onto it, and back at the end.

    Args:
        data: the mixture.
        x: at level ``now``.
        now, nxt: any two levels, of any path.
        steps: of equal size in φ; the error falls with their fourth power once the steps resolve
            the narrowest component.
    """
    angle = lambda level: jnp.arctan2(level.sigma, level.alpha)
    radius = lambda level: like(jnp.hypot(level.alpha, level.sigma), x)
    start, h = angle(now), (angle(nxt) - angle(now)) / steps

    def velocity(x, phi):
        cos, sin = jnp.cos(phi), jnp.sin(phi)
        prediction = predict(data, x, NoiseLevel(phi, phi, cos, sin))
        return like(cos, x) * prediction.eps - like(sin, x) * prediction.x0

    def body(i, x):
        phi, step = start + i * h, like(h, x)
        k1 = velocity(x, phi)
        k2 = velocity(x + step / 2 * k1, phi + h / 2)
        k3 = velocity(x + step / 2 * k2, phi + h / 2)
        k4 = velocity(x + step * k3, phi + h)
        return x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return jax.lax.fori_loop(0, steps, body, x / radius(now)) * radius(nxt)


@jax.jit
def average(
    data: GaussianMixture, x: Float[Array, "b ..."], now: NoiseLevel, end: NoiseLevel
) -> Prediction:
    """The exact two-time Prediction (``flow_maps``, equation 1) of one Gaussian.

    Along each axis y - m = sqrt(c + s²)·k, so with v of (1) at both levels, and k = z/sqrt(v_now),

        eps     = k·(sigma·alpha_end + sigma_end·alpha) / n,
        x0 - m  = k·(alpha·alpha_end·c + sqrt(v_now·v_end) - sigma·sigma_end) / n,
        n       = sqrt(v_now)·alpha_end + sqrt(v_end)·alpha,

    with no division that two equal levels, or the ends of time, would make 0/0.

    Raises:
        ValueError: if the mixture has more than one component (take ``flow_maps.secant`` of
            ``flow_map_numeric``).
    """
    if data.means.shape[0] != 1:
        raise ValueError(f"average is exact for 1 component, got {data.means.shape[0]}")
    a, b = _components(data, x, now), _components(data, x, end)
    v_now, v_end = jnp.sqrt(a.v), jnp.sqrt(b.v)
    n = v_now * b.alpha + v_end * a.alpha
    # At n = 0 both levels are pure noise: nothing is known of x0, and eps is x.
    k = a.z / v_now / jnp.where(n > 0, n, 1.0)
    eps = k * jnp.where(n > 0, a.sigma * b.alpha + b.sigma * a.alpha, a.sigma / v_now)
    x0 = k * (a.alpha * b.alpha * data.variances + v_now * v_end - a.sigma * b.sigma) * (n > 0)
    turn = lambda z: jnp.einsum("kij,bkj->bi", data.axes, z)
    return Prediction((data.means + turn(x0)).reshape(x.shape), turn(eps).reshape(x.shape))


class _Components(NamedTuple):
    """For each x and component: z, v of (1, 2) [b, k, d]; log w_k + log N [b, k]; alpha, sigma."""

    z: Array
    v: Array
    log_joint: Array
    alpha: Array
    sigma: Array


def _components(data: GaussianMixture, x: Array, level: NoiseLevel | None) -> _Components:
    x = x.reshape(len(x), -1)
    alpha, sigma = (jnp.ones(()), jnp.zeros(())) if level is None else (level.alpha, level.sigma)
    alpha, sigma = (jnp.broadcast_to(c, len(x))[:, None, None] for c in (alpha, sigma))
    z = jnp.einsum("kij,bki->bkj", data.axes, x[:, None] - alpha * data.means)
    v = alpha**2 * data.variances + sigma**2
    log_normal = -0.5 * jnp.sum(z**2 / v + jnp.log(2 * jnp.pi * v), axis=-1)
    return _Components(z, v, data.log_weights + log_normal, alpha, sigma)


def _component_means(data: GaussianMixture, c: _Components) -> Array:
    """E[x0 | x, k] of (2), [b, k, d]."""
    spread = c.alpha * data.variances * c.z / c.v
    return data.means + jnp.einsum("kij,bkj->bki", data.axes, spread)
