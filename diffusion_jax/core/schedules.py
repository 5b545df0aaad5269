"""Schedules: which levels λ = log-SNR a process passes through as t goes from 0 to 1.

Each factory returns a ``Schedule(log_snr, inverse, steps)``; its docstring gives λ(t).  None
depends on a path: ``cosine`` works on the rectified path as well as on the variance preserving one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.process import Process, Schedule


def discrete(betas: Sequence[float] | np.ndarray) -> Schedule:
    """Any table β_1..β_T: ᾱ_t = Π(1 - β_i), λ = log(ᾱ/(1 - ᾱ)) (Ho et al. 2020).

    Step i of T is at t = i/T; λ is linear between, and constant below t = 1/T.

    Args:
        betas: [T] with 0 < β < 1; a last β of exactly 1 means zero terminal SNR.

    Raises:
        ValueError: if a beta is outside of that range.
    """
    table = np.asarray(betas, np.float64)
    if table.ndim != 1 or len(table) < 1:
        raise ValueError(f"betas must be a list of at least one number, got shape {table.shape}")
    inside = (table > 0) & (table < 1)
    inside[-1] |= table[-1] == 1
    if not inside.all():
        i = int(np.argmin(inside))
        raise ValueError(
            f"betas[{i}] = {table[i]:g} is not in (0, 1); "
            "only the last may be 1 (zero terminal SNR)"
        )
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.cumsum(np.log1p(-table))
        # log(ᾱ/(1-ᾱ)) with 1-ᾱ = -expm1(log ᾱ): exact where ᾱ is near 1.
        log_snr = log_alpha_bar - np.log(-np.expm1(log_alpha_bar))
    return _from_table(log_snr)


def _from_table(log_snr: np.ndarray) -> Schedule:
    steps = len(log_snr)
    lam = jnp.asarray(log_snr, jnp.result_type(float))
    times = jnp.arange(1, steps + 1) / steps
    with np.errstate(invalid="ignore"):
        step = np.diff(log_snr)
    # Slope of λ on the way to each level; the first takes its neighbour's, an infinite one none.
    step = np.concatenate([step[:1], step]) if steps > 1 else np.zeros(1)
    slope = jnp.asarray(np.where(np.isfinite(step), step, 0.0), lam.dtype)

    def at(t):
        position = t * steps - 1
        u = jnp.clip(position, 0, steps - 1)
        # t = i/T in float32 may differ from the integer i by rounding.
        near = jnp.round(u)
        u = jnp.where(jnp.abs(u - near) < 1e-3, near, u)
        low = jnp.floor(u).astype(jnp.int32)
        w = u - low
        high = jnp.minimum(low + 1, steps - 1)
        # Indexing keeps table entries exact (interp would make -inf a NaN next to itself).
        value = jnp.where(
            w > 0, (1 - w) * lam[low] + jnp.where(w > 0, w, 1.0) * lam[high], lam[low]
        )
        # At an entry rounding loses the derivative: use the slope.
        rise = slope[jnp.ceil(u).astype(jnp.int32)] * (position - jax.lax.stop_gradient(position))
        return jax.lax.stop_gradient(value) + rise

    # The cleanest and the noisiest entry are looked up, as either λ may lie outside or be infinite.
    def inverse(log_snr):
        inside = jnp.interp(-log_snr, -lam[:last], times[:last])
        return jnp.where(log_snr <= lam[-1], times[-1], inside)

    last = steps if np.isfinite(log_snr[-1]) else max(steps - 1, 1)
    return Schedule(at, inverse, steps)


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> np.ndarray:
    """β from start to end in equal steps (Ho et al. 2020, section 4)."""
    return np.linspace(start, end, steps)


def scaled_linear_betas(
    steps: int = 1000, start: float = 0.00085, end: float = 0.012
) -> np.ndarray:
    """sqrt(β) in equal steps: the table of Stable Diffusion (Rombach et al. 2022)."""
    return np.linspace(start**0.5, end**0.5, steps) ** 2


def cosine_betas(steps: int = 1000, s: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """ᾱ = cos²((t + s)/(1 + s)·π/2), β clipped (Nichol & Dhariwal 2021, eq. 17)."""
    bar = np.cos((np.arange(steps + 1) / steps + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - bar[1:] / bar[:-1], largest)


def linear(steps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> Schedule:
    """The DDPM table: ``discrete(linear_betas(...))``."""
    return discrete(linear_betas(steps, start, end))


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Schedule:
    """The Stable Diffusion table: ``discrete(scaled_linear_betas(...))``."""
    return discrete(scaled_linear_betas(steps, start, end))


def cosine_table(steps: int = 1000, s: float = 0.008) -> Schedule:
    """The improved-DDPM table: ``discrete(cosine_betas(...))``."""
    return discrete(cosine_betas(steps, s))


def cosine(shift: float = 0.0, low: float = -15.0, high: float = 15.0) -> Schedule:
    """λ = -2 log tan(a + t(b - a)) + shift, a and b such that λ spans [low, high] + shift.

    The continuous cosine schedule (Kingma et al. 2021; Hoogeboom et al. 2023, eq. 4); shift is
    2·log(64/resolution) for images larger than 64.
    """
    a, b = np.arctan(np.exp(-high / 2)), np.arctan(np.exp(-low / 2))

    def at(t):
        # The larger of tan and its reciprocal is computed from the nearer end: exact at both.
        from_end = jnp.tan((1 - t) * (b - a) + (np.pi / 2 - b))
        return (
            jnp.where(t < 0.5, -2 * jnp.log(jnp.tan(a + t * (b - a))), 2 * jnp.log(from_end))
            + shift
        )

    inverse = lambda lam: (jnp.arctan(jnp.exp((shift - lam) / 2)) - a) / (b - a)
    return Schedule(at, inverse)


def sigmoid(
    start: float = -3.0, end: float = 3.0, tau: float = 1.0, low: float = -15.0, high: float = 15.0
) -> Schedule:
    """ᾱ = (σ(e) - σ(u)) / (σ(e) - σ(s)), λ = logit ᾱ, with u from s to e (all divided by tau).

    Jabri et al. 2022; Chen 2023, "On the Importance of Noise Scheduling", algorithm 1.  Time covers
    just the part of [s, e] where λ lies in [low, high], so both ends are finite.
    """
    s, e = start / tau, end / tau
    numpy_sigmoid = lambda u: 1 / (1 + np.exp(-u))
    # σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)), hence the two differences of logs below.
    offset = np.log(numpy_sigmoid(e)) - np.log(numpy_sigmoid(-s))

    span = numpy_sigmoid(e) - numpy_sigmoid(s)
    logit = lambda p: np.log(p) - np.log1p(-p)
    first, last = (logit(numpy_sigmoid(e) - numpy_sigmoid(lam) * span) for lam in (high, low))

    def at(t):
        up = (first - s) + t * (last - first)  # u - s, each without cancellation at its own end
        down = (e - last) + (1 - t) * (last - first)  # e - u
        return offset - (s + up) + jnp.log(-jnp.expm1(-down)) - jnp.log(-jnp.expm1(-up))

    def inverse(lam):
        p = numpy_sigmoid(e) - jax.nn.sigmoid(lam) * span
        return (jnp.log(p) - jnp.log1p(-p) - first) / (last - first)

    return Schedule(at, inverse)


def laplace(mu: float = 0.0, b: float = 0.5, low: float = -15.0, high: float = 15.0) -> Schedule:
    """λ ~ Laplace(mu, b) for uniform t: λ = mu - b·sgn(1/2 - u)·log(1 - 2|u - 1/2|).

    Hang et al. 2024, "Improved Noise Schedule for Diffusion Training", table 1.  u covers just the
    part of [0, 1] where λ lies in [low, high].
    """
    tail = lambda distance: 0.5 * np.exp(-abs(distance) / b)
    first = tail(high - mu) if high > mu else 1 - tail(high - mu)
    rest = tail(low - mu) if low < mu else 1 - tail(low - mu)  # 1 - u at the noisy end
    span = 1 - rest - first

    def at(t):
        # u + v = 1.  As rest + (1 - t)·span, XLA would fold rest into the 1 and lose it at t = 1.
        u, v = (1 - t) * first + t * (1 - rest), t * rest + (1 - t) * (1 - first)
        return jnp.where(u < v, mu - b * jnp.log(2 * u), mu + b * jnp.log(2 * v))

    def inverse(lam):
        side = 0.5 * jnp.exp(-jnp.abs(lam - mu) / b)
        return (jnp.where(lam > mu, side, 1 - side) - first) / span

    return Schedule(at, inverse)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """sigma/alpha = (sigma_min^(1/ρ) + t (sigma_max^(1/ρ) - sigma_min^(1/ρ)))^ρ, λ = -2 log of it.

    Karras et al. 2022, eq. 5.  The log-normal draw of training is a proposal, in ``weighting``.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return Schedule(
        lambda t: -2 * rho * jnp.log(low + t * (high - low)),
        lambda lam: (jnp.exp(-lam / (2 * rho)) - low) / (high - low),
    )


def rectified_flow() -> Schedule:
    """λ = 2 log((1 - t)/t): on the rectified path, sigma = t and alpha = 1 - t (Liu et al. 2023).

    λ is ±inf at the ends, where alpha and sigma are exactly 0 and 1.
    """
    return Schedule(
        lambda t: 2 * (jnp.log1p(-t) - jnp.log(t)),
        lambda lam: jax.nn.sigmoid(-lam / 2),
    )


def shifted(schedule: Schedule, shift: float) -> Schedule:
    """λ + shift: the same schedule for images of another resolution.

    Hoogeboom et al. 2023, eq. 4, with shift = 2·log(base/resolution).  The flow-matching time shift
    t' = m·t/(1 + (m - 1)·t) of Esser et al. 2024, eq. 23, is shift = -2·log m.
    """
    return Schedule(
        lambda t: schedule.log_snr(t) + shift,
        lambda lam: schedule.inverse(lam - shift),
        schedule.steps,
    )


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shift and scale alpha (variance preserving): 0 at t = 1, unchanged at the start.

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps Are Flawed", algorithm 1.
    λ is -inf at t = 1, so an eps-prediction does not determine x0 there: train v, x0 or flow.
    """
    start = 1 / schedule.steps if schedule.steps else 0.0
    lam0, lam1 = (schedule.log_snr(jnp.asarray(t, jnp.result_type(float))) for t in (start, 1.0))
    alpha_of = lambda lam: jnp.sqrt(jax.nn.sigmoid(lam))
    gap_of = lambda lam: jax.nn.sigmoid(-lam) / (1 + alpha_of(lam))  # 1 - alpha, without cancelling
    a0, a1 = alpha_of(lam0), alpha_of(lam1)
    k = a0 / (a0 - a1)

    def at(t):
        lam = schedule.log_snr(t)
        alpha = jnp.maximum(k * (alpha_of(lam) - a1), 0.0)
        gap = (1 - k) * gap_of(lam0) + k * gap_of(lam)
        return 2 * jnp.log(alpha) - jnp.log(gap) - jnp.log1p(alpha)

    def inverse(lam):
        alpha = alpha_of(lam) / k + a1
        gap = (gap_of(lam) - (1 - k) * gap_of(lam0)) / k
        return schedule.inverse(2 * jnp.log(alpha) - jnp.log(gap) - jnp.log1p(alpha))

    return Schedule(at, inverse, schedule.steps)


def elbo_rate(process: Process, t: jax.Array) -> jax.Array:
    """-dλ/dt at time t, by one jvp, which turns a loss in t into the likelihood bound.

    At an end of time where λ is infinite the rate is taken slightly (or a table's step) inside, so
    that the weight of a loss stays finite.
    """
    rate = lambda t: -jax.jvp(process.schedule.log_snr, (t,), (jnp.ones_like(t),))[1]
    margin = 1 / process.schedule.steps if process.schedule.steps else 1e-4
    inside = jnp.clip(t, margin, 1 - margin)
    return rate(jnp.where(jnp.isfinite(process.schedule.log_snr(t)), t, inside))


SCHEDULES: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine_table": cosine_table,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "laplace": laplace,
    "edm": edm,
    "rectified_flow": rectified_flow,
    "discrete": discrete,
}
