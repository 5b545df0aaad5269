"""The files of samples: a PNG of each image, from which it can be drawn again, and a sheet."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from diffusion_jax import pictures
from diffusion_jax.apps.plan import Request
from diffusion_jax.files import whole
from diffusion_jax.jobs.drawing import ImageSampler, Samples
from diffusion_jax.jobs.records import PARAMETERS, Place, digest, record_of

MOST_SINGLE = 100
"""The most images of one job that get a file each."""


def batch_places(requests: Sequence[Request], size: int) -> list[Place]:
    """The place of each of the requests, drawn ``size`` at once."""
    size = min(size, len(requests))
    return [Place(i % size, size, requests[i // size * size].seed) for i in range(len(requests))]


def check_writable(folder: Path) -> None:
    """Make the folder of samples, before anything is drawn for it; process 0 writes.

    Raises:
        ValueError: if it cannot be written.
    """
    if jax.process_index():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"samples cannot be written to {folder} ({error.strerror}); give a --workdir that is "
            "writable and has room"
        ) from None


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

    Raises:
        ValueError: if a file cannot be written; it says where the images are kept instead.
    """
    samples = Samples(images, labels_of(requests))
    name = sampler.generator.name
    stem = folder / (name if name == "all" else f"{name}_seed{requests[0].seed}")
    try:
        save_samples(stem, samples)
        if not jax.process_index():
            _save_each(sampler, requests, images, places, stem)
    except OSError as error:
        raise ValueError(
            f"not all samples could be written to {folder} ({error}); {_rescued(samples)}"
        ) from None


def _save_each(
    sampler: ImageSampler,
    requests: Sequence[Request],
    images: np.ndarray,
    places: Sequence[Place],
    stem: Path,
) -> None:
    count = min(len(images), MOST_SINGLE) if images.ndim > 2 else 0
    each = f", and {count} PNGs that each hold their settings" if count else ""
    print(f"{len(images)} samples are in {stem}.png and .npz{each}")
    parents = [[path, digest(path)] for edit in sampler.edits for path in edit.sources]
    name = sampler.generator.name
    for request, image, place in list(zip(requests, images, places, strict=True))[:count]:
        record = record_of(sampler.settings, request, image.shape[:2], place, name, parents)
        text = {PARAMETERS: json.dumps(record, ensure_ascii=False)}
        pictures.save_image(stem.parent / f"{file_name(request)}.png", image, text=text)


def _rescued(samples: Samples) -> str:
    """Where samples are kept that their folder does not take."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="diffusion_jax-samples-"))
        np.savez(folder / "all.npz", images=samples.images, labels=samples.labels)
    except OSError as error:
        return f"nor can {tempfile.gettempdir()} keep them ({error.strerror})"
    return f"their pixels are kept in {folder / 'all.npz'}"


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


def file_name(request: Request) -> str:
    """Such as "000007-a-red-house", "000003-label-4": at most 67 characters and 180 bytes.

    Letters and digits of any script alone, so every file system and archive takes it.
    """
    text = request.prompt or ("" if request.label is None else f"label {request.label}")
    text = unicodedata.normalize("NFC", text).lower()
    words = "".join(c if c.isalnum() else "-" for c in text)
    name = "-".join([f"{request.seed:06d}", *filter(None, words.split("-"))])[:67]
    return name.encode()[:_MOST_BYTES].decode(errors="ignore").rstrip("-")


# Of a name's 255, the rest is for its ending and for that of the temporary file.
_MOST_BYTES = 180
