"""What an image's file says of it: all that its pixels depend on, by which it is drawn anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from configs import sample
from diffusion_jax.apps.plan import Request
from diffusion_jax.core import seeds
from diffusion_jax.jobs.settings import check
from diffusion_jax.spec import Config, plain

PARAMETERS = "parameters"
"""Of a PNG: the text with the record, as JSON."""

# What pixels do not depend on: where and how they are computed, and what each request has.
_ELSEWHERE = ("workdir", "mesh", "data", "again", "batch_size")
_OF_REQUEST = ("prompt", "prompts", "labels", "negative_prompt", "seed", "n", "image_size")

_LARGEST_BATCH = 2**16  # images at once: a record of more was never drawn


class Place(NamedTuple):
    """Where an image was drawn: its number in a batch, the batch's size, its first image's seed."""

    number: int
    size: int
    seed: int


def record_of(
    settings: Config,
    request: Request,
    size: Sequence[int],
    place: Place,
    generator_name: str,
    parents: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """All that an image depends on, for its file.

    Args:
        settings: of the sampler.
        request: of the image.
        size: (height, width) that was drawn.
        place: in its batch.
        generator_name: of the generator, which says the step of a run.
        parents: (path, SHA-256) of the pictures that the edits read.
    """
    held = {k: v for k, v in plain(settings).items() if k not in (*_ELSEWHERE, *_OF_REQUEST)}
    return held | {
        **request._asdict(),
        "size": list(size),
        "image_size": list(request.size),
        "batch": list(place),
        "drawn_by": generator_name,
        "parents": [list(parent) for parent in parents],
    }


def read_record(path: str) -> dict[str, Any]:
    """What ``record_of`` left in a picture.

    Raises:
        ValueError: if it is no picture of this project, or a parent of it has changed.
    """
    try:
        with Image.open(path, formats=("PNG",)) as file:
            record = json.loads(getattr(file, "text", {})[PARAMETERS])
        _check_record(record)
        with_record(sample.get_config(), record)
    except Exception:  # of a file that anyone may have made
        raise ValueError(
            f"config.again = {path!r} holds no settings to draw it anew by; name a PNG that "
            "--mode=sample has drawn, not a sheet of several or a copy that another program saved"
        ) from None
    for parent, known in record["parents"]:
        if not Path(parent).is_file() or digest(parent) != known:
            raise ValueError(
                f"config.again = {path!r} was drawn from {parent!r}, which is gone or has changed; "
                "bring it back to draw the same"
            )
    return record


def with_record(settings: Config, record: Mapping[str, Any]) -> Config:
    """The settings with what a record says of them.

    Raises:
        ValueError, TypeError: for values that are none of a setting.
    """
    chosen = settings.copy_and_resolve_references()
    held = {k: v for k, v in record.items() if k in chosen and k not in (*_ELSEWHERE, "sampler")}
    sampler = {k: v for k, v in record["sampler"].items() if k in chosen.sampler}
    chosen.update({**held, "sampler": sampler})
    check(chosen)
    return chosen


def request_of(record: Mapping[str, Any]) -> Request:
    """The request that an image's record is of."""
    fields = {name: record[name] for name in Request._fields}
    return Request(**fields)._replace(size=tuple(record["image_size"]))


def place_of(record: Mapping[str, Any]) -> Place:
    """Where the image of a record was drawn."""
    return Place(*record["batch"])


def digest(path: str) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _check_record(record: Any) -> None:
    """Raise an error of some kind for what ``record_of`` has not made."""
    request, place = request_of(record), place_of(record)
    texts = (request.prompt, request.negative_prompt, record["drawn_by"], record["checkpoint"])
    numbers = (request.seed, *place, *(() if request.label is None else (request.label,)))
    parents = [text for pair in record["parents"] for text in pair]
    whole = all(type(number) is int and 0 <= number < seeds.COUNT for number in numbers)
    pairs = all(len(pair) == 2 for pair in record["parents"])
    text = all(isinstance(each, str) for each in (*texts, *parents))
    inside = place.number < place.size <= _LARGEST_BATCH
    if not (whole and pairs and text and inside):
        raise ValueError("the record is not of this project")
