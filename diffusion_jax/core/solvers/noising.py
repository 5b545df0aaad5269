"""Solver -> Solver: add noise around the steps of any solver.

A solver's memory ends where noise is added to x: what a corrector remembers (``unipc``,
``sa_solver``) would take the noise off again.  So a multistep solver is of the first order in a
step that follows noise; where none is added it is what it is by itself.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.noise import Noise, white
from diffusion_jax.core.process import Process, transition
from diffusion_jax.core.solvers.ddim import ancestral_split
from diffusion_jax.core.solvers.dpm import dpm_2, dpmpp_2s
from diffusion_jax.core.solvers.runge_kutta import heun
from diffusion_jax.core.solvers.steps import follow, one_level
from diffusion_jax.core.types import NoiseLevel, Prediction, Solver, like

# A step to the clean level itself has no finite log-SNR; this far beyond the next is as good.
_BEYOND = 30.0
_LEAST = 1e-12  # of a mean square that is divided by


def ancestral_steps(
    solver: Solver, process: Process, eta: float | Array = 1.0, noise: Noise = white
) -> Solver:
    """Step to a cleaner level than ``nxt``, then add fresh noise up to it.

    The level is that of DDIM(eta)'s kept noise, so with ``ddim()`` inside this *is* DDIM(eta);
    around a second-order solver it is k-diffusion's "ancestral" version of it.

    Args:
        solver: a deterministic one of a single step; another starts each step without memory.
        process: gives the level between.
        eta: share of the posterior's noise; may be traced.
        noise: where fresh noise comes from.
    """

    def step(key, denoise, x, now, nxt, state):
        step_key, noise_key = jax.random.split(key)
        up, down = ancestral_split(now, nxt, eta)
        log_snr = 2 * (jnp.log(nxt.alpha) - jnp.log(down))
        level = process.at_log_snr(jnp.minimum(log_snr, nxt.log_snr + _BEYOND))
        x, state = solver.step(step_key, denoise, x, now, level, state)
        # From the scale of that level to that of ``nxt``: alpha_s/alpha_down.
        x = like(nxt.alpha / level.alpha, x) * x
        x = x + like(up, x) * noise(noise_key, x, now, nxt)
        return x, _forget(solver, x, state, jnp.any(up > 0))

    return solver._replace(step=step)


def churned(
    solver: Solver,
    process: Process,
    gamma: float | Array,
    s_min: float | Array = 0.0,
    s_max: float | Array = jnp.inf,
    s_noise: float | Array = 1.0,
    noise: Noise = white,
) -> Solver:
    """EDM's stochastic churn: add noise to s·(1 + γ), then step (Karras et al. 2022, algorithm 2).

    Before every step, the one to the clean level included.

    Args:
        solver: a deterministic one; the paper's is Heun's.
        process: gives the noisier level.
        gamma: γ = min(S_churn/N, sqrt(2) - 1); may be traced.
        s_min, s_max: S_tmin and S_tmax: range of s = sigma/alpha in which to churn.
        s_noise: standard deviation of the added noise.
        noise: where it comes from.
    """

    def raised(key, x, now):
        """(x, its level, γ there), after the noise; at pure noise nothing is noisier."""
        s = jnp.exp(-now.log_snr / 2)
        inside = (s >= s_min) & (s <= s_max) & (now.alpha > 0)
        growth = jnp.where(inside, gamma, 0.0)
        level = process.at_log_snr(now.log_snr - 2 * jnp.log1p(growth))
        level = jax.tree.map(lambda new, old: jnp.where(growth > 0, new, old), level, now)
        ratio = jnp.where(growth > 0, level.alpha / jnp.where(inside, now.alpha, 1.0), 1.0)
        # (s·(1 + γ))² - s² without cancelling: where γ is 0, so is the noise, exactly.
        std = s_noise * ratio * now.sigma * jnp.sqrt(growth * (growth + 2))
        x = like(ratio, x) * x + like(std, x) * noise(key, x, now, level)
        return x, level, growth

    def step(key, denoise, x, now, nxt, state):
        noise_key, step_key = jax.random.split(key)
        x, level, growth = raised(noise_key, x, now)
        state = _forget(solver, x, state, jnp.any(growth > 0))
        return solver.step(step_key, denoise, x, level, nxt, state)

    def finish(key, denoise, x, level):
        noise_key, finish_key = jax.random.split(key)
        x, level, _ = raised(noise_key, x, level)
        return solver.finish(finish_key, denoise, x, level)

    return solver._replace(step=step, finish=finish)


def _forget(solver: Solver, x: Array, state: Any, noised: Array) -> Any:
    """The state, or that of a solver that starts at x where noise was added."""
    choose = lambda new, old: jnp.where(noised, jnp.asarray(new, old.dtype), old)
    return jax.tree.map(choose, _as(state, solver.init(x)), state)


def _as(state: Any, new: Any) -> Any:
    """``new`` with the axes of ``state``, whose levels may be those of frames or pixels."""
    widen = lambda a, like_a: jnp.broadcast_to(
        jnp.reshape(a, jnp.shape(a) + (1,) * (jnp.ndim(like_a) - jnp.ndim(a))), jnp.shape(like_a)
    )
    return jax.tree.map(widen, new, state)


def renoise(key: Array, x: Array, now: NoiseLevel, nxt: NoiseLevel, noise: Noise = white) -> Array:
    """A draw of q(x_nxt | x_now) at a noisier level (``process``, equation 1)."""
    law = transition(nxt, now)  # whose "now" is the noisier level
    ratio = jnp.where(now.alpha > 0, nxt.alpha / jnp.where(now.alpha > 0, now.alpha, 1.0), 1.0)
    std = jnp.sqrt(jnp.maximum(law.forward_variance, 0.0))
    return like(ratio, x) * x + like(std, x) * noise(key, x, now, nxt)


def renoising(solver: Solver, noise: Noise = white) -> Solver:
    """Steps to a noisier level add fresh noise by q(x_t | x_s); others are the solver's.

    On a grid that goes up and down (``grids.restart``) this is restart sampling (Xu et al. 2023,
    algorithm 1), for any solver.
    """

    def step(key, denoise, x, now, nxt, state):
        one_level("renoising", now)
        down = lambda key, x, state: solver.step(key, denoise, x, now, nxt, state)

        def up(key, x, state):
            x = renoise(key, x, now, nxt, noise)
            return x, solver.init(x)

        return jax.lax.cond(nxt.log_snr < now.log_snr, up, down, key, x, state)

    return solver._replace(step=step)


def skipping(solver: Solver) -> Solver:
    """Steps between equal levels cost nothing: one compiled sampler for any number of steps.

    With ``grids.pad``.  The network is not evaluated in a skipped step (except under ``vmap`` over
    grids, where both branches are computed and one is chosen).
    """

    def step(key, denoise, x, now, nxt, state):
        walk = lambda x, state: solver.step(key, denoise, x, now, nxt, state)
        stay = lambda x, state: (x, state)
        return jax.lax.cond(jnp.all(now.log_snr == nxt.log_snr), stay, walk, x, state)

    return solver._replace(step=step)


def edm(
    process: Process,
    steps: int | Array,
    s_churn: float | Array = 40.0,
    s_min: float | Array = 0.05,
    s_max: float | Array = 50.0,
    s_noise: float | Array = 1.003,
    noise: Noise = white,
) -> Solver:
    """EDM's stochastic sampler: churned Heun (Karras et al. 2022, algorithm 2).

    Args:
        process: the model's.
        steps: N, number of levels of the grid.
        s_churn, s_min, s_max, s_noise: of the paper, whose CIFAR and ImageNet values are
            (30 to 80, 0.01 to 0.05, 1 to 50, 1.003 to 1.007); 0 churn is ``heun()``.
        noise: where fresh noise comes from.
    """
    gamma = jnp.minimum(jnp.asarray(s_churn) / steps, jnp.sqrt(2.0) - 1)
    return churned(heun(), process, gamma, s_min, s_max, s_noise, noise)


def dpm_2_ancestral(process: Process, eta: float | Array = 1.0, noise: Noise = white) -> Solver:
    """DPM2 ancestral of k-diffusion: two network evaluations a step."""
    return ancestral_steps(dpm_2(process), process, eta, noise)


def dpmpp_2s_ancestral(process: Process, eta: float | Array = 1.0, noise: Noise = white) -> Solver:
    """DPM-Solver++(2S) ancestral of k-diffusion: two network evaluations a step."""
    return ancestral_steps(dpmpp_2s(process), process, eta, noise)


def consistency(noise: Noise = white) -> Solver:
    """Jump to the predicted x0, add fresh noise to the next level (Song et al. 2023, algorithm 1).

    The sampler of consistency models and of LCM; of any denoiser it is the noisiest one.
    """

    def step(key, denoise, x, now, nxt, state):
        x0 = denoise(x, now).x0
        return follow(Prediction(x0, noise(key, x, now, nxt)), nxt), state

    return Solver(lambda x: (), step)


def langevin(
    solver: Solver, snr: float | Array = 0.16, corrections: int = 1, noise: Noise = white
) -> Solver:
    """Predictor-corrector: after each step, Langevin steps at the level reached.

    x += ε·score + sqrt(2ε)·z with ε = 2·(snr·‖z‖/‖score‖)² (Song et al. 2021, algorithms 4 and 5),
    in y = x/alpha, so that it is the same on every path.  Differences to the paper:

    * its VP case has a factor alpha_i = 1 - β_i in ε (the ratio of alpha² over one step of the
      table, 0.98 to 1), which is no function of the level; snr·sqrt(1 - β_i) gives that step;
    * it averages both norms over the batch.  Here ‖z‖ is its root mean square, the root of the
      number of dimensions, and ‖score‖ that of each example, which depends on no other;
    * ε <= sigma², where the score of an example is near 0.

    Args:
        solver: the predictor.
        snr: r, signal-to-noise ratio of a step.
        corrections: Langevin steps, >= 1, one network evaluation each.
        noise: where their noise comes from; it must be new at every call (not ``brownian``).
    """

    def step(key, denoise, x, now, nxt, state):
        step_key, noise_key = jax.random.split(key)
        x, state = solver.step(step_key, denoise, x, now, nxt, state)

        def correct(x, key):
            # score = -eps/sigma; sigma stays out of the division: ε = share·sigma².
            eps, sigma = denoise(x, nxt).eps, like(nxt.sigma, x)
            square = jnp.mean(eps**2, axis=tuple(range(1, x.ndim)), keepdims=True)
            share = jnp.minimum(2 * snr**2 / jnp.maximum(square, _LEAST), 1.0)
            z = noise(key, x, nxt, nxt)
            moved = x - share * sigma * eps + jnp.sqrt(2 * share) * sigma * z
            return moved.astype(x.dtype), None

        x, _ = jax.lax.scan(correct, x, jax.random.split(noise_key, corrections))
        return x, _forget(solver, x, state, jnp.asarray(True))

    return solver._replace(step=step)
