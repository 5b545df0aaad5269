"""Pairs of levels of one trajectory, which consistency losses compare.

``LevelPairs`` draws (now, nxt), ``now`` the noisier; their gap is a function of the training step,
which is traced.  Most divide the process's time into N(k) - 1 equal intervals: with the ``edm``
schedule that is the grid of Karras et al. 2022 (equation 5) between sigma_min and sigma_max.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.process import Process, clean
from diffusion_jax.core.types import NoiseLevel

LevelPairs = Callable[[Array, int, Process, Array], tuple[NoiseLevel, NoiseLevel]]
"""(key, b, process, training step) -> (now, nxt), [b] each."""

LevelCount = Callable[[Array], Array]
"""training step k -> N(k), the number of levels, at least 2."""


def constant(levels: int) -> LevelCount:
    """N levels throughout: consistency distillation's 18 (Song et al. 2023, table 3)."""
    return lambda k: jnp.asarray(levels)


def square_root(total: int, first: int = 2, last: int = 150) -> LevelCount:
    """N(k) = ⌈sqrt(k/K·((s1 + 1)² - s0²) + s0²) - 1⌉ + 1 (Song et al. 2023, appendix C).

    Args:
        total: K, training steps.
        first, last: s0 and s1.
    """

    def count(k: Array) -> Array:
        share = jnp.clip(k / total, 0.0, 1.0)
        root = jnp.sqrt(share * ((last + 1) ** 2 - first**2) + first**2)
        # Allow for float32 rounding a perfect square's root above the integer.
        return jnp.ceil(root - 1 - 1e-4).astype(jnp.int32) + 1

    return count


def doubling(total: int, first: int = 10, last: int = 1280) -> LevelCount:
    """N(k) = min(s0·2^⌊k/K'⌋, s1) + 1, K' = ⌊K/(log2⌊s1/s0⌋ + 1)⌋ (Song & Dhariwal 2024, eq. 5)."""
    stage = max(1, math.floor(total / (math.log2(last // first) + 1)))
    return lambda k: jnp.minimum(first * 2.0 ** (k // stage), last).astype(jnp.int32) + 1


def uniform(count: LevelCount) -> LevelPairs:
    """One of the N(k) - 1 intervals, uniformly (Song et al. 2023, algorithms 2 and 3)."""

    def draw(key: Array, b: int, process: Process, step: Array):
        n = count(step) - 1
        return _interval(process, jax.random.randint(key, (b,), 0, n), n)

    return draw


def log_normal(count: LevelCount, mean: float = -1.1, std: float = 2.0) -> LevelPairs:
    """Interval i with the probability of N(mean, std²) between its log(sigma/alpha).

    Song & Dhariwal 2024, equation 6: log(sigma/alpha) is drawn from a normal truncated to the
    process, and its interval taken, which needs no table of N probabilities.
    """

    def draw(key: Array, b: int, process: Process, step: Array):
        n = count(step) - 1
        ends = (-process.at(t).log_snr / 2 for t in (0.0, 1.0))
        low, high = (jax.scipy.stats.norm.cdf((end - mean) / std) for end in ends)
        u = low + (high - low) * jax.random.uniform(key, (b,), jnp.result_type(float))
        log_s = mean + std * jax.scipy.special.ndtri(u)
        t = process.schedule.inverse(-2 * log_s)
        return _interval(process, jnp.clip(jnp.floor(t * n).astype(jnp.int32), 0, n - 1), n)

    return draw


def easing(
    stage: int, q: float = 2.0, k: float = 8.0, b: float = 1.0, mean: float = -1.1, std: float = 2.0
) -> LevelPairs:
    """From diffusion to consistency: r = t·(1 - n(t)/q^a), n(t) = 1 + k·sigmoid(-b·t), r >= 0.

    Geng et al. 2024, "Consistency Models Made Easy", equations 13 to 15, in t = sigma/alpha ~
    log-normal(mean, std), a = 1 + ⌊training step/stage⌋.  In the first stages r is 0 for most t:
    regression to the data, which is diffusion.

    Args:
        stage: training steps between two increments of a.
        q, k, b: constants of the schedule of r.
        mean, std: of log t.
    """

    def draw(key: Array, size: int, process: Process, step: Array):
        t = jnp.exp(mean + std * jax.random.normal(key, (size,), jnp.result_type(float)))
        closeness = (1 + k * jax.nn.sigmoid(-b * t)) / q ** (1.0 + step // stage)
        r = t * jnp.maximum(1 - closeness, 0.0)
        now = process.at_log_snr(-2 * jnp.log(t))
        inside = process.at_log_snr(-2 * jnp.log(jnp.where(r > 0, r, t)))
        nxt = jax.tree.map(lambda a, c: jnp.where(r > 0, a, c), inside, clean(now))
        return now, nxt

    return draw


def _interval(process: Process, i: Array, n: Array) -> tuple[NoiseLevel, NoiseLevel]:
    """Interval i of n equal ones of time, as (its end, its start); on a table, of its levels."""
    steps = process.schedule.steps

    def at(i: Array) -> NoiseLevel:
        t = i / n
        return process.at(t if steps is None else jnp.clip(jnp.round(t * steps), 1, steps) / steps)

    return at(i + 1), at(i)


LEVEL_PAIRS: dict[str, Callable[..., LevelPairs]] = {
    "uniform": uniform,
    "log_normal": log_normal,
    "easing": easing,
}

LEVEL_COUNTS: dict[str, Callable[..., LevelCount]] = {
    "constant": constant,
    "square_root": square_root,
    "doubling": doubling,
}
