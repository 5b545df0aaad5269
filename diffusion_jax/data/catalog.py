"""Names of data sets, and the folder of each once prepared.

mnist5k, fashion_mnist, noto_emoji     sets of this package's builders
image_folder/NAME                      a folder of images, prepared under NAME
tfds:NAME                              an image set of the TFDS catalogue
latents/NAME                           latents of a first stage, by scripts/encode_latents.py
toy2d:NAME                             points in the plane, generated on the fly
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from diffusion_jax.data.builders import by_name

VERSION = "1.0.0"
FORMAT = "array_record"
LATENTS = "latents/"


class DataMissing(ValueError, FileNotFoundError):
    """A data set is not prepared; the message names the command that prepares it."""

    __str__ = ValueError.__str__


def data_root(data_dir: str | os.PathLike | None = None) -> Path:
    """The folder of prepared sets: ``data_dir``, or $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def check_name(name: str) -> None:
    """Check the name of a data set.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    family, colon, member = name.partition(":")
    folder = (
        name.startswith(("image_folder/", LATENTS))
        and name.count("/") == 1
        and not name.endswith("/")
    )
    if name in OWN or folder or (colon and family in ("tfds", "toy2d") and member):
        return
    raise ValueError(
        f"data set {name!r} is unknown; known are {', '.join(sorted(OWN))}, image_folder/NAME, "
        "latents/NAME, tfds:NAME and toy2d:NAME."
    )


def prepared_path(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """The path of a set of this package's builders, prepared or not."""
    return data_root(data_dir) / name / VERSION


def open_builder(name: str, data_dir: str | os.PathLike | None = None) -> Any:
    """A TFDS builder to read a prepared set; prepares nothing.

    Raises:
        DataMissing: if it is not prepared.
        ValueError: if the name is unknown, or the set was prepared in another file format.
    """
    check_name(name)
    root = data_root(data_dir)
    path = prepared_path(name, root)
    builder = None
    with quiet():
        if name.startswith("tfds:"):
            builder = by_name.builder(name.removeprefix("tfds:"), os.fspath(root))
        elif path.exists():
            builder = tfds.builder_from_directory(path)
    if builder is None or not builder.is_prepared():
        raise DataMissing(
            f"data set {name} is not prepared in {root}; run `{command(name, data_dir)}`."
        )
    check_format(Path(builder.data_path), name)
    return builder


def check_format(path: Path, name: str) -> None:
    """Check that the set in ``path`` can be read without TensorFlow.

    Raises:
        ValueError: if not, with what to do.
    """
    found = json.loads((path / "dataset_info.json").read_text()).get("fileFormat")
    if found != FORMAT:
        raise ValueError(
            f"data set {name} lies in {path} as {found}, which needs TensorFlow; prepare it in "
            "another folder with --data_dir=PATH."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block TFDS logs warnings and errors only."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def command(name: str, data_dir: str | os.PathLike | None = None) -> str:
    """The command line that prepares a set."""
    words = ["python scripts/prepare_data.py", name]
    if name.startswith("image_folder/"):
        words[1:] = ["image_folder", f"--set_name={name.split('/')[1]}", "--folder=PATH"]
    if name.startswith(LATENTS):
        member = name.removeprefix(LATENTS)
        words = ["python scripts/encode_latents.py --workdir=W --data=SET", f"--name={member}"]
    if data_dir:
        words.append(f"--data_dir={data_dir}")
    return " ".join(words)


OWN: dict[str, str] = {
    "fashion_mnist": "Fashion-MNIST, 60,000 + 10,000 grey 28x28, 10 classes",
    "mnist5k": "MNIST-5k, 4,000 + 1,000 grey 28x28 digits; prepares itself",
    "noto_emoji": "Noto Color Emoji, about 3,800 RGB 64x64 with captions",
}
