"""A figure: a measured number with its uncertainty and its number of samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Figure(NamedTuple):
    """A measured number.

    Attributes:
        value: the number.
        spread: standard deviation over bootstrap resamples, or standard error.
        n: number of samples.
    """

    value: float
    spread: float
    n: int


def bootstrap(
    statistic: Callable[..., float], *samples: np.ndarray, resamples: int = 20, seed: int = 0
) -> float:
    """Standard deviation of a statistic over resamples with replacement.

    Args:
        statistic: function of arrays shaped as ``samples``.
        samples: [n, ...] each, resampled independently along the first axis (Efron 1979).
        resamples: number of resamples.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    draw = lambda sample: sample[rng.integers(0, len(sample), len(sample))]
    values = [statistic(*(draw(sample) for sample in samples)) for _ in range(resamples)]
    return float(np.std(values, ddof=1))


def proportion(hits: np.ndarray) -> Figure:
    """A share of successes with its binomial standard error (Agresti & Coull 1998).

    Args:
        hits: bool [n].
    """
    n = len(hits)
    smoothed = (float(hits.sum()) + 2) / (n + 4)
    return Figure(float(hits.mean()), float(np.sqrt(smoothed * (1 - smoothed) / (n + 4))), n)


def mean_of(x: np.ndarray) -> Figure:
    """The mean of [n] with its standard error, which is NaN for n = 1."""
    error = x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan
    return Figure(float(x.mean()), float(error), len(x))


def table(figures: Mapping[str, Figure]) -> str:
    """One line for each figure: name, value ± spread and n, aligned."""
    width = max(len(name) for name in figures)
    return "\n".join(
        f"{name:<{width}}  {f.value:10.4g} ± {f.spread:<8.2g}  n = {f.n}"
        for name, f in figures.items()
    )
