"""The folder of a run, which has one config, in ``config.json``."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.files import whole

CONFIG = "config.json"
LOCK = ".lock"

# Fields of the model that change how it is computed, not what its parameters mean.
NEUTRAL = (
    "model.autoencoder",  # a folder, which may move; its scale must be the data's
    *(
        f"model.{net}.{field}"
        for net in ("unet", "text_unet", "dit", "mmdit")
        for field in ("dtype", "remat", "attention")
    ),
)

# Fields or sections that a resumed run may change: they affect neither past steps nor the meaning
# of the parameters.
FREE = (
    "train.steps",
    "train.steps_per_call",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_every",
    "train.snapshot_every",
    "train.keep",
    "train.keep_every",
    "data.dir",
    "data.test_split",
    "mesh",
    "profile",
    "train.skip_nonfinite",
    "data.broken_records",
    "data.timeout",
    "sampler",
    "evaluate",
    *NEUTRAL,
)


def claim(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Write the config of a new run, or check that it is the config of the existing run.

    Fields in ``FREE`` may differ; the file then takes the new values.

    Args:
        workdir: the run's folder, created if necessary.
        config: nested, of JSON's types (tuples count as lists).

    Raises:
        ValueError: if the folder holds a run of another config, naming the differing fields, or
            cannot be written.
    """
    path = Path(workdir) / CONFIG
    wanted = json.loads(json.dumps(dict(config)))
    if path.exists():
        held = read_config(workdir)
        fixed = [field for field in differences(held, wanted) if not _is_free(field)]
        if fixed:
            raise ValueError(_refusal(workdir, fixed, flat(held), flat(wanted)))
        if held == wanted:
            return
    if jax.process_index() == 0:
        with _writing(workdir), whole(path) as temporary:
            temporary.write_text(json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def locked(workdir: str | os.PathLike) -> Iterator[None]:
    """Lock the folder, created if necessary, against a second run; process 0 locks it for all.

    The system releases the lock when the process ends, however it ends.  On file systems without
    locks there is none.

    Raises:
        ValueError: if another run holds it, on every process; or the folder cannot be written.
    """
    path = Path(workdir) / LOCK
    with ExitStack() as stack:
        holder = ""
        if jax.process_index() == 0:
            with _writing(workdir):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            except BlockingIOError:
                file.seek(0)
                holder = file.read() or "another process"
            except OSError:
                pass
        if _anywhere(bool(holder)):
            raise ValueError(
                f"workdir {workdir} is in use by another run ({holder or 'see process 0'}); wait "
                "for it to end, or give another --workdir"
            )
        yield


@contextmanager
def _writing(workdir: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"workdir {workdir} cannot be written ({error.strerror}); give a --workdir that is "
            "writable and has room"
        ) from None


def _anywhere(here: bool) -> bool:
    if jax.process_count() == 1:
        return here
    return bool(np.any(multihost_utils.process_allgather(np.asarray(here))))


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The config of the run in a folder.

    Raises:
        ValueError: if there is none, or the file is not JSON.
    """
    path = Path(workdir) / CONFIG
    if not path.exists():
        raise ValueError(f"{workdir} holds no run: {CONFIG} is missing; train there first")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); restore it or take a new workdir"
        ) from None


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names, such as "train.steps", of the fields in which two nested configs differ.

    An absent field equals an empty one, so that a field may be added whose default is "off".
    """
    a, b = flat(a), flat(b)
    value = lambda config, key: config.get(key) or None
    return sorted(k for k in {*a, *b} if value(a, k) != value(b, k))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        fields |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return fields


def _is_free(field: str) -> bool:
    return any(field == free or field.startswith(free + ".") for free in FREE)


def _refusal(
    workdir: str | os.PathLike, fields: list[str], held: dict[str, Any], wanted: dict[str, Any]
) -> str:
    listed = [
        f"{field} is {held.get(field, 'absent')!r} there and {wanted.get(field, 'absent')!r} here"
        for field in fields[:3]
    ]
    more = f", and {len(fields) - 3} more differ" if len(fields) > 3 else ""
    return (
        f"workdir {workdir} holds a run of another config: {'; '.join(listed)}{more}; "
        "give a new --workdir, or the same config"
    )
