"""Diffusion processes: the noise level at each time, and the exact Gaussian transitions.

A process composes two independent choices:

* a *schedule* t -> λ = log(alpha²/sigma²), decreasing in t, says **which** levels time passes
  through;
* a *path* λ -> (alpha, sigma) says how a level is **scaled**.

In y = x/alpha, s = sigma/alpha = exp(-λ/2) every path is the same process y = x0 + s·eps, so
nothing learned depends on the path, and all laws below are written for any of them.

For s < t (levels ``nxt`` cleaner than ``now``), with alpha_ts = alpha_t/alpha_s:

    q(x_t | x_s)     = N(alpha_ts x_s, sigma_t² - alpha_ts² sigma_s²)                        (1)
    q(x_s | x_t, x0) = N(alpha_ts (sigma_s²/sigma_t²) x_t + alpha_s (1 - r) x0, sigma_s² (1 - r)),
    r = exp(λ_t - λ_s)                                                                       (2)

(Kingma et al. 2021, "Variational Diffusion Models", appendix A, with 1 - r = -expm1(λ_t - λ_s).)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.types import NoiseLevel, like

Path = Callable[[Array], tuple[Array, Array]]
"""λ -> (alpha, sigma)."""


class Schedule(NamedTuple):
    """A noise schedule.

    Attributes:
        log_snr: t in [0, 1] -> λ, decreasing.
        inverse: λ -> t.
        steps: T, when the schedule is a table of T discrete levels at t = 1/T, ..., 1; None when
            it is continuous.
    """

    log_snr: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    steps: int | None = None


class Process(NamedTuple):
    """A schedule on a path: time -> NoiseLevel."""

    schedule: Schedule
    path: Path

    def at(self, t: Float[Array, "*n"] | float) -> NoiseLevel:
        """The level at time t in [0, 1]."""
        t = jnp.asarray(t, jnp.result_type(float))
        return self._level(t, self.schedule.log_snr(t))

    def at_log_snr(self, log_snr: Float[Array, "*n"] | float) -> NoiseLevel:
        """The level of a given λ."""
        log_snr = jnp.asarray(log_snr, jnp.result_type(float))
        return self._level(self.schedule.inverse(log_snr), log_snr)

    def quantise(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The next time, not earlier, at which the schedule has a level (t if continuous)."""
        steps = self.schedule.steps
        return t if steps is None else jnp.clip(jnp.ceil(t * steps), 1, steps) / steps

    def _level(self, t: Array, log_snr: Array) -> NoiseLevel:
        return NoiseLevel(t, log_snr, *self.path(log_snr))


def vp(log_snr: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Variance preserving: alpha² + sigma² = 1 (Ho et al. 2020)."""
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def ve(log_snr: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Variance exploding: alpha = 1 (Song et al. 2021; Karras et al. 2022)."""
    return jnp.ones_like(log_snr), jnp.exp(-log_snr / 2)


def rectified(log_snr: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """A straight line between data and noise: alpha + sigma = 1 (Liu et al. 2023)."""
    return jax.nn.sigmoid(log_snr / 2), jax.nn.sigmoid(-log_snr / 2)


def subvp(log_snr: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """The sub-VP SDE: sigma = 1 - alpha² (Song et al. 2021, eq. 29).

    With s = sigma/alpha, alpha solves alpha² + s·alpha - 1 = 0: alpha = 2 / (s + sqrt(s² + 4)).
    Written with e = exp(-|λ|/2) <= 1, so that it neither overflows nor cancels at either end.
    """
    e = jnp.exp(-jnp.abs(log_snr) / 2)
    noisy = 2 * e / (1 + jnp.sqrt(1 + 4 * e**2))  # s = 1/e
    clean = 2 / (e + jnp.sqrt(e**2 + 4))  # s = e
    alpha = jnp.where(log_snr < 0, noisy, clean)
    # sigma = s·alpha; as 1 - alpha² it would cancel where alpha is near 1.
    return alpha, jnp.where(log_snr < 0, 1 - noisy**2, e * clean)


def step_forward(
    x: Float[Array, "b ..."], eps: Float[Array, "b ..."], beta: Float[Array, "*b"]
) -> Float[Array, "b ..."]:
    """One step of the chain: x_t = sqrt(1 - β_t)·x_{t-1} + sqrt(β_t)·ε (Ho et al. 2020, eq. 2).

    The first factor shrinks the image a little, the second adds a calibrated bump of fresh noise;
    unit variance stays unit variance.

    Args:
        x: x_{t-1}.
        eps: fresh noise, N(0, I).
        beta: [] or [b], in [0, 1]: how much noise this step adds (the fixed schedule, not the
            network's prediction).
    """
    return like(jnp.sqrt(1 - beta), x) * x + like(jnp.sqrt(beta), x) * eps


def corrupt(
    x0: Float[Array, "b ..."], eps: Float[Array, "b ..."], level: NoiseLevel
) -> Float[Array, "b ..."]:
    """The closed form: x_t = alpha·x0 + sigma·eps, any level at once (Ho et al. 2020, eq. 4)."""
    return like(level.alpha, x0) * x0 + like(level.sigma, x0) * eps


class Transition(NamedTuple):
    """Coefficients of the laws between two levels, shaped as the levels.

    Attributes:
        of_x: factor of x_t in the mean of q(x_s | x_t, x0).
        of_x0: factor of x0 in that mean.
        variance: that of q(x_s | x_t, x0): "fixed small", β̃_t on a DDPM table.
        forward_variance: that of q(x_t | x_s): "fixed large", β_t on a DDPM table.
    """

    of_x: Array
    of_x0: Array
    variance: Array
    forward_variance: Array


def transition(now: NoiseLevel, nxt: NoiseLevel) -> Transition:
    """The coefficients of (1) and (2) from ``now`` (noisier) to ``nxt`` (cleaner).

    Finite at both ends: alpha_t = 0 gives q(x_s | x0), sigma_s = 0 gives x0.
    """
    # Two levels at λ = -inf (or +inf) are the same level: the difference is 0, not NaN.
    delta = jnp.where(now.log_snr == nxt.log_snr, 0.0, now.log_snr - nxt.log_snr)
    lost = -jnp.expm1(delta)
    ratio = jnp.where(nxt.alpha > 0, now.alpha / jnp.where(nxt.alpha > 0, nxt.alpha, 1.0), 1.0)
    shrink = jnp.where(now.sigma > 0, nxt.sigma / jnp.where(now.sigma > 0, now.sigma, 1.0), 1.0)
    return Transition(
        of_x=ratio * shrink**2,
        of_x0=nxt.alpha * lost,
        variance=nxt.sigma**2 * lost,
        forward_variance=now.sigma**2 * lost,
    )


def posterior(
    x: Float[Array, "b ..."], x0: Float[Array, "b ..."], now: NoiseLevel, nxt: NoiseLevel
) -> tuple[Float[Array, "b ..."], Float[Array, "*b"]]:
    """Mean and variance of q(x_s | x_t = x, x0), equation (2) (Ho et al. 2020, eqs. 6-7).

    Returns:
        (mean [b, ...], variance shaped as the levels).
    """
    c = transition(now, nxt)
    return like(c.of_x, x) * x + like(c.of_x0, x) * x0, c.variance


def clean(like_level: NoiseLevel) -> NoiseLevel:
    """The level without noise (t = 0, alpha = 1, sigma = 0), shaped as the given one."""
    t = jnp.zeros_like(like_level.t)
    return NoiseLevel(t, jnp.full_like(t, jnp.inf), jnp.ones_like(t), t)


PATHS: dict[str, Path] = {"vp": vp, "ve": ve, "rectified": rectified, "subvp": subvp}
