"""Estimates of a model's likelihood, by the names that a config chooses from.

An ``Estimate`` is (key, Subject, x0 [b, ...]) -> terms in bits per dimension: "total" [b], and the
summands, each [b] or [n, b].  For 8-bit images they are bits of a lossless code; for points in the
plane those of a density, in the units of the points, which may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import continuous_bound as continuous
from diffusion_jax.core import dequantise, flow_likelihood, grids, importance_bound, likelihood
from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers.ancestral import (
    VARIANCES,
    LogVariance,
    fixed_large,
    learned_range,
)
from diffusion_jax.core.types import Denoise, NoiseLevel
from diffusion_jax.evaluate import dequantiser

Terms = dict[str, Array]


class Subject(NamedTuple):
    """The model and data that are measured.

    Attributes:
        denoise, process: the conditioned model, and its process.
        variance: log variance of its ancestral steps.
        learned: whether the schedule was trained to minimise the variance of the bound.
        discrete: whether data are 8-bit values, not real numbers with a density.
    """

    denoise: Denoise
    process: Process
    variance: LogVariance
    learned: bool
    discrete: bool


class Estimate(NamedTuple):
    """An entry of ``LIKELIHOODS``.

    Attributes:
        title: its name in reports.
        terms: (key, Subject, x0 [b, ...]) -> Terms; to be jitted.
    """

    title: str
    terms: Callable[[Array, Subject, Array], Terms]


def variational_bound(n: int = 0, steps: int = 1000) -> Estimate:
    """The discrete bound over all T levels, or an unbiased estimate from n of its steps.

    Args:
        n: steps drawn for each image, those with large terms more often; 0 for all steps.
        steps: T of a continuous schedule.
    """
    if n < 0 or steps < 1:
        raise ValueError(_need(f"variational_bound(n={n}, steps={steps})", "n >= 0 and steps >= 1"))

    def terms(key, subject, x0):
        levels = grids.trailing(subject.process, subject.process.schedule.steps or steps)
        settings = (subject.variance, _step_decoder(subject))
        if not n:
            return likelihood.variational_bound(key, subject.denoise, x0, levels, *settings)
        return likelihood.estimate_bound(key, subject.denoise, x0, levels, n, *settings)

    return Estimate("variational bound", lambda *given: terms(*given)._asdict())


def continuous_bound(
    n: int = 64,
    decoder: str = "",
    times: str = "stratified",
    clock: str = "",
    steps: int = 0,
    high: float = 0.0,
) -> Estimate:
    """The bound in continuous time (Kingma et al. 2021), or in T steps of it.

    Args:
        n: network evaluations for each example.
        decoder: of ``core.continuous_bound.DECODERS``; "" is "discretised" (points: "gaussian").
        times: one of its ``TIMES``.
        clock: one of its ``CLOCKS``; "" is "schedule" for a learned schedule, else "log_snr".
        steps: T; 0 for infinity.
        high: λ of the cleanest level, where the decoder takes over; 0 for the end of the process.
    """
    spec = f"continuous_bound(n={n}, decoder={decoder!r}, times={times!r}, clock={clock!r}"
    if n < 1 or steps < 0 or not high >= 0:
        raise ValueError(
            _need(f"{spec}, steps={steps}, high={high})", "n >= 1, steps and high >= 0")
        )
    _check_known(f"{spec})", "decoder", decoder, {"", *continuous.DECODERS})
    _check_known(f"{spec})", "times", times, continuous.TIMES)
    _check_known(f"{spec})", "clock", clock, {"", *continuous.CLOCKS})

    def terms(key, subject, x0):
        decode = continuous.DECODERS[decoder or ("discretised" if subject.discrete else "gaussian")]
        make_clock = continuous.CLOCKS[clock or ("schedule" if subject.learned else "log_snr")]
        tick = partial(make_clock, high=high or math.inf)
        args = (key, subject.denoise, x0, subject.process)
        if steps:
            return continuous.stepwise_bound(*args, steps, n, decode(), tick)
        return continuous.continuous_bound(*args, n, decode(), continuous.TIMES[times], tick)

    return Estimate("continuous bound", lambda *args: terms(*args)._asdict())


def importance_weighted(k: int = 8, steps: int = 100, variance: str = "") -> Estimate:
    """The importance-weighted bound over k noisings of ``steps`` levels (Burda et al. 2016).

    Args:
        k: noisings of each example: k·steps network evaluations.
        steps: levels, equally spaced in λ.
        variance: that of an ancestral step; "" is the model's if it is learned, else
            "fixed_large", which gives importance weights of less variance.
    """
    known = {"": None, **VARIANCES}
    if k < 1 or steps < 1:
        raise ValueError(_need(f"importance_weighted(k={k}, steps={steps})", "both at least 1"))
    _check_known(f"importance_weighted(variance={variance!r})", "variance", variance, known)

    def terms(key, subject, x0):
        levels = _levels(subject.process, steps)
        default = subject.variance if subject.variance is learned_range else fixed_large
        step_variance = known[variance] or default
        return importance_bound.importance_weighted_bound(
            key, subject.denoise, x0, levels, k, step_variance, _step_decoder(subject)
        )

    return Estimate("importance-weighted bound", lambda *given: terms(*given)._asdict())


def flow(
    dequantisation: str = "",
    steps: int = 64,
    probes: int = 1,
    method: str = "rk4",
    k: int = 1,
    high: float = 0.0,
    fit: int = 50,
    law: str = "rademacher",
) -> Estimate:
    """The probability-flow ODE with fixed steps, equal in λ (Song et al. 2021).

    Args:
        dequantisation: "uniform", "truncated_normal" or "variational" for images; "" is "uniform"
            for images and none for points.
        steps: number of solver steps.
        probes: number of probes of Hutchinson's estimator; 0 for the exact trace.
        method: "rk4" or "heun".
        k: importance-weighted draws within a bin.
        high: λ where the flow starts; 0 for the end of the process, or with "truncated_normal"
            for where a bin is three standard deviations (13.3 for 8-bit data), if that is less.
        fit: steps of fitting a "variational" dequantiser to each batch.
        law: distribution of the probes.
    """
    spec = f"flow(steps={steps}, probes={probes}, method={method!r}, k={k}, fit={fit})"
    if steps < 1 or method not in flow_likelihood.FIXED:
        methods = " or ".join(flow_likelihood.FIXED)
        raise ValueError(_need(spec, f"steps >= 1 and method {methods}"))
    trace = _trace(spec, probes, law)

    def solve(key, subject, x, levels):
        return flow_likelihood.flow_likelihood(
            key, subject.denoise, x, subject.process, levels, method, trace
        )

    return Estimate(
        "probability flow", _dequantised(solve, steps + 1, dequantisation, k, high, fit, spec)
    )


def flow_adaptive(
    dequantisation: str = "",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    probes: int = 1,
    method: str = "tsit5",
    k: int = 1,
    high: float = 0.0,
    fit: int = 50,
    law: str = "rademacher",
) -> Estimate:
    """As ``flow``, with steps chosen by an error tolerance.

    Args:
        rtol, atol: relative and absolute tolerance, > 0.
        method: "tsit5", "dopri5" or "heun".
        dequantisation, probes, k, high, fit, law: see ``flow``.
    """
    spec = f"flow_adaptive(rtol={rtol}, atol={atol}, probes={probes}, method={method!r}, k={k})"
    if not (rtol > 0 and atol > 0) or method not in flow_likelihood.ADAPTIVE:
        methods = ", ".join(flow_likelihood.ADAPTIVE)
        raise ValueError(_need(spec, f"rtol > 0, atol > 0 and a method of {methods}"))
    trace = _trace(spec, probes, law)

    def solve(key, subject, x, levels):
        return flow_likelihood.adaptive_flow_likelihood(
            key, subject.denoise, x, subject.process, levels, method, rtol, atol, trace
        )

    return Estimate("probability flow", _dequantised(solve, 2, dequantisation, k, high, fit, spec))


def _dequantised(
    solve: Callable, n: int, name: str, k: int, high: float, fit: int, spec: str
) -> Callable[[Array, Subject, Array], Terms]:
    _check_known(f"{spec} with dequantisation={name!r}", "it", name, {"", *DEQUANTISERS})
    if k < 1 or fit < 0:
        raise ValueError(_need(spec, "k >= 1 and fit >= 0"))

    def terms(key, subject, x0):
        if not subject.discrete:
            if name or k > 1:
                raise ValueError(
                    f"config.evaluate.likelihood: dequantisation={name!r}, k={k} is for 8-bit "
                    "images; points in the plane have a density: omit both"
                )
            return solve(key, subject, x0, _levels(subject.process, n, high))._asdict()
        cut = _THREE_DEVIATIONS if name == "truncated_normal" and not high else high
        levels = _levels(subject.process, n, cut)
        fit_key, bound_key = jax.random.split(key)
        q = DEQUANTISERS[name or "uniform"](fit_key, subject, x0, levels, fit)
        bits = lambda key, x: solve(key, subject, x, levels).total
        return dequantise.bound(bound_key, q, x0, bits, k)._asdict()

    return terms


def _variational(key, subject, x0, levels, steps) -> dequantise.Dequantiser:
    """Fitted to the batch by the bound in continuous time, with one draw for each step."""

    def bits(key, x):
        return continuous.continuous_bound(
            key, subject.denoise, x, subject.process, 1, continuous.gaussian_direct()
        ).total

    return dequantiser.fit(key, x0, bits, steps)


def _levels(process: Process, n: int, high: float = 0.0) -> NoiseLevel:
    """n levels equally spaced in λ, between the ends of the process or up to ``high``."""
    low, last = grids.span(process)
    return process.at_log_snr(jnp.linspace(low, jnp.minimum(last, high) if high else last, n))


def _trace(spec: str, probes: int, law: str) -> flow_likelihood.Trace:
    if probes < 0 or law not in flow_likelihood.PROBES:
        laws = " or ".join(flow_likelihood.PROBES)
        raise ValueError(_need(f"{spec} with law={law!r}", f"probes >= 0 and law {laws}"))
    return flow_likelihood.hutchinson(probes, law) if probes else flow_likelihood.exact()


def _step_decoder(subject: Subject) -> likelihood.Decoder:
    return likelihood.DECODERS["discretised" if subject.discrete else "gaussian"]


def _check_known(spec: str, name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        listed = ", ".join(repr(each) for each in sorted(known))
        raise ValueError(_need(spec, f"{name} to be one of {listed}"))


def _need(spec: str, wanted: str) -> str:
    return f"config.evaluate.likelihood = {spec} needs {wanted}"


# λ at which the half-width of an 8-bit bin is 3·sigma/alpha (Zheng et al. 2023).
_THREE_DEVIATIONS = -2 * math.log(dequantise.width() / 2 / 3)

DEQUANTISERS: dict[str, Callable[..., dequantise.Dequantiser]] = {
    "uniform": lambda key, subject, x0, levels, fit: dequantise.uniform(),
    "truncated_normal": lambda key, subject, x0, levels, fit: dequantise.truncated_normal(
        levels.sigma[-1] / levels.alpha[-1]
    ),
    "variational": _variational,
}

LIKELIHOODS: dict[str, Callable[..., Estimate]] = {
    "variational_bound": variational_bound,
    "continuous_bound": continuous_bound,
    "importance_weighted": importance_weighted,
    "flow": flow,
    "flow_adaptive": flow_adaptive,
}
