"""Profiler trace of some steps."""

from __future__ import annotations

import os
from pathlib import Path

import jax

FOLDER = "profile"


class Trace:
    """Trace steps ``first`` to ``last``, both counted from 0, into ``<workdir>/profile``.

    TensorBoard's profile tab and https://ui.perfetto.dev read it.

    Args:
        workdir: the run's folder.
        steps: "first:last", or "" for no trace.

    Raises:
        ValueError: for any other format, or a last step before the first.
    """

    def __init__(self, workdir: str | os.PathLike, steps: str):
        self._folder = Path(workdir) / FOLDER
        self._first, self._last = _parsed(steps) if steps else (-1, -1)
        self._on = False

    def before(self, step: int) -> None:
        """Called before the dispatch of a step."""
        if not self._on and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, step: int, result: object) -> None:
        """Called with the number of steps done and a result to wait for."""
        if self._on and step > self._last:
            self.close(result)

    def close(self, result: object = None) -> None:
        """Write the trace, if one is running."""
        if self._on:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._on, self._first, self._last = False, -1, -1


def _parsed(steps: str) -> tuple[int, int]:
    first, _, last = steps.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise ValueError(
            f"config.profile = {steps!r} must be FIRST:LAST, steps counted from 0, such as 20:24"
        )
    return int(first), int(last)
