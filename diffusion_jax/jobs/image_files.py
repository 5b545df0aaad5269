"""The files of samples: a PNG of each image, from which it can be drawn again, and a sheet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusion_jax import pictures
from diffusion_jax.apps.plan import Request
from diffusion_jax.files import whole
from diffusion_jax.jobs.drawing import ImageSampler, Samples
from diffusion_jax.spec import Config, plain

PARAMETERS = "parameters"
"""Of a PNG: the text with all that its pixels depend on, as JSON."""

MOST_SINGLE = 100
"""The most images of one job that get a file each."""

# What pixels do not depend on: where and how they are computed, and what each request has.
_ELSEWHERE = ("workdir", "mesh", "data", "again", "batch_size")
_OF_REQUEST = ("prompt", "prompts", "labels", "negative_prompt", "seed", "n", "image_size")


class Place(NamedTuple):
    """Where an image was drawn: its number in a batch, the batch's size, its first image's seed."""

    number: int
    size: int
    seed: int


def batch_places(requests: Sequence[Request], size: int) -> list[Place]:
    """The place of each of the requests, drawn ``size`` at once."""
    size = min(size, len(requests))
    return [Place(i % size, size, requests[i // size * size].seed) for i in range(len(requests))]


def save_drawn(
    sampler: ImageSampler,
    requests: Sequence[Request],
    images: np.ndarray,
    places: Sequence[Place],
    folder: Path,
) -> None:
    """A PNG of each image, with its settings, a sheet of all and their arrays; process 0 writes.

    Args:
        sampler: that drew them.
        requests, images, places: [n], each image's.
        folder: of the files.
    """
    labels = labels_of(requests)
    name = sampler.generator.name
    stem = name if name == "all" else f"{name}_seed{requests[0].seed}"
    save_samples(folder / stem, Samples(images, labels))
    if jax.process_index():
        return
    count = min(len(images), MOST_SINGLE) if images.ndim > 2 else 0
    each = f", and {count} PNGs that each hold their settings" if count else ""
    print(f"{len(images)} samples are in {folder / stem}.png and .npz{each}")
    parents = [[path, digest(path)] for edit in sampler.edits for path in edit.sources]
    for request, image, place in list(zip(requests, images, places, strict=True))[:count]:
        record = record_of(sampler.settings, request, image.shape[:2], place, name, parents)
        text = {PARAMETERS: json.dumps(record, ensure_ascii=False)}
        pictures.save_image(folder / f"{file_name(request)}.png", image, text=text)


def labels_of(requests: Sequence[Request]) -> np.ndarray:
    """The label of each request, or the number of its prompt: int32 [n]."""
    prompts = list(dict.fromkeys(request.prompt for request in requests))
    number = lambda r: prompts.index(r.prompt) if r.label is None else r.label
    return np.array([number(request) for request in requests], np.int32)


def save_samples(stem: Path, samples: Samples) -> dict[str, np.ndarray]:
    """Write stem.png, a sheet, and stem.npz with ``images`` and ``labels``; return the sheet.

    The first process writes; the others return {}.
    """
    if jax.process_index():
        return {}
    with whole(stem.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=samples.images, labels=samples.labels)
    if samples.images.ndim == 2:
        pictures.save_scatter(stem.with_suffix(".png"), [("samples", samples.images, None)])
        return {}
    sheet = pictures.grid(samples.images[:100], 10 if len(samples.images) >= 100 else None)
    pictures.save_image(stem.with_suffix(".png"), sheet, zoom=max(1, 56 // samples.images.shape[1]))
    return {"samples": sheet}


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
        with Image.open(path) as file:
            record = json.loads(getattr(file, "text", {})[PARAMETERS])
        parents, _ = record["parents"], record["batch"]
    except (OSError, UnidentifiedImageError, KeyError, ValueError, TypeError):
        raise ValueError(
            f"config.again = {path!r} holds no settings to draw it anew by; name a PNG that "
            "--mode=sample has drawn, not a sheet of several or a copy that another program saved"
        ) from None
    for parent, known in parents:
        if not Path(parent).is_file() or digest(parent) != known:
            raise ValueError(
                f"config.again = {path!r} was drawn from {parent!r}, which is gone or has changed; "
                "bring it back to draw the same"
            )
    return record


def request_of(record: Mapping[str, Any]) -> Request:
    """The request that an image's record is of."""
    fields = {name: record[name] for name in Request._fields}
    return Request(**fields)._replace(size=tuple(record["image_size"]))


def digest(path: str) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def file_name(request: Request) -> str:
    """Such as "000007-a-red-house", "000003-label-4"."""
    text = request.prompt or ("" if request.label is None else f"label {request.label}")
    words = "".join(c if c.isalnum() else "-" for c in text.lower())
    return "-".join([f"{request.seed:06d}", *filter(None, words.split("-"))])[:67].rstrip("-")
