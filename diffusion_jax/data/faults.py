"""Unreadable records and stalled sources: named, counted, replaced up to a budget."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from diffusion_jax.data.sources import Source


class BrokenRecord(ValueError):
    """An unreadable record beyond the budget."""


class DataStalled(TimeoutError):
    """No batch arrived within the timeout."""


class Faults:
    """The broken records of this process, and their allowed number.

    Args:
        budget: number of distinct records that may be replaced; 0 for none.

    Attributes:
        broken: index -> error.
    """

    def __init__(self, budget: int = 0):
        if budget < 0:
            raise ValueError(f"config.data.broken_records = {budget} must be at least 0")
        self.budget, self.broken = budget, {}
        self._lock = threading.Lock()

    def add(self, index: int, error: Exception, where: str) -> None:
        """Count a broken record.

        Raises:
            BrokenRecord: if the budget is exceeded.
        """
        with self._lock:
            self.broken[index] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            if len(self.broken) > self.budget:
                others = f", after {self.budget} others" if self.budget else ""
                raise BrokenRecord(
                    f"record {index} of {where} cannot be read ({self.broken[index]}){others}; "
                    "prepare the data set anew, or raise config.data.broken_records, the number of "
                    "records that their neighbours may replace"
                )


def forgiving(source: Source, faults: Faults) -> Source:
    """The source with each broken record replaced by the next good one, deterministically."""
    where = f"data set {source.info.name}, split {source.info.split!r}"
    n = source.info.num_examples

    def read(indices):
        try:
            examples = source.read(indices)
            for example in examples:
                _check(example)
            return examples
        except Exception:  # a decoder may raise anything
            return [one(int(index)) for index in indices]

    def one(index):
        for tried in range(n):
            at = (index + tried) % n
            try:
                (example,) = source.read(np.array([at]))
                _check(example)
                return example
            except Exception as error:
                faults.add(at, error, where)
        raise BrokenRecord(f"no record of {where} can be read")

    return source._replace(read=read)


def _check(example: dict[str, Any]) -> None:
    image = np.asarray(example["image"])
    if image.ndim not in (1, 3) or not image.size:
        raise ValueError(f"its image has shape {image.shape}")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError("it holds numbers that are not finite")


_END = object()


def watched(iterator: Iterator[Any], seconds: float, name: str) -> Iterator[Any]:
    """The iterator, read in a thread; an error if no batch arrives for some time.

    Args:
        iterator: batches.
        seconds: timeout for each; 0 for none.
        name: name of the data, for the error.

    Raises:
        DataStalled: after the timeout.
    """
    results: queue.Queue = queue.Queue(1)
    left = threading.Event()

    def put(item: Any) -> bool:
        while not left.is_set():
            try:
                results.put(item, timeout=0.5)
                return True
            except queue.Full:
                continue
        return False

    def draw():
        try:
            for item in iterator:
                if not put((item, None)):
                    return
            put((_END, None))
        except Exception as error:
            put((_END, error))

    def items():
        # A stalled read cannot be cancelled; a daemon thread lets the process exit.
        threading.Thread(target=draw, daemon=True, name=f"batches of {name}").start()
        try:
            while True:
                try:
                    item, error = results.get(timeout=seconds or None)
                except queue.Empty:
                    raise DataStalled(
                        f"{name} gave no batch for {seconds:g} s; look at the disk it lies on, or "
                        "raise config.data.timeout"
                    ) from None
                if error is not None:
                    raise error
                if item is _END:
                    return
                yield item
        finally:
            left.set()

    return items()
