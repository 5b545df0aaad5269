"""How long a run is, and how often it does what."""

from __future__ import annotations

from typing import NamedTuple


class Plan(NamedTuple):
    """How long, and how often what; all in optimiser steps.

    Attributes:
        steps: to have done at the end, earlier sessions included.
        accumulate: micro-batches a step.
        steps_per_call: steps a dispatch.
        log_every: a line of metrics, means since the line before.
        checkpoint_every: a checkpoint; 0 for the end only.
        keep: newest checkpoints to keep.
        keep_every: checkpoints to keep for good; 0 for none.
        skip_nonfinite: steps of a loss or gradient that is not finite to pass over, each start,
            before the run stops; their batch and draws are then lost.
        trace: "first:last", the steps that a profiler's trace is taken of; "" for none.
    """

    steps: int
    accumulate: int = 1
    steps_per_call: int = 1
    log_every: int = 20
    checkpoint_every: int = 500
    keep: int = 3
    keep_every: int = 0
    skip_nonfinite: int = 0
    trace: str = ""


def check(plan: Plan) -> None:
    """Raise ValueError for a number that is too small."""
    least = {"steps": 1, "accumulate": 1, "steps_per_call": 1, "log_every": 1}
    least |= {"checkpoint_every": 0, "skip_nonfinite": 0}
    for name, smallest in least.items():
        value = getattr(plan, name)
        if value < smallest:
            raise ValueError(f"config.train.{name} = {value} must be at least {smallest}")
