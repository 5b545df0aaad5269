"""How a command ends that does not end well: with one sentence, and a report of what is a fault.

    with sentences(lambda: workdir):
        ...

| what is raised | exit code |
|---|---|
| a ValueError of this project, OSError, FloatingPointError; too little memory | 2 |
| another process is gone | 75 (EX_TEMPFAIL: start it again) |
| an interrupt from the keyboard | 130 |
| anything else: the traceback is kept, and the sentence says where | 1 |

Within it, warnings of this project are notes of one line.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

REPORTS = "the issue tracker of diffusion_jax"
"""Where a fault is to be reported."""

MISTAKE, FAULT, INTERRUPTED, TRY_AGAIN = 2, 1, 130, 75

_ROOT = Path(__file__).resolve().parent
_OURS = tuple(str(_ROOT.parent / name) for name in ("diffusion_jax", "configs", "scripts", "main"))


@contextmanager
def sentences(workdir: Callable[[], str | os.PathLike | None] = lambda: None) -> Iterator[None]:
    """End the process by a sentence and an exit code if the block raises; see the module.

    Args:
        workdir: -> the folder whose errors/ gets the traceback of a fault; where there is none, or
            it cannot be written, that is a folder of the system's temporary one.
    """
    shown = warnings.showwarning
    warnings.showwarning = partial(_note, set(), shown)
    try:
        yield
    except KeyboardInterrupt:
        end("", INTERRUPTED)
    except Exception as error:
        if lost_peer(error):
            end(of_lost_peer(error), TRY_AGAIN)
        if foreseen(error):
            end(" ".join(str(error).split()) or type(error).__name__, MISTAKE)
        if _lacks_memory(error):
            end(
                f"there is not enough memory ({first_line(error)}); take a smaller batch_size or "
                "image_size, or split the weights by config.mesh",
                MISTAKE,
            )
        end(_fault(error, workdir), FAULT)
    finally:
        warnings.showwarning = shown


def _note(
    said: set[str], otherwise: Callable, message, category, filename: str, *rest: Any
) -> None:
    """A warning of this project as a sentence, once, without the line of code it comes from."""
    if not (issubclass(category, UserWarning) and filename.startswith(_OURS)):
        otherwise(message, category, filename, *rest)
    elif str(message) not in said:
        said.add(str(message))
        print(f"note: {message}", file=sys.stderr, flush=True)


def end(message: str, code: int) -> NoReturn:
    """Say why, and end this process; with others at once, so that they notice and end too.

    A farewell to the others, as JAX takes at exit, would wait for them, and they wait in a
    computation for this one.
    """
    if message:
        print(f"error: {message}", file=sys.stderr, flush=True)
    if _jax() and _jax().distributed.is_initialized():
        os._exit(code)
    sys.exit(code)


def foreseen(error: BaseException) -> bool:
    """Whether an error is a mistake that its message tells a person to mend.

    A ValueError is one if it was raised in this project: what a library raises through it says
    nothing of a field or a file.
    """
    if isinstance(error, (OSError, FloatingPointError)):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    ours = not frames or frames[-1].filename.startswith(_OURS)
    return isinstance(error, ValueError) and ours


def lost_peer(error: BaseException) -> bool:
    """Whether an error of a computation means that another process is gone."""
    signs = ("gloo", "connection closed", "heartbeat", "coordination service", "unavailable",
             "deadline_exceeded", "aborted", "nccl", "preempt")  # fmt: skip
    if not isinstance(error, RuntimeError) or not _jax() or _jax().process_count() == 1:
        return False
    return any(sign in str(error).lower() for sign in signs)


def of_lost_peer(error: BaseException) -> str:
    """The sentence about it."""
    return (
        f"process {_jax().process_index()} of {_jax().process_count()} lost another process "
        f"({first_line(error)}); start all of them again with the same command, which goes on "
        "from the last checkpoint"
    )


def first_line(error: BaseException) -> str:
    """What an error says first, shortened; its type if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _fault(error: BaseException, workdir: Callable[[], str | os.PathLike | None]) -> str:
    """Keep the traceback of what was not foreseen; the sentence about it."""
    said = f"{type(error).__name__}: {first_line(error)}"
    kept = _kept("".join(traceback.format_exception(error)), workdir)
    return (
        f"this was not foreseen ({said}); please report it to {REPORTS}, with the file {kept}, "
        "which has the whole traceback"
    )


def _kept(told: str, workdir: Callable[[], str | os.PathLike | None]) -> Path:
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S")
    versions = f"Python {platform.python_version()}, JAX {getattr(_jax(), '__version__', 'unused')}"
    text = f"{stamp}\n{versions}, {platform.platform()}\n{' '.join(sys.argv)}\n\n{told}"
    given, temporary = workdir(), Path(tempfile.gettempdir())
    for folder in (Path(given) / "errors" if given else temporary, temporary):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(".txt", f"{stamp}-", folder, text=True)
            with os.fdopen(handle, "w", errors="backslashreplace") as file:
                file.write(text)
            return Path(name)
        except OSError:
            continue
    print(text, file=sys.stderr)
    return Path("<standard error>")


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _jax() -> Any:
    """JAX if it is in use; it is not started for a sentence."""
    return sys.modules.get("jax")
