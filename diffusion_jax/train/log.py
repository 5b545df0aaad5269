"""Logging of a run: metrics.jsonl, TensorBoard events, and means of metrics between two lines."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion_jax.files import whole
from diffusion_jax.train.events import Events

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"


class NonFinite(FloatingPointError):
    """A loss or gradient that is not finite.

    Attributes:
        step: the step that was not applied, counted from 1.
        metric: "loss" or "grad_norm".
    """

    def __init__(self, step: int, metric: str, value: float):
        self.step, self.metric = step, metric
        super().__init__(
            f"{metric} is {value} at step {step}; the parameters of step {step - 1}, the last good "
            "ones, are saved: look at that batch, or train anew with a smaller "
            "config.optimizer.learning_rate or config.optimizer.clip"
        )


class Log(NamedTuple):
    """The log of a run; only the first process writes.

    Attributes:
        line: (step, name -> number): one line of metrics.jsonl, and scalars of TensorBoard.
        show: (step, name -> image [h, w, c] uint8 or number): for TensorBoard only.
    """

    line: Callable[[int, Mapping[str, float]], None]
    show: Callable[[int, Mapping[str, Any]], None]


@contextmanager
def open_log(workdir: str | os.PathLike, start: int) -> Iterator[Log]:
    """Append to the logs of a run at step ``start``; their entries of later steps are removed."""
    if jax.process_index():
        yield Log(lambda step, numbers: None, lambda step, values: None)
        return
    path = Path(workdir) / METRICS
    truncate(path, start)
    purge = start + 1 if start else None
    # Unbuffered: on a full disk a buffer would fail again when the file is closed.
    with path.open("ab", buffering=0) as lines, Events(Path(workdir) / EVENTS, purge) as events:

        def line(step, numbers):
            rounded = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
            with _naming(workdir):
                lines.write((json.dumps({"step": step, **rounded}) + "\n").encode())
                events.write(step, numbers)

        def show(step, values):
            with _naming(workdir):
                events.write(step, values)

        yield Log(line, show)


@contextmanager
def _naming(workdir: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the logs of {workdir} cannot be written ({error.strerror or error}); make room on "
            "its disk, and the same command resumes from the last checkpoint"
        ) from None


def truncate(path: Path, step: int) -> None:
    """Remove lines of steps after ``step`` from metrics.jsonl, and an incomplete last line."""
    if not path.exists():
        return
    kept = [text for text in path.read_text().split("\n")[:-1] if _is_until(text, step)]
    with whole(path) as temporary:
        temporary.write_text("".join(text + "\n" for text in kept))


def _is_until(text: str, step: int) -> bool:
    try:
        return json.loads(text)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


class Meter:
    """Means of the metrics since the last line, the speed, and the share of time spent on data.

    The clock starts with the first reading, so that compilation does not count in the speed.

    Args:
        skip_nonfinite: number of non-finite steps to skip before it is an error.

    Attributes:
        skipped: number of steps skipped.
        broken_records: number of records of the data set replaced; set by the feed.
    """

    def __init__(self, skip_nonfinite: int = 0):
        self._last: float | None = None
        self._skip, self.skipped, self.broken_records = skip_nonfinite, 0, 0
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = self._timed = 0
        self._seconds = self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """Count time in which the host waited for the data pipeline."""
        if self._last is not None:
            self._waited += seconds

    def tick(self, steps: int) -> None:
        """Count steps that took the time since the last tick."""
        now = time.perf_counter()
        if self._last is not None:
            self._seconds += now - self._last
            self._timed += steps
        self._last = now

    def pause(self) -> None:
        """Do not count the time since the last tick, which was a checkpoint's or a hook's."""
        self._last = time.perf_counter() if self._last is not None else None

    def add(self, step: int, metrics: Mapping[str, float]) -> str:
        """Count one step's metrics.

        Returns:
            A sentence about a step that was skipped, else "".

        Raises:
            NonFinite: if its ``finite`` is False, and the allowed number was skipped already.
        """
        if not metrics["finite"]:
            name = "grad_norm" if math.isfinite(metrics["loss"]) else "loss"
            if self.skipped >= self._skip:
                raise NonFinite(step, name, metrics[name])
            self.skipped += 1
            return (
                f"{name} is {metrics[name]} at step {step}, which is passed over "
                f"({self.skipped} of at most {self._skip} by config.train.skip_nonfinite)"
            )
        for name, value in metrics.items():
            if name != "finite":
                self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        return ""

    def means(self) -> dict[str, float]:
        """Means of metrics since the last call, over applied steps, and counts of skipped ones."""
        means = {name: total / self._count for name, total in self._sums.items()}
        if self.skipped:
            means["skipped_steps"] = float(self.skipped)
        if self.broken_records:
            means["broken_records"] = float(self.broken_records)
        if self._timed:
            means["steps_per_second"] = self._timed / self._seconds
            means["data_wait"] = min(self._waited / self._seconds, 1.0)
        self._clear()
        return means
