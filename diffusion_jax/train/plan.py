"""Length of a run, and intervals of logs and checkpoints."""

from __future__ import annotations

from typing import NamedTuple


class Plan(NamedTuple):
    """Length and intervals, all in optimiser steps.

    Attributes:
        steps: total number of steps, earlier sessions included.
        accumulate: micro-batches of a step.
        steps_per_call: steps of a dispatch.
        log_every: interval of lines of metrics, means since the previous line.
        checkpoint_every: interval of checkpoints; 0 for the end only.
        keep: number of newest checkpoints to keep.
        keep_every: interval of checkpoints that are never deleted; 0 for none.
        skip_nonfinite: number of steps with a non-finite loss or gradient to skip in a session,
            before the run stops; their batch and draws are lost.
        trace: "first:last", the steps of a profiler trace; "" for none.
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
