"""Preemption: on a stop signal finish the step, save, exit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

# Schedulers that preempt a job take 0 as success; a shell expects 130 after Ctrl-C.
EXIT_CODES = {"SIGTERM": 0, "SIGINT": 130}


class Stopped(SystemExit):
    """The run stopped on a signal and can be resumed; carries the exit code."""


@contextmanager
def stop_signals() -> Iterator[Callable[[int], str | None]]:
    """Within the block, SIGTERM and SIGINT only request a stop.

    Yields:
        step -> "SIGTERM", "SIGINT" or None: the request so far.  With several processes all must
        call it with the same steps; a signal to one of them then reaches all at the same step, and
        SIGINT counts as SIGTERM.  A second signal has its effect of before the block.
    """
    if jax.process_count() > 1:  # there jax.distributed has taken SIGTERM for its preemption notice
        with _as_a_notice():
            reached = multihost_utils.reached_preemption_sync_point
            yield lambda step: "SIGTERM" if reached(step) else None
        return
    received: list[str] = []
    before = {}

    def ask(number, frame):
        received.append(signal.Signals(number).name)
        _restore(before)

    if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
        for name in EXIT_CODES:
            number = getattr(signal, name)
            before[number] = signal.signal(number, ask)
    try:
        yield lambda step: received[0] if received else None
    finally:
        _restore(before)


@contextmanager
def _as_a_notice() -> Iterator[None]:
    """Within the block, the first SIGINT is a SIGTERM, which reaches all processes."""
    before = {}

    def notice(number, frame):
        _restore(before)
        os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        before[signal.SIGINT] = signal.signal(signal.SIGINT, notice)
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: dict) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
