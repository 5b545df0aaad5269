"""Prediction targets: what a network's output F is a prediction of.

A target is a row (p, q) with F = p·x0 + q·eps.  With x = alpha·x0 + sigma·eps that is a 2x2 system,

    [x]   [alpha  sigma] [x0 ]
    [F] = [p      q    ] [eps],    det = alpha·q - sigma·p,                                (1)

whose solution turns any target into x0 and eps, and so into any other, with no branch on a kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.types import (
    Cond,
    Denoiser,
    Model,
    NoiseLevel,
    Params,
    Prediction,
    Target,
    like,
)

# Where a target leaves x0 or eps undetermined (eps at alpha = 0, x0 at sigma = 0) the system is
# singular; a det this small keeps the answer finite, and irrelevant, since its factor is 0 there.
_SMALLEST_DET = 1e-8


def eps() -> Target:
    """F = eps (Ho et al. 2020, eq. 14)."""
    return lambda level: (jnp.zeros_like(level.alpha), jnp.ones_like(level.alpha))


def x0() -> Target:
    """F = x0."""
    return lambda level: (jnp.ones_like(level.alpha), jnp.zeros_like(level.alpha))


def v() -> Target:
    """F = alpha·eps - sigma·x0 (Salimans & Ho 2022, appendix D), on any path."""
    return lambda level: (-level.sigma, level.alpha)


def flow() -> Target:
    """F = eps - x0, the velocity dx/dt of the rectified path (Liu et al. 2023)."""
    return lambda level: (-jnp.ones_like(level.alpha), jnp.ones_like(level.alpha))


def score() -> Target:
    """F = ∇ log p(x_t | x0) = -eps/sigma (Song et al. 2021, eq. 7); sigma is floored at 1e-8."""
    return lambda level: (
        jnp.zeros_like(level.alpha),
        -1 / jnp.maximum(level.sigma, _SMALLEST_DET),
    )


def edm(sigma_data: float = 0.5) -> Target:
    """EDM's F: D = c_skip·y + c_out·F in y = x/alpha (Karras et al. 2022, table 1 and eq. 7).

    Solving for F with s = sigma/alpha gives
    p = sigma / (sigma_data·n), q = -sigma_data·alpha / n, n = sqrt(sigma² + sigma_data²·alpha²).

    Args:
        sigma_data: standard deviation of the data.
    """

    def row(level):
        n = jnp.sqrt(level.sigma**2 + (sigma_data * level.alpha) ** 2)
        return level.sigma / (sigma_data * n), -sigma_data * level.alpha / n

    return row


def trigflow(sigma_data: float = 0.5) -> Target:
    """TrigFlow's F: sigma_data·F = cos t·z - sin t·x0, z = sigma_data·eps (Lu & Song 2025, eq. 3).

    With t = atan2(sigma, alpha·sigma_data) on any path; minus EDM's F, and v for sigma_data = 1 on
    the variance preserving path.

    Args:
        sigma_data: standard deviation of the data.
    """
    negative = edm(sigma_data)

    def row(level):
        p, q = negative(level)
        return -p, -q

    return row


def determinant(target: Target, level: NoiseLevel) -> Float[Array, "*b"]:
    """det of (1), shaped as the level, kept away from 0."""
    p, q = target(level)
    det = level.alpha * q - level.sigma * p
    return jnp.where(jnp.abs(det) < _SMALLEST_DET, jnp.where(det < 0, -1, 1) * _SMALLEST_DET, det)


def express(
    target: Target, x0: Float[Array, "b ..."], eps: Float[Array, "b ..."], level: NoiseLevel
) -> Float[Array, "b ..."]:
    """F = p·x0 + q·eps: what the network should output for known data and noise."""
    p, q = target(level)
    return like(p, x0) * x0 + like(q, x0) * eps


def predict(
    target: Target, out: Float[Array, "b ..."], x: Float[Array, "b ..."], level: NoiseLevel
) -> Prediction:
    """Solve (1) for the clean data and the noise.

    Args:
        target: what ``out`` predicts.
        out: the network's output; channels beyond those of x go to ``Prediction.aux``.
        x: x_t, [b, ..., c].
        level: [], [b] or [b, f...].

    Returns:
        A Prediction, finite at both ends of time.
    """
    channels = x.shape[-1]
    out, aux = out[..., :channels], out[..., channels:]
    p, q = target(level)
    det = like(determinant(target, level), x)
    alpha, sigma, p, q = (like(c, x) for c in (level.alpha, level.sigma, p, q))
    return Prediction(
        x0=(q * x - sigma * out) / det,
        eps=(alpha * out - p * x) / det,
        aux=aux if aux.shape[-1] else None,
    )


def convert(
    target: Target,
    other: Target,
    out: Float[Array, "b ..."],
    x: Float[Array, "b ..."],
    level: NoiseLevel,
) -> Float[Array, "b ..."]:
    """Convert ``out`` from the F of one target to the F of another; extra channels are dropped.

    F' = (det'·F + (q·p' - p·q')·x)/det: what x0 and eps would give, without their rounding.
    """
    (p, q), (p2, q2) = target(level), other(level)
    det = determinant(target, level)
    out_factor, x_factor = determinant(other, level) / det, (q * p2 - p * q2) / det
    return like(out_factor, x) * out[..., : x.shape[-1]] + like(x_factor, x) * x


def from_x0(x0: Array, x: Array, level: NoiseLevel, aux: Any = None) -> Prediction:
    """The Prediction of a given x0: eps = (x - alpha·x0)/sigma (0 where sigma is 0)."""
    sigma = like(level.sigma, x)
    rest = x - like(level.alpha, x) * x0
    return Prediction(x0, jnp.where(sigma > 0, rest / jnp.where(sigma > 0, sigma, 1.0), 0.0), aux)


def denoiser(model: Model, params: Params, key: Array | None = None) -> Denoiser:
    """The model as a function (x, level, cond) -> Prediction.

    Args:
        model: what the parameters mean.
        params: the network's parameters.
        key: dropout key; given exactly while training.
    """

    def denoise(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        out = network_output(model, params, x, level, cond, key)
        return predict(model.target, out, x, level)

    return denoise


def network_output(
    model: Model, params: Params, x: Array, level: NoiseLevel, cond: Cond, key: Array | None = None
) -> Array:
    """The network's output at (x, level, cond), before ``predict``: F, then ``aux``.

    Its time is [b]; of levels per frame or pixel, [b, f...], it is shaped as they are.
    """
    scaled = like(model.scale_in(level), x) * x
    time = model.time_in(level)
    time = jnp.broadcast_to(time, (x.shape[0], *time.shape[1:]))
    return model.net(params, scaled, time, cond, key=key)


TARGETS: dict[str, Callable[..., Target]] = {
    "eps": eps,
    "x0": x0,
    "v": v,
    "flow": flow,
    "score": score,
    "edm": edm,
    "trigflow": trigflow,
}
