"""TensorBoard's event file, written immediately and without a thread.

tensorboardX's writer waits in a thread by the wall clock, and blocks for ever if that jumps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

# Its classes are created at run time, unknown to type checkers.
_PROTO: Any = event_pb2


class Events:
    """An event file of a run; a context manager.

    Args:
        folder: for TensorBoard's --logdir, created if necessary.
        purge: step from which on the events of earlier files are hidden; None for none.
    """

    def __init__(self, folder: Path, purge: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
        if purge is not None:
            self._write(step=purge, session_log=_PROTO.SessionLog(status=_PROTO.SessionLog.START))

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *error: Any) -> None:
        with suppress(OSError):  # every write was flushed, or raised an error
            self._writer.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write values: name -> number, or image uint8 [h, w, c]."""
        for name, value in values.items():
            if np.ndim(value):
                made = summary.image(name, np.asarray(value), dataformats="HWC")
            else:
                made = summary.scalar(name, float(value))
            self._write(step=step, summary=made)
        self._writer.flush()

    def _write(self, **fields: Any) -> None:
        self._writer.write_event(_PROTO.Event(wall_time=time.time(), **fields))
