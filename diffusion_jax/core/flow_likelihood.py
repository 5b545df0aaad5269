"""Log-likelihood by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix D.2).

In the coordinate of rectified flow, z = x/(alpha + sigma), u = sigma/(alpha + sigma), the ODE of
every path is dz/du = v = eps - x0, finite at both ends, and along it (Chen et al. 2018)

    log p_a(z_a) = log p_b(z_b) + ∫_a^b tr(∂v/∂z) du,     a clean, b noisy.                   (1)

At the noisy end p is the sampler's prior, x ~ N(0, alpha² + sigma²).  At the clean end the data x0
is taken as y = x/alpha, so z_a = x0·alpha/(alpha + sigma), and the change of units adds
D·log(alpha/(alpha + sigma)): the result is the density of x0 + s·eps at x0, with s = sigma/alpha of
the cleanest level (5e-4 for λ = 15), which differs from that of x0 by O(s²).

The trace is exact, by one directional derivative for each dimension, or Hutchinson's estimate
eᵀ(∂v/∂z)e with E[e eᵀ] = I, unbiased for log p; e is drawn once for a whole trajectory, so that the
ODE stays smooth (Grathwohl et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers.adaptive import METHODS as ADAPTIVE
from diffusion_jax.core.solvers.runge_kutta import FLOW, HEUN, RK4, Tableau
from diffusion_jax.core.types import Denoise, NoiseLevel, like

LARGEST_EXACT = 4096
"""Dimensions up to which the exact trace is computed."""


class FlowLikelihood(NamedTuple):
    """-log2 p(x0)/D and its two parts, bits per dimension, in the units of x0.

    Attributes:
        total: [b], their sum.
        prior: [b], of x at the noisy end.
        volume: [b], minus the log of the flow's expansion of volume on the way there.
    """

    total: Float[Array, "b"]
    prior: Float[Array, "b"]
    volume: Float[Array, "b"]


class Trace(NamedTuple):
    """How tr(∂v/∂z) is computed.

    Attributes:
        draw: (key, x) -> probes, fixed for a trajectory.
        apply: (probes, v, x [b, ...]) -> (v(x), trace [b]); v acts on each example alone.
    """

    draw: Callable[[Array, Array], Any]
    apply: Callable[[Any, Callable[[Array], Array], Array], tuple[Array, Array]]


def exact(chunk: int = 64) -> Trace:
    """One directional derivative for each of D dimensions.

    Args:
        chunk: number of derivatives at a time: more need more memory.

    Raises:
        ValueError: when applied to more than ``LARGEST_EXACT`` dimensions.
    """

    def draw(key, x):
        del key
        if math.prod(x.shape[1:]) > LARGEST_EXACT:
            raise ValueError(
                f"the exact trace takes one derivative for each of {math.prod(x.shape[1:])} "
                f"dimensions, and is for at most {LARGEST_EXACT}; ask for probes >= 1"
            )
        return ()

    def apply(probes, v, x):
        del probes
        value, linear = jax.linearize(v, x)
        b, size = x.shape[0], math.prod(x.shape[1:])

        def diagonal(i):
            basis = (jnp.arange(size) == i).astype(x.dtype).reshape(x.shape[1:])
            return linear(jnp.broadcast_to(basis, x.shape)).reshape(b, -1)[:, i]

        each = jax.lax.map(diagonal, jnp.arange(size), batch_size=min(chunk, size))
        return value, each.sum(0)

    return Trace(draw, apply)


def hutchinson(n: int = 1, law: str = "rademacher") -> Trace:
    """The mean over n probes of eᵀ(∂v/∂z)e (Hutchinson 1990).

    Args:
        n: probes for each example, >= 1.
        law: distribution of a probe's entries: "rademacher" (±1, less variance) or "gaussian".

    Raises:
        ValueError: if n < 1 or the law is unknown.
    """
    if n < 1:
        raise ValueError(f"hutchinson(n={n}) needs at least 1 probe; exact() needs none")
    if law not in PROBES:
        raise ValueError(f"hutchinson(law={law!r}): known are {', '.join(PROBES)}")

    def apply(probes, v, x):
        value, linear = jax.linearize(v, x)
        along = jax.vmap(linear)(probes)
        return value, jnp.sum(along * probes, axis=tuple(range(2, probes.ndim))).mean(0)

    return Trace(lambda key, x: PROBES[law](key, (n, *x.shape), x.dtype), apply)


def flow_likelihood(
    key: Key[Array, ""],
    denoise: Denoise,
    x0: Float[Array, "b ..."],
    process: Process,
    levels: NoiseLevel,
    method: str = "rk4",
    trace: Trace | None = None,
) -> FlowLikelihood:
    """By one Runge-Kutta step from each level of a grid to the next.

    Args:
        key: for the probes.
        denoise: the conditioned model.
        x0: a point of continuous (or dequantised) data.
        process: gives the levels of stages within a step.
        levels: [n], noisiest first, n - 1 steps; traced.
        method: "heun" (order 2) or "rk4" (order 4).
        trace: ``exact()``, or None for ``hutchinson()``.

    Raises:
        ValueError: for an unknown method, or a grid without a step.
    """
    if method not in FIXED:
        raise ValueError(f"flow method {method!r}: known are {', '.join(FIXED)}")
    if levels.t.shape[0] < 2:
        raise ValueError("the flow's likelihood needs at least 1 step, so 2 levels")
    tableau = FIXED[method]
    field = _field(key, denoise, x0, process, trace)
    noisy, clean = _ends(levels)

    def body(state, ends):
        u, h = ends[0], ends[1] - ends[0]
        slopes = []
        for row in ((), *tableau.stages):
            slopes.append(field(u + sum(row) * h, _move(state, h, row, slopes)))
        return _move(state, h, tableau.weights, slopes), None

    u = FLOW.clock(levels)[::-1]
    start = (_start(x0, clean), jnp.zeros(x0.shape[:1], x0.dtype))
    (z, log_volume), _ = jax.lax.scan(body, start, (u[:-1], u[1:]))
    return _likelihood(z, log_volume, clean, noisy)


def adaptive_flow_likelihood(
    key: Key[Array, ""],
    denoise: Denoise,
    x0: Float[Array, "b ..."],
    process: Process,
    levels: NoiseLevel,
    method: str = "tsit5",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    trace: Trace | None = None,
    max_steps: int = 4096,
) -> FlowLikelihood:
    """By diffrax, with error control of z and of the integral together over the batch.

    Args:
        key, denoise, x0, process, trace: see ``flow_likelihood``.
        levels: [n >= 2]; the first and the last say where the flow ends and starts.
        method: "tsit5", "dopri5" or "heun".
        rtol, atol: relative and absolute tolerance of a step's error, > 0.
        max_steps: largest number of steps; more is an error at run time.

    Raises:
        ValueError: for an unknown method, or a tolerance that is not positive.
    """
    if method not in ADAPTIVE:
        raise ValueError(f"flow_adaptive method {method!r}: known are {', '.join(ADAPTIVE)}")
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"flow_adaptive(rtol={rtol}, atol={atol}): both must be positive")
    field = _field(key, denoise, x0, process, trace)
    noisy, clean = _ends(levels)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda u, state, args: field(jnp.asarray(u), state)),
        ADAPTIVE[method](),
        t0=FLOW.clock(clean),
        t1=FLOW.clock(noisy),
        dt0=None,
        y0=(_start(x0, clean), jnp.zeros(x0.shape[:1], x0.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
    )
    assert solution.ys is not None
    z, log_volume = (part[0] for part in solution.ys)
    return _likelihood(z, log_volume, clean, noisy)


def _field(key, denoise, x0, process, trace) -> Callable[[Array, Any], tuple[Array, Array]]:
    """(u, (z, integral so far)) -> derivatives in u of both."""
    trace = hutchinson() if trace is None else trace
    probes = trace.draw(key, x0)

    def field(u, state):
        level = process.at_log_snr(FLOW.log_snr(u))

        def velocity(z):
            return FLOW.velocity(denoise(like(FLOW.scale(level), z) * z, level)).astype(z.dtype)

        return trace.apply(probes, velocity, state[0])

    return field


def _move(state: Any, h: Array, row: Sequence[float], slopes: Sequence[Any]) -> Any:
    """state + h·Σ_i row_i·slope_i, in the state's dtypes."""
    for a, slope in zip(row, slopes, strict=True):
        state = jax.tree.map(lambda x, d, a=a: x + (a * h * d).astype(x.dtype), state, slope)
    return state


def _ends(levels: NoiseLevel) -> tuple[NoiseLevel, NoiseLevel]:
    take = lambda i: jax.tree.map(lambda leaf: leaf[i], levels)
    return take(0), take(-1)


def _start(x0: Array, clean: NoiseLevel) -> Array:
    return (x0 * like(clean.alpha / FLOW.scale(clean), x0)).astype(x0.dtype)


def _likelihood(z: Array, log_volume: Array, clean: NoiseLevel, noisy: NoiseLevel):
    """Bits per dimension from (1), with the units of z at both ends."""
    size = math.prod(z.shape[1:])
    variance = noisy.alpha**2 + noisy.sigma**2
    square = jnp.sum((FLOW.scale(noisy) * z) ** 2, axis=tuple(range(1, z.ndim))) / size
    prior = 0.5 * (square / variance + jnp.log(2 * jnp.pi * variance))
    units = jnp.log(FLOW.scale(noisy)) + jnp.log(clean.alpha / FLOW.scale(clean))
    prior, volume = prior / math.log(2), -(log_volume / size + units) / math.log(2)
    return FlowLikelihood(prior + volume, prior, volume)


PROBES: dict[str, Callable[..., Array]] = {
    "rademacher": jax.random.rademacher,
    "gaussian": jax.random.normal,
}

FIXED: dict[str, Tableau] = {"heun": HEUN, "rk4": RK4}
