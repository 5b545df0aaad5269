"""DPM-Solver and DPM-Solver++: exponential integrators in half log-SNR (Lu et al. 2022a, 2022b).

Every method adds Taylor terms (``steps.Form.terms``) to the first-order step.  The stochastic ones
integrate the reverse SDE whose noise is η times that of DDPM's in variance rate: the decay of the
data form is then over (1 + η)·h in place of h (Lu et al. 2022b, appendix B, at η = 1; Gonzalez et
al. 2023), and

    x_s ∋ sigma_s·sqrt(1 - exp(-2ηh))·z.                                                      (1)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.noise import Noise, joined, white
from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers.ddim import ancestral_split
from diffusion_jax.core.solvers.history import Cap, add, allowed_order, check_order, empty, push
from diffusion_jax.core.solvers.steps import (
    EPS,
    X0,
    Form,
    Terms,
    between,
    finite,
    follow,
    log_step,
)
from diffusion_jax.core.types import NoiseLevel, Solver, like


def dpm_solver(process: Process, order: int = 3) -> Solver:
    """Single-step DPM-Solver-2 or -3 on eps: as many network evaluations per step as its order.

    (Lu et al. 2022a, algorithms 1 and 2, with r_1 = 1/2, and r_1 = 1/3, r_2 = 2/3.)

    Args:
        process: gives the levels in between.
        order: 2 or 3 (DPM-Solver-1 is DDIM).
    """
    check_order("dpm_solver", order, least=2, most=3)
    return dpm_2(process) if order == 2 else _single_3(EPS, process)


def dpm_2(process: Process, share: float = 0.5) -> Solver:
    """DPM-Solver-2 = k-diffusion's DPM2 at share 1/2: the midpoint in log-SNR, order 2, 2 NFE.

    (Lu et al. 2022a, DPM-Solver-2.)

    Args:
        process: gives the level in between.
        share: r_1, its position in log-SNR, in (0, 1).
    """
    return _single_2(EPS, process, share)


def dpmpp_2s(process: Process, share: float = 0.5) -> Solver:
    """Single-step DPM-Solver++(2S) on x0: order 2, 2 NFE per step (Lu et al. 2022b, algorithm 1).

    Args:
        process: gives the level in between.
        share: r, its position in log-SNR, in (0, 1).
    """
    return _single_2(X0, process, share)


def _single_2(form: Form, process: Process, share: float) -> Solver:
    def step(key, denoise, x, now, nxt, state):
        del key
        first = denoise(x, now)
        level = between(process, now, nxt, share)
        change = form.value(denoise(follow(first, level), level)) - form.value(first)
        whole, _, _ = form.terms(log_step(now, nxt), nxt)
        return follow(first, nxt) + like(whole / (2 * share), x) * change, state

    return Solver(lambda x: (), step)


def dpmpp_3s(process: Process) -> Solver:
    """Single-step DPM-Solver++ of order 3 on x0, 3 NFE per step (as Lu et al. 2022a, alg. 2)."""
    return _single_3(X0, process)


def _single_3(form: Form, process: Process, r1: float = 1 / 3, r2: float = 2 / 3) -> Solver:
    def step(key, denoise, x, now, nxt, state):
        del key
        first = denoise(x, now)
        one, two = between(process, now, nxt, r1), between(process, now, nxt, r2)
        change = lambda x, level: form.value(denoise(x, level)) - form.value(first)
        early = change(follow(first, one), one)
        _, slope, _ = form.terms(log_step(now, two), two)
        late = change(follow(first, two) + like(slope * r2 / r1, x) * early, two)
        _, slope, _ = form.terms(log_step(now, nxt), nxt)
        return follow(first, nxt) + like(slope / r2, x) * late, state

    return Solver(lambda x: (), step)


RULES = ("midpoint", "exact")


def multistep(
    form: Form,
    order: int,
    eta: float | Array = 0.0,
    rule: str = "midpoint",
    curvature: float = 1.0,
    lower_order_final: int | Array | Cap | None = None,
    noise: Noise = white,
) -> Solver:
    """DPM-Solver's and DPM-Solver++'s multistep methods, ODE and SDE, 1 NFE per step.

    Args:
        form: ``steps.EPS`` (then eta must be 0) or ``steps.X0``.
        order: 1 to 3 values.
        eta: 0 for the ODE, 1 for the reverse SDE of DDPM; may be traced.
        rule: the factor of the slope in a second-order step: half of that of the value, "midpoint"
            (the papers' 2M), or its own, "exact" (k-diffusion's "heun").
        curvature: multiple of the third-order term; see ``dpmpp_3m``.
        lower_order_final: see ``history.allowed_order``.
        noise: source of fresh noise.

    Raises:
        ValueError: for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule = {rule!r}: known are {', '.join(RULES)}")
    ode = isinstance(eta, (int, float)) and eta == 0

    def step(key, denoise, x, now, nxt, history):
        prediction = denoise(x, now)
        history = push(history, form.value(prediction), now)
        h = log_step(now, nxt)
        lost = 0.0 if ode else jnp.where(eta == 0, 0.0, eta * h)
        decay = 1.0 if ode else jnp.exp(-lost)
        moved = follow(prediction, nxt._replace(sigma=nxt.sigma * decay))
        terms = form.terms((1 + eta) * h, nxt)
        reached = allowed_order(history, order, nxt, lower_order_final)
        moved = add(moved, _factors(history.levels, h, terms, reached, rule, curvature), history)
        if ode:
            return moved, history
        std = nxt.sigma * jnp.sqrt(jnp.maximum(-jnp.expm1(-2 * lost), 0.0))
        return moved + like(std, x) * noise(key, x, now, nxt), history

    return Solver(lambda x: empty(x, order), step)


def _factors(
    seen: NoiseLevel, h: Array, terms: Terms, order: Array, rule: str, curvature: float
) -> Array:
    """Factors [k, ...] of values_i - values_0, from the divided differences of up to three values.

    With gaps h0 = l_0 - l_1 and h1 = l_1 - l_2, h·D' = h·(D[0,1] + h0·D[0,1,2]) and h²·D'' =
    2·h²·D[0,1,2].  A value at pure noise is infinitely far and drops out.
    """
    whole, slope, curve = terms
    k = seen.log_snr.shape[0]
    if k == 1:
        return jnp.zeros(1)
    at = lambda i: jax.tree.map(lambda leaf: leaf[i], seen)
    gap = lambda i: log_step(at(i + 1), at(i))
    ratio = lambda a, b: finite(a / jnp.where(b == 0, jnp.inf, b))
    h0 = gap(0)
    second = -ratio(whole / 2 if rule == "midpoint" else slope, ratio(h0, h))
    if k == 2:
        return jnp.stack([jnp.zeros_like(second), jnp.where(order > 1, second, 0.0)])
    h1 = gap(1)
    bend = finite(slope * h * h0 + 2 * curvature * curve * h**2)
    third = -ratio(slope * h, h0) - ratio(bend, h0 * h1), ratio(bend, h1 * (h0 + h1))
    return jnp.stack(
        [jnp.zeros_like(second),
         jnp.where(order > 2, third[0], jnp.where(order > 1, second, 0.0)),
         jnp.where(order > 2, third[1], 0.0)]
    )  # fmt: skip


def dpm_multistep(
    order: int = 2, rule: str = "midpoint", lower_order_final: int | Array | Cap | None = None
) -> Solver:
    """Multistep DPM-Solver on eps, order 2 or 3 (Lu et al. 2022a; diffusers' "dpmsolver")."""
    check_order("dpm_multistep", order, least=2, most=3)
    return multistep(EPS, order, rule=rule, lower_order_final=lower_order_final)


def dpmpp_2m(rule: str = "midpoint", lower_order_final: int | Array | Cap | None = None) -> Solver:
    """DPM-Solver++(2M): order 2, 1 NFE per step (Lu et al. 2022b, algorithm 2).

    Args:
        rule: see ``multistep``.
        lower_order_final: see ``history.allowed_order``.
    """
    return multistep(X0, 2, rule=rule, lower_order_final=lower_order_final)


def dpmpp_3m(curvature: float = 1.0, lower_order_final: int | Array | Cap | None = None) -> Solver:
    """DPM-Solver++(3M): order 3, one network evaluation per step.

    The published code divides the second divided difference by 1 where the Taylor term h²·D''/2!
    of φ_3 wants 2: half of the term is left out, and the method is of order 2.  That of k-diffusion
    and diffusers is ``curvature=0.5``.

    Args:
        curvature: multiple of the second-derivative term: 1 for the Taylor expansion.
        lower_order_final: see ``history.allowed_order``.
    """
    return multistep(X0, 3, rule="exact", curvature=curvature, lower_order_final=lower_order_final)


def dpmpp_2m_sde(
    eta: float | Array = 1.0,
    rule: str = "midpoint",
    lower_order_final: int | Array | Cap | None = None,
    noise: Noise = white,
) -> Solver:
    """SDE-DPM-Solver++(2M): 1 NFE per step (Lu et al. 2022b, equation 18 and appendix B).

    Args:
        eta: noise, 0 (the ODE) to 1 (DDPM's) and beyond; may be traced.
        rule, lower_order_final, noise: see ``multistep``.
    """
    return multistep(X0, 2, eta, rule, lower_order_final=lower_order_final, noise=noise)


def dpmpp_3m_sde(
    eta: float | Array = 1.0,
    curvature: float = 1.0,
    lower_order_final: int | Array | Cap | None = None,
    noise: Noise = white,
) -> Solver:
    """SDE-DPM-Solver++(3M), 1 NFE per step; k-diffusion's is ``curvature=0.5``.

    Args:
        eta, lower_order_final, noise: see ``dpmpp_2m_sde``.
        curvature: see ``dpmpp_3m``.
    """
    return multistep(X0, 3, eta, "exact", curvature, lower_order_final, noise)


def dpmpp_sde(
    process: Process, eta: float | Array = 1.0, share: float = 0.5, noise: Noise = white
) -> Solver:
    """DPM-Solver++ (SDE), single step, 2 NFE (Lu et al. 2022b; as published in k-diffusion).

    Both halves are DDIM(eta) steps from ``now``; the second uses the x0 found half way.  The noise
    of the whole step contains that of its first half, without which the weak order would be 1.

    Args:
        process: gives the level in between.
        eta: share of the posterior's noise, as in ``ddim``; may be traced.
        share: position in log-SNR of the level in between.
        noise: source of fresh noise.
    """

    def step(key, denoise, x, now, nxt, state):
        early, late = jax.random.split(key)
        first = denoise(x, now)
        level = between(process, now, nxt, share)
        up, down = ancestral_split(now, level, eta)
        z = noise(early, x, now, level)
        half = follow(first, level._replace(sigma=down)) + like(up, x) * z
        change = denoise(half, level).x0 - first.x0
        up, down = ancestral_split(now, nxt, eta)
        z = joined(z, noise(late, x, level, nxt), now, level, nxt)
        moved = follow(first, nxt._replace(sigma=down)) + like(up, x) * z
        # What x0 weighs in a step to ``down``: alpha_s·(1 - (down/alpha_s)/(sigma_t/alpha_t)).
        factor = (nxt.alpha - down * now.alpha / now.sigma) / (2 * share)
        from_noise = now.alpha == 0  # h is infinite: a first-order step
        return moved + like(jnp.where(from_noise, 0.0, factor), x) * change, state

    return Solver(lambda x: (), step)
