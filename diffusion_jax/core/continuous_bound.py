"""Likelihood by the variational bound in continuous time, term by term, in bits per dimension.

With λ(t) from λ_max at the clean end to λ_min at the noisy one (Kingma et al. 2021, "Variational
Diffusion Models", eqs. 11-18, there in γ = -λ),

    -log p(x0) <= KL(q(x_1 | x0) || p(x_1)) + ½ E_{t, eps}[(-dλ/dt)·‖eps - eps_hat(x_t, λ)‖²]
                  - E log p(x0 | x_0),                                                      (1)

the prior, the diffusion term and the decoder at the cleanest level.  The diffusion term is an
integral over λ, so its expectation depends on the ends of a schedule and not on its shape
between them; the variance of its estimate does.  A ``Clock`` chooses the time: the process's own,
as in training, or one in which λ is linear, for schedules that pass quickly through the high λ,
where each unit of λ costs almost D/2 nats.  In T steps s = t - 1/T the integrand is
(T/2)·expm1(λ_s - λ_t)·‖eps - eps_hat‖² (eq. 14), which tends to that of (1) from above.

Any two ends give a bound.  An infinite end of λ is cut off at ±18, as in grids (``grids.span``);
``high`` of a clock cuts the clean end off earlier, for data of less precision than the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.core import grids, step_draws
from diffusion_jax.core.likelihood import Bound, gaussian_log_likelihood, prior_kl
from diffusion_jax.core.losses import discretised_log_likelihood, mean_per_example
from diffusion_jax.core.process import Process, corrupt
from diffusion_jax.core.schedules import elbo_rate
from diffusion_jax.core.types import Denoise, NoiseLevel, like

Decoder = Callable[[Denoise, Array, Array, NoiseLevel], Array]
"""(denoise, x0 [b, ...], x [b, ...] at the cleanest level, level []) -> log p(x0 | x) per element,
nats."""

Times = Callable[[Array, int, int], Array]
"""(key, n, b) -> u [n, b] in [0, 1): n draws for each of b examples; U(0, 1) over all rows."""

Clock = Callable[[Process, Array], tuple[NoiseLevel, Array]]
"""(process, u in [0, 1], clean to noisy) -> (level, -dλ/du), shaped as u."""


def by_log_snr(
    process: Process, u: Float[Array, "*n"], high: float = math.inf
) -> tuple[NoiseLevel, Float[Array, "*n"]]:
    """λ linear in u, from the cleanest level or from ``high`` if that is noisier."""
    noisy, clean = _ends(process, high)
    # The exact ends: a sum of products may miss them by rounding.
    log_snr = jnp.where(u <= 0, clean, jnp.where(u >= 1, noisy, clean - (clean - noisy) * u))
    return process.at_log_snr(log_snr), jnp.broadcast_to(clean - noisy, jnp.shape(u))


def by_schedule(
    process: Process, u: Float[Array, "*n"], high: float = math.inf
) -> tuple[NoiseLevel, Float[Array, "*n"]]:
    """u is the process's own time, between the same two ends as in ``by_log_snr``."""
    noisy, clean = _ends(process, high)
    start, end = process.schedule.inverse(clean), process.schedule.inverse(noisy)
    t = start + (end - start) * u
    return process.at(t), (end - start) * elbo_rate(process, t)


def uniform(key: Key[Array, ""], n: int, b: int) -> Float[Array, "n b"]:
    """Independent draws."""
    return jax.random.uniform(key, (n, b))


def stratified(key: Key[Array, ""], n: int, b: int) -> Float[Array, "n b"]:
    """(j + u_ij)/n: one draw in each of n equal parts, for each example."""
    return (jnp.arange(n)[:, None] + jax.random.uniform(key, (n, b))) / n


def antithetic(key: Key[Array, ""], n: int, b: int) -> Float[Array, "n b"]:
    """(j + u_i)/n: one u for the n draws of an example (Kingma et al. 2021, appendix I.1).

    The paper spreads one u over the batch; here examples are independent, so that
    ``likelihood.standard_error`` covers the draw.
    """
    return (jnp.arange(n)[:, None] + jax.random.uniform(key, (1, b))) / n


def continuous_bound(
    key: Key[Array, ""],
    denoise: Denoise,
    x0: Float[Array, "b ..."],
    process: Process,
    n: int,
    decoder: Decoder | None = None,
    times: Times = stratified,
    clock: Clock = by_log_snr,
) -> Bound:
    """An unbiased estimate of (1) by n network evaluations, one more if the decoder needs it.

    Args:
        key: for times and noise.
        denoise: the conditioned model.
        x0: data; on the 8-bit grid in [-1, 1] for decoders of discrete data.
        process: gives λ(t) and its ends; may be made of traced parameters.
        n: draws of t for each example, >= 1.
        decoder: one of ``DECODERS``; None for ``categorical``.
        times: how u is drawn: one of ``TIMES``.
        clock: what u means: one of ``CLOCKS``; ``partial(by_log_snr, high=13.0)`` ends at
            λ = 13.

    Returns:
        A Bound; its steps [n, b] are the drawn terms over n.

    Raises:
        ValueError: if n < 1.
    """
    _check(n)
    times_key, steps_key, decoder_key = jax.random.split(key, 3)
    u = times(times_key, n, x0.shape[0])

    def body(_, inputs):
        key, u = inputs
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        return None, diffusion_term(denoise, x0, eps, *clock(process, u))

    _, steps = jax.lax.scan(body, None, (jax.random.split(steps_key, n), u))
    return _bound(decoder_key, denoise, x0, process, steps / n, decoder or categorical(), clock)


def stepwise_bound(
    key: Key[Array, ""],
    denoise: Denoise,
    x0: Float[Array, "b ..."],
    process: Process,
    steps: int,
    n: int,
    decoder: Decoder | None = None,
    clock: Clock = by_log_snr,
) -> Bound:
    """As ``continuous_bound`` in T = ``steps`` equal steps of u (Kingma et al. 2021, eq. 14).

    It is ``likelihood.estimate_bound`` with the variance ``fixed_small``, on any schedule.

    Args:
        steps: T, >= 1.
        n: steps drawn for each example, one from each of n equal parts.
    """
    _check(n)
    if steps < 1:
        raise ValueError(f"the bound in steps = {steps} steps needs at least 1")
    index_key, steps_key, decoder_key = jax.random.split(key, 3)
    index = step_draws.stratified(index_key, n, x0.shape[0], steps)
    at = lambda i: clock(process, i / steps)[0]

    def body(_, inputs):
        key, i = inputs
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        now, nxt = at(i + 1), at(i)
        rate = steps * jnp.expm1(nxt.log_snr - now.log_snr)
        return None, diffusion_term(denoise, x0, eps, now, rate)

    _, each = jax.lax.scan(body, None, (jax.random.split(steps_key, n), index))
    return _bound(decoder_key, denoise, x0, process, each / n, decoder or categorical(), clock)


def diffusion_term(
    denoise: Denoise,
    x0: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    level: NoiseLevel,
    rate: Float[Array, "*b"],
) -> Float[Array, "b"]:
    """½·rate·‖eps - eps_hat‖², nats per dimension; rate is -dλ/dt for uniform t."""
    error = eps - denoise(corrupt(x0, eps, level), level).eps
    return 0.5 * rate * mean_per_example(error**2)


def categorical(bins: int = 256) -> Decoder:
    """p(x0 | x) ∝ q(x | x0) over the ``bins`` values in [-1, 1] (Kingma et al. 2021, eq. 13).

    Needs no network.  Differentiable in the level.
    """
    values = jnp.linspace(-1.0, 1.0, bins)

    def decode(denoise, x0, x, level):
        del denoise
        alpha, log_snr = (jnp.broadcast_to(c, x0.shape[:1]) for c in (level.alpha, level.log_snr))

        def one(row):
            x0, x, alpha, log_snr = row
            logit = lambda value: -0.5 * jnp.exp(log_snr) * (x / alpha - value) ** 2
            every = jax.vmap(logit)(values.astype(x.dtype))
            return logit(x0) - jax.nn.logsumexp(every, axis=0)

        # A few examples at a time, as each needs memory for all bins.
        return jax.lax.map(jax.checkpoint(one), (x0, x, alpha, log_snr), batch_size=16)

    return decode


def discretised(bins: int = 256) -> Decoder:
    """The mass of x0's bin under N(x0_hat, (sigma/alpha)²), x0_hat the model's x0."""

    def decode(denoise, x0, x, level):
        log_var = like(-level.log_snr, x)
        return discretised_log_likelihood(x0, denoise(x, level).x0, log_var, bins)

    return decode


def gaussian() -> Decoder:
    """The density N(x0; x0_hat, (sigma/alpha)²), for continuous data; x0_hat is the model's x0."""
    return lambda denoise, x0, x, level: gaussian_log_likelihood(
        x0, denoise(x, level).x0, like(-level.log_snr, x)
    )


def gaussian_direct() -> Decoder:
    """The density N(x0; x/alpha, (sigma/alpha)²), for continuous data; needs no network."""
    return lambda denoise, x0, x, level: gaussian_log_likelihood(
        x0, x / like(level.alpha, x), like(-level.log_snr, x)
    )


def ends_of_bound(
    key: Key[Array, ""],
    denoise: Denoise,
    x0: Float[Array, "b ..."],
    process: Process,
    decoder: Decoder,
    clock: Clock = by_schedule,
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """The prior and the decoder of (1), nats per dimension; functions of the ends of λ alone."""
    clean, noisy = (clock(process, jnp.asarray(u, jnp.result_type(float)))[0] for u in (0.0, 1.0))
    prior = prior_kl(x0, jax.tree.map(partial(jnp.expand_dims, axis=0), noisy))
    x = corrupt(x0, jax.random.normal(key, x0.shape, x0.dtype), clean)
    return prior, -mean_per_example(decoder(denoise, x0, x, clean))


def _bound(key, denoise, x0, process, steps, decoder, clock) -> Bound:
    ends = ends_of_bound(key, denoise, x0, process, decoder, clock)
    prior, steps, last = (term / math.log(2) for term in (ends[0], steps, ends[1]))
    return Bound(prior + steps.sum(0) + last, prior, steps, last)


def _ends(process: Process, high: float) -> tuple[Array, Array]:
    """λ of the noisiest and of the cleanest level."""
    low, last = grids.span(process)
    return low, jnp.minimum(last, high)


def _check(n: int) -> None:
    if n < 1:
        raise ValueError(f"n = {n} draws of the bound: it needs at least 1 for each example")


TIMES: dict[str, Times] = {
    "uniform": uniform,
    "stratified": stratified,
    "antithetic": antithetic,
}

CLOCKS: dict[str, Callable[..., tuple[NoiseLevel, Array]]] = {
    "log_snr": by_log_snr,
    "schedule": by_schedule,
}

DECODERS: dict[str, Callable[[], Decoder]] = {
    "categorical": categorical,
    "discretised": discretised,
    "gaussian": gaussian,
    "gaussian_direct": gaussian_direct,
}
