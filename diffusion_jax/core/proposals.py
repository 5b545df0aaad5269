"""Proposals: how training draws its noise levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.process import Process
from diffusion_jax.core.types import NoiseLevel


class Proposal(NamedTuple):
    """A distribution of training's noise levels.

    Attributes:
        init: () -> state.
        draw: (key, n, process, state) -> (levels [n], importance weights [n]).  The weights are 1
            where the distribution of levels is itself the choice, and 1/(density) where it only
            reduces variance.
        update: (state, levels, losses [n]) -> state.
    """

    draw: Callable[[Array, int, Process, Any], tuple[NoiseLevel, Array]]
    init: Callable[[], Any] = lambda: ()
    update: Callable[[Any, NoiseLevel, Array], Any] = lambda state, level, loss: state


def _of_times(times: Callable[[Array, int], Array]) -> Proposal:
    def draw(key, n, process, state):
        t = process.quantise(times(key, n))
        return process.at(t), jnp.ones_like(t)

    return Proposal(draw)


def _uniform(key: Array, n: int) -> Array:
    # (0, 1): t = 0 exactly may have an infinite λ, and an infinite SNR in a weight.
    return jax.random.uniform(key, (n,), minval=1e-6, maxval=1.0)


def uniform() -> Proposal:
    """t ~ U(0, 1), or i ~ U{1..T} on a table (Ho et al. 2020, algorithm 1)."""
    return _of_times(_uniform)


def stratified() -> Proposal:
    """One t in each of n equal parts of (0, 1): the same distribution, with less variance."""
    return _of_times(lambda key, n: (jnp.arange(n) + _uniform(key, n)) / n)


def antithetic() -> Proposal:
    """t_i = (u + i/n) mod 1 with one u for the batch (Kingma et al. 2021, appendix I)."""
    return _of_times(lambda key, n: jnp.clip((_uniform(key, 1) + jnp.arange(n) / n) % 1.0, 1e-6))


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Proposal:
    """logit t ~ N(mean, std²) (Esser et al. 2024, eq. 19)."""
    return _of_times(lambda key, n: jax.nn.sigmoid(mean + std * jax.random.normal(key, (n,))))


def u_shaped(a: float = 4.0) -> Proposal:
    """p(t) ~ e^(a·t) + e^(a·(1 - t)), near both ends of time (Lee et al. 2024, section 4).

    For reflow's pairs the middle is learned quickly, the ends are not.

    Raises:
        ValueError: if a is not above 0.
    """
    if a <= 0:
        raise ValueError(f"u_shaped(a={a}) must be above 0; uniform() is its limit at 0")

    def times(key: Array, n: int) -> Array:
        t_key, end_key = jax.random.split(key)
        t = jnp.log1p(_uniform(t_key, n) * jnp.expm1(a)) / a
        return jnp.clip(jnp.where(jax.random.bernoulli(end_key, 0.5, (n,)), t, 1 - t), 1e-6)

    return _of_times(times)


def log_normal(mean: float = -1.2, std: float = 1.2) -> Proposal:
    """log(sigma/alpha) ~ N(mean, std²), beyond the schedule's ends too (Karras et al. 2022)."""

    def draw(key, n, process, state):
        log_s = mean + std * jax.random.normal(key, (n,))
        return process.at_log_snr(-2 * log_s), jnp.ones_like(log_s)

    return Proposal(draw)


class LossHistory(NamedTuple):
    """Running mean of loss² and number of draws, per bin of t, each [bins]."""

    mean_square: Array
    count: Array


def loss_aware(bins: int = 100, decay: float = 0.9, warm_up: int = 10) -> Proposal:
    """Draw t in proportion to sqrt(E[loss²]), corrected by importance weights.

    Nichol & Dhariwal 2021, eq. 18, with a running mean in place of their last-10 history.  Uniform
    until every bin was drawn ``warm_up`` times.

    Args:
        bins: equal parts of (0, 1].
        decay: decay of the running mean, per update of a bin.
        warm_up: draws of every bin before the importance sampling starts.
    """
    floor = 1e-3  # share of uniform draws, so that no bin is forgotten

    def density(state):
        p = jnp.sqrt(state.mean_square)
        p = (1 - floor) * p / jnp.maximum(p.sum(), 1e-20) + floor / bins
        return jnp.where(jnp.min(state.count) >= warm_up, p, 1 / bins)

    def draw(key, n, process, state):
        bin_key, within = jax.random.split(key)
        p = density(state)
        index = jax.random.categorical(bin_key, jnp.log(p), shape=(n,))
        t = process.quantise((index + _uniform(within, n)) / bins)
        return process.at(t), 1 / (bins * p[index])

    def update(state, level, loss):
        # ceil - 1 matches the half-open parts ((k, k+1]/bins) that quantise's ceil leaves t in.
        index = jnp.clip(jnp.ceil(level.t * bins).astype(jnp.int32) - 1, 0, bins - 1)
        total = lambda value: jnp.zeros(bins).at[index].add(value)
        seen = total(jnp.ones_like(loss))
        mean = total(loss**2) / jnp.maximum(seen, 1)
        moved = decay * state.mean_square + (1 - decay) * mean
        first = jnp.where(state.count > 0, moved, mean)
        return LossHistory(jnp.where(seen > 0, first, state.mean_square), state.count + seen)

    return Proposal(draw, lambda: LossHistory(jnp.zeros(bins), jnp.zeros(bins)), update)


PROPOSALS: dict[str, Callable[..., Proposal]] = {
    "uniform": uniform,
    "stratified": stratified,
    "antithetic": antithetic,
    "logit_normal": logit_normal,
    "log_normal": log_normal,
    "u_shaped": u_shaped,
    "loss_aware": loss_aware,
}
