"""Signs of failing training, each reported once with what to try.

They are read from metrics that the host has anyway, so the device does nothing for them.  A sign is
a function of past metrics, and silent where a run does not report the metric; thresholds are far
from the values of healthy runs, as false alarms are not read.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import numpy as np

WINDOW = 100
"""Number of steps of a median."""


class Series:
    """One metric over the steps since the start, without non-finite values.

    Attributes:
        recent: the last ``WINDOW`` values.
        medians: medians of the complete windows so far, in order.
        lowest: the smallest of them.
        start: step of the first value; above 1 in a resumed run.
    """

    def __init__(self, start: int):
        self.start = start
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.medians: list[float] = []
        self.lowest = math.inf
        self._count = 0

    def add(self, value: float) -> None:
        self.recent.append(value)
        self._count += 1
        if self._count % WINDOW == 0:
            self.medians.append(median(self.recent))
            self.lowest = min(self.lowest, self.medians[-1])


Seen = Mapping[str, Series]


class Sign(NamedTuple):
    """A sign of failure.

    Attributes:
        shows: (metrics so far) -> what is wrong, or "".
        mend: what to try.
    """

    shows: Callable[[Seen], str]
    mend: str


class Watch:
    """Warnings about a run, step by step.

    Attributes:
        reported: names of the signs that were reported, in order; each is reported once.
    """

    def __init__(self):
        self.reported: list[str] = []
        self._seen: dict[str, Series] = {}

    def see(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Record the numbers of a step or of a hook.

        Returns:
            A sentence for each sign that appears for the first time.
        """
        for name, value in metrics.items():
            if name in LOOKED_AT and math.isfinite(value):
                self._seen.setdefault(name, Series(step)).add(float(value))
        found = []
        for name, sign in SIGNS.items():
            if name not in self.reported and (wrong := sign.shows(self._seen)):
                self.reported.append(name)
                found.append(f"step {step}: {wrong}; {sign.mend}")
        return found

    def counts(self) -> dict[str, float]:
        """{"warnings": their number}, {} for none: a field of metrics.jsonl."""
        return {"warnings": float(len(self.reported))} if self.reported else {}


def spread(samples: np.ndarray, groups: np.ndarray) -> float:
    """Spread of samples with the same condition, in the data's unit: 0 if they are equal.

    Args:
        samples: [n, ...], uint8 images, or points.
        groups: [n], the class or prompt of each; if no group has two samples, all samples are
            compared.

    Returns:
        The root mean square difference from the group's mean; NaN for a single sample.
    """
    x = samples.astype(np.float64).reshape(len(samples), -1)
    x = x / 127.5 if samples.dtype == np.uint8 else x
    parts = [x[groups == group] for group in np.unique(groups)]
    parts = [part for part in parts if len(part) > 1] or [x]
    if len(x) < 2:
        return math.nan
    squares = sum(((part - part.mean(0)) ** 2).sum() for part in parts)
    freedom = sum(len(part) - 1 for part in parts) * x.shape[1]
    return math.sqrt(squares / freedom)


def _spikes(seen: Seen) -> str:
    norms = seen["grad_norm"].recent if "grad_norm" in seen else ()
    if len(norms) < 20 or norms[-1] < SPIKE * (usual := median(norms)):
        return ""  # only a high step is examined, so that most cost one comparison
    high = sum(norm > SPIKE * usual for norm in norms)
    if high < 3:
        return ""
    return f"grad_norm was over {SPIKE:g} times its median of {usual:.3g} {high} times in {WINDOW}"


def _exploding(seen: Seen) -> str:
    if "loss" not in seen or not seen["loss"].medians:
        return ""
    lowest, recent = seen["loss"].lowest, seen["loss"].recent
    # A loss may have any sign: only values above 0 are compared.
    if lowest <= 0 or recent[-1] < GROWN * lowest or (now := median(recent)) < GROWN * lowest:
        return ""
    return f"loss is {now:.3g}, over {GROWN:g} times its lowest median of {lowest:.3g}"


def _stuck(seen: Seen) -> str:
    """Adaptively weighted losses stay at 1 whatever is learned: those methods report "error"."""
    for name in ("error" if "error" in seen else "loss", "param_norm"):
        last = seen[name].medians[-STILL:] if name in seen else []
        if len(last) == STILL and max(last) - min(last) <= 1e-6 * abs(last[-1]):
            return f"{name} has been {last[-1]:.4g} to six digits for {STILL * WINDOW} steps"
    return ""


def _flat(seen: Seen) -> str:
    name = "error" if "error" in seen else "loss"
    if name not in seen or seen[name].start > 1 or "generator" in seen:
        return ""
    first, *later = seen[name].medians or [math.nan]
    # A tenth lower in any window is progress, even if lost again; less is noise of the batches.
    if first <= 0 or len(later) != FLAT or min(later) < 0.9 * first or median(later) < 0.95 * first:
        return ""
    return f"{name} has not fallen below that of its first {WINDOW} steps, {first:.3g}"


def _saturated(seen: Seen) -> str:
    if not {"logit_real", "logit_made", "generator"} <= set(seen):
        return ""
    made, games = seen["logit_made"].medians, seen["generator"].medians
    if len(games) < 2 or len(made) != len(seen["logit_real"].medians):
        return ""
    gap = seen["logit_real"].medians[-1] - made[-1]
    if gap < APART or games[-1] <= games[-2]:
        return ""
    return f"the discriminator's logits are {gap:.3g} apart and the generator's loss grows"


def _constant(name: str, least: float, what: str) -> Callable[[Seen], str]:
    def shows(seen: Seen) -> str:
        if name not in seen or seen[name].recent[-1] >= least:
            return ""
        return f"{what} ({name} is {seen[name].recent[-1]:.2g}, below {least:g})"

    return shows


SPIKE = 10.0
GROWN = 10.0
STILL = 5  # windows
FLAT = 20  # windows before it is checked
APART = 8.0  # of logits: a discriminator that errs once in 3000
LEAST_SPREAD = 0.05  # of outputs over a batch, the data's being 1
LEAST_OF_SAMPLES = 0.02  # in [-1, 1]: two and a half steps of 255

SIGNS: dict[str, Sign] = {
    "spikes": Sign(
        _spikes,
        "try a smaller config.optimizer.learning_rate, a longer optimizer.warmup or a smaller "
        "optimizer.clip, and look at the data for what is damaged",
    ),
    "exploding": Sign(
        _exploding,
        "go back to a checkpoint before it, with a smaller config.optimizer.learning_rate or "
        "optimizer.clip",
    ),
    "stuck": Sign(
        _stuck,
        "the network learns nothing: is config.optimizer.learning_rate above 0, are the data one "
        "value, has a weight of the loss become 0?",
    ),
    "flat": Sign(
        _flat,
        "that may be right of a student whose target moves; else try another "
        "config.optimizer.learning_rate, and see that samples/ improve",
    ),
    "saturated": Sign(
        _saturated,
        "the discriminator has won: make it slower or weaker (its learning rate, its width), or "
        "give the game less weight",
    ),
    "constant": Sign(
        _constant("spread", LEAST_SPREAD, "the student's outputs are all alike"),
        "it has collapsed: start again from the teacher with a smaller learning rate, a slower "
        "average, or without a target that learns from itself",
    ),
    "alike": Sign(
        _constant("sample_spread", LEAST_OF_SAMPLES, "samples are all alike"),
        "look at samples/: it has collapsed, or a sampler of a few steps was asked for too early",
    ),
}
LOOKED_AT = {
    "grad_norm", "param_norm", "loss", "error", "logit_real", "logit_made", "generator", "spread",
    "sample_spread",
}  # fmt: skip
