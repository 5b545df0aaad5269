"""Any image set of the TFDS catalogue, prepared without TensorFlow where its builder allows."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.features import image_feature


def builder(name: str, data_dir: str, file_format: str | None = None) -> Any:
    """The catalogue's builder; ``file_format`` is what it will write, None to read what is there.

    Raises:
        ValueError: if the catalogue has no set of that name, or it needs a package that is absent.
    """
    try:
        return tfds.builder(name, data_dir=data_dir, file_format=file_format)
    except registered.DatasetNotFoundError as error:
        raise ValueError(
            f"data set {name!r} is not in the TFDS catalogue; see "
            "https://www.tensorflow.org/datasets/catalog/overview for its names."
        ) from error
    except ImportError as error:
        raise ValueError(needs_package(name, error)) from error


def needs_package(name: str, error: ImportError) -> str:
    """The sentence for a builder that imports what is not installed."""
    package = "tensorflow-cpu" if error.name == "tensorflow" else error.name
    return (
        f"data set tfds:{name} needs the Python package {package!r} to be prepared ({error}); "
        f"run `pip install {package}`, prepare again, and remove it afterwards if you like: "
        "reading the prepared set does not need it."
    )


@contextlib.contextmanager
def pillow_encodes() -> Iterator[None]:
    """While this lasts, TFDS encodes arrays as images by Pillow, unless TensorFlow is installed.

    TFDS 4.9 sends arrays (and only arrays) through TensorFlow's PNG encoder, which many builders
    need TensorFlow for and nothing else.
    """
    if importlib.util.find_spec("tensorflow"):
        yield
        return
    encoder: Any = image_feature._ImageEncoder  # no public way to say this in 4.9

    def encode(self, array: np.ndarray) -> bytes:
        return self._encode_pil_image(
            Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        )

    original = encoder._encode_image
    encoder._encode_image = encode
    try:
        yield
    finally:
        encoder._encode_image = original
