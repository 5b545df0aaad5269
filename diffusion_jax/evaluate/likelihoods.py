"""Estimates of a model's likelihood, each by its name and settings: what evaluation chooses from.

An ``Estimate`` is (key, Subject, x0 [b, ...]) -> terms, bits per dimension: "total" [b], and what
it is the sum of, each [b] or [n, b].  Of 8-bit images bits are those of lossless code; of points in
the plane they are of a density, in the units of the points, and may be negative.
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
    """What is measured.

    Attributes:
        denoise: the model with its condition.
        process: the model's.
        variance: log variance of its ancestral steps.
        learned: whether the process was trained for the variance of the bound.
        discrete: whether data are 8-bit values, and not points of a density.
    """

    denoise: Denoise
    process: Process
    variance: LogVariance
    learned: bool
    discrete: bool


class Estimate(NamedTuple):
    """One row of the table.

    Attributes:
        title: what it is, for the report.
        terms: (key, Subject, x0 [b, ...]) -> Terms; jit it.
    """

    title: str
    terms: Callable[[Array, Subject, Array], Terms]


def variational_bound(n: int = 0, steps: int = 1000) -> Estimate:
    """The discrete bound over all T levels, or an unbiased estimate of it by n of its steps.

    Args:
        n: steps drawn per image, the costly ones most often; 0 for all.
        steps: T of a continuous schedule.
    """
    if n < 0 or steps < 1:
        raise ValueError(_of(f"variational_bound(n={n}, steps={steps})", "n >= 0 and steps >= 1"))

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
        n: network calls for each example.
        decoder: of ``core.continuous_bound.DECODERS``; "" is "discretised", "gaussian" of points.
        times: of its ``TIMES``.
        clock: of its ``CLOCKS``; "" is "schedule" for a learned schedule, else "log_snr".
        steps: T; 0 for infinity.
        high: λ of the cleanest level, where the decoder takes over; 0 for what the process spans.
    """
    spec = f"continuous_bound(n={n}, decoder={decoder!r}, times={times!r}, clock={clock!r}"
    if n < 1 or steps < 0 or not high >= 0:
        raise ValueError(_of(f"{spec}, steps={steps}, high={high})", "n >= 1, steps and high >= 0"))
    _check_known(f"{spec})", "decoder", decoder, {"", *continuous.DECODERS})
    _check_known(f"{spec})", "times", times, continuous.TIMES)
    _check_known(f"{spec})", "clock", clock, {"", *continuous.CLOCKS})

    def terms(key, subject, x0):
        decode = continuous.DECODERS[decoder or ("discretised" if subject.discrete else "gaussian")]
        of_clock = continuous.CLOCKS[clock or ("schedule" if subject.learned else "log_snr")]
        tick = partial(of_clock, high=high or math.inf)
        given = (key, subject.denoise, x0, subject.process)
        if steps:
            return continuous.stepwise_bound(*given, steps, n, decode(), tick)
        return continuous.continuous_bound(*given, n, decode(), continuous.TIMES[times], tick)

    return Estimate("continuous bound", lambda *given: terms(*given)._asdict())


def importance_weighted(k: int = 8, steps: int = 100, variance: str = "") -> Estimate:
    """The importance-weighted bound over k noisings of ``steps`` levels (Burda et al. 2016).

    Args:
        k: noisings for each example: k·steps network calls.
        steps: levels, equally spaced in λ.
        variance: of an ancestral step; "" is the model's own where it is learned, else
            "fixed_large", whose weights have the smaller spread.
    """
    known = {"": None, **VARIANCES}
    if k < 1 or steps < 1:
        raise ValueError(_of(f"importance_weighted(k={k}, steps={steps})", "both at least 1"))
    _check_known(f"importance_weighted(variance={variance!r})", "variance", variance, known)

    def terms(key, subject, x0):
        levels = _levels(subject.process, steps)
        own = subject.variance if subject.variance is learned_range else fixed_large
        of_step = known[variance] or own
        return importance_bound.importance_weighted_bound(
            key, subject.denoise, x0, levels, k, of_step, _step_decoder(subject)
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
    """The probability-flow ODE by fixed steps, equal in λ (Song et al. 2021).

    Args:
        dequantisation: "uniform", "truncated_normal" or "variational" for images; "" is "uniform"
            for images and none for points.
        steps: of the solver.
        probes: of Hutchinson's estimate; 0 for the exact trace.
        method: "rk4" or "heun".
        k: draws within a bin, weighed together.
        high: λ where the flow starts; 0 for what the process spans, or with "truncated_normal"
            for where a bin is three standard deviations (13.3 for 8-bit data), if that is less.
        fit: steps of fitting a "variational" dequantiser to each batch.
        law: of the probes.
    """
    spec = f"flow(steps={steps}, probes={probes}, method={method!r}, k={k}, fit={fit})"
    if steps < 1 or method not in flow_likelihood.FIXED:
        methods = " or ".join(flow_likelihood.FIXED)
        raise ValueError(_of(spec, f"steps >= 1 and method {methods}"))
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
    """As ``flow``, with as many steps as the tolerance asks for.

    Args:
        rtol, atol: relative and absolute tolerance, > 0.
        method: "tsit5", "dopri5" or "heun".
        dequantisation, probes, k, high, fit, law: see ``flow``.
    """
    spec = f"flow_adaptive(rtol={rtol}, atol={atol}, probes={probes}, method={method!r}, k={k})"
    if not (rtol > 0 and atol > 0) or method not in flow_likelihood.ADAPTIVE:
        methods = ", ".join(flow_likelihood.ADAPTIVE)
        raise ValueError(_of(spec, f"rtol > 0, atol > 0 and a method of {methods}"))
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
        raise ValueError(_of(spec, "k >= 1 and fit >= 0"))

    def terms(key, subject, x0):
        if not subject.discrete:
            if name or k > 1:
                raise ValueError(
                    f"config.evaluate.likelihood: dequantisation={name!r}, k={k} is of 8-bit "
                    "images; points in the plane have a density: leave both away"
                )
            return solve(key, subject, x0, _levels(subject.process, n, high))._asdict()
        cut = _THREE_DEVIATIONS if name == "truncated_normal" and not high else high
        levels = _levels(subject.process, n, cut)
        of_fit, of_bound = jax.random.split(key)
        q = DEQUANTISERS[name or "uniform"](of_fit, subject, x0, levels, fit)
        bits = lambda key, x: solve(key, subject, x, levels).total
        return dequantise.bound(of_bound, q, x0, bits, k)._asdict()

    return terms


def _variational(key, subject, x0, levels, steps) -> dequantise.Dequantiser:
    """Fitted to the batch by the bound in continuous time, one draw a step."""

    def bits(key, x):
        return continuous.continuous_bound(
            key, subject.denoise, x, subject.process, 1, continuous.gaussian_direct()
        ).total

    return dequantiser.fitted(key, x0, bits, steps)


def _levels(process: Process, n: int, high: float = 0.0) -> NoiseLevel:
    """n levels equally spaced in λ, between the ends of the process or up to ``high``."""
    low, last = grids.span(process)
    return process.at_log_snr(jnp.linspace(low, jnp.minimum(last, high) if high else last, n))


def _trace(spec: str, probes: int, law: str) -> flow_likelihood.Trace:
    if probes < 0 or law not in flow_likelihood.PROBES:
        laws = " or ".join(flow_likelihood.PROBES)
        raise ValueError(_of(f"{spec} with law={law!r}", f"probes >= 0 and law {laws}"))
    return flow_likelihood.hutchinson(probes, law) if probes else flow_likelihood.exact()


def _step_decoder(subject: Subject) -> likelihood.Decoder:
    return likelihood.DECODERS["discretised" if subject.discrete else "gaussian"]


def _check_known(spec: str, name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        listed = ", ".join(repr(each) for each in sorted(known))
        raise ValueError(_of(spec, f"{name} to be one of {listed}"))


def _of(spec: str, wanted: str) -> str:
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
