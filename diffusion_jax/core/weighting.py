"""Loss weights of a level.

A ``Weight`` is (level, target) -> factor on the squared error of the network's own output F.  The
literature states weights for the error of x0, eps or v; at fixed x these errors are proportional,

    ΔF = (det_F / det_G)·ΔG,       det as in ``targets`` (det_x0 = -sigma, det_eps = alpha),   (1)

so each weight is written in the space of its paper and converted to the network's by (1).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core import targets
from diffusion_jax.core.process import Process
from diffusion_jax.core.schedules import elbo_rate
from diffusion_jax.core.types import NoiseLevel, Target

Weight = Callable[[NoiseLevel, Target], Array]


def in_space(space: Target, weight: Callable[[NoiseLevel], Array]) -> Weight:
    """A weight on the squared error of another target, such as x0, as a weight on the network's.

    Args:
        space: the target whose error the weight is stated for.
        weight: level -> factor, shaped as the level.
    """

    def on_own(level, target):
        ratio = targets.determinant(space, level) / targets.determinant(target, level)
        return weight(level) * ratio**2

    return on_own


def simple() -> Weight:
    """1 on the network's own error (Ho et al. 2020, eq. 14)."""
    return lambda level, target: jnp.ones_like(level.alpha)


def mse(space: str = "eps") -> Weight:
    """1 on the error of another target: "eps", "x0", "v", "flow", "edm".

    ``mse("v")`` on an x0-network is the loss of Li & He 2025 ("Back to Basics").
    """
    if space not in targets.TARGETS:
        raise ValueError(f"weight mse(space={space!r}): known are {', '.join(targets.TARGETS)}")
    return in_space(targets.TARGETS[space](), lambda level: jnp.ones_like(level.alpha))


def snr() -> Weight:
    """SNR on the x0-error, which is 1 on the eps-error (Salimans & Ho 2022, eq. 9)."""
    return mse("eps")


def truncated_snr() -> Weight:
    """max(SNR, 1) on the x0-error (Salimans & Ho 2022, section 4)."""
    return in_space(targets.x0(), lambda level: jnp.maximum(jnp.exp(level.log_snr), 1.0))


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, γ) on the x0-error (Hang et al. 2023, eq. 8)."""
    return in_space(targets.x0(), lambda level: jnp.minimum(jnp.exp(level.log_snr), gamma))


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    """1/(k + SNR)^γ on the eps-error (Choi et al. 2022, eq. 8)."""
    return in_space(targets.eps(), lambda level: (k + jnp.exp(level.log_snr)) ** -gamma)


def edm(sigma_data: float = 0.5) -> Weight:
    """(s² + sigma_data²)/(s·sigma_data)², s = sigma/alpha, on the x0-error (Karras et al. 2022).

    It is 1 on the error of EDM's own F.
    """
    return in_space(targets.edm(sigma_data), lambda level: jnp.ones_like(level.alpha))


def elbo(process: Process) -> Weight:
    """½·(-dλ/dt) on the eps-error: the likelihood bound for uniform t (Kingma et al. 2021)."""
    return in_space(targets.eps(), lambda level: 0.5 * elbo_rate(process, level.t))


def sigmoid_elbo(process: Process, bias: float = 2.0) -> Weight:
    """½·(-dλ/dt)·sigmoid(bias - λ) on the eps-error, for uniform t (Hoogeboom et al. 2025, eq. 5).

    Args:
        process: the process trained on; its dλ/dt makes the weight independent of the schedule.
        bias: where, in λ, the bound's weight starts to fall.
    """
    return in_space(
        targets.eps(),
        lambda level: 0.5 * elbo_rate(process, level.t) * jax.nn.sigmoid(bias - level.log_snr),
    )


def with_uncertainty(loss: Float[Array, "b"], u: Float[Array, "b"]) -> Float[Array, "b"]:
    """loss/e^u + u, u(level) learned: e^u tends to the mean loss (Karras et al. 2024, eq. 21)."""
    return loss * jnp.exp(-u) + u


def log_uncertainty(kernel: Float[Array, "k"], log_snr: Float[Array, "b"]) -> Float[Array, "b"]:
    """u(λ) for ``with_uncertainty``: a linear map of k Fourier features of λ/4.

    Args:
        kernel: the map; zeros give u = 0.
        log_snr: λ.
    """
    # EDM2 draws random frequencies once; quantiles of the same N(0, 1) need not be stored.
    k = kernel.shape[0]
    frequency = jax.scipy.stats.norm.ppf((jnp.arange(k) + 0.5) / k)
    phase = (jnp.arange(k) * 0.618034) % 1.0
    c = jnp.clip(log_snr, -30.0, 30.0)[:, None] / 4
    return jnp.sqrt(2.0) * jnp.cos(2 * jnp.pi * (c * frequency + phase)) @ kernel / jnp.sqrt(k)


WEIGHTS: dict[str, Callable[..., Weight]] = {
    "simple": simple,
    "mse": mse,
    "snr": snr,
    "truncated_snr": truncated_snr,
    "min_snr": min_snr,
    "p2": p2,
    "edm": edm,
    "elbo": elbo,
    "sigmoid_elbo": sigmoid_elbo,
}
