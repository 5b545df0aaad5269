"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747): 70,000 articles of clothing.

The four files come from a folder, by default that of the Debian package dataset-fashion-mnist, or
else from the authors' servers; in either case their contents are checked by SHA-256.
"""

from __future__ import annotations

import gzip
import hashlib
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from diffusion_jax.data.builders.progress import with_progress

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FOLDER_VARIABLE = "FASHION_MNIST_DIR"
SERVERS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
TIMEOUT_SECONDS = 20.0
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
TRAIN, TEST = "train", "t10k"  # how the files call the splits
SHA256 = {  # of the decompressed contents: packagers compress them again
    f"{TRAIN}-images-idx3-ubyte.gz": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    f"{TRAIN}-labels-idx1-ubyte.gz": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    f"{TEST}-images-idx3-ubyte.gz": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    f"{TEST}-labels-idx1-ubyte.gz": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}


def read_idx(contents: bytes) -> np.ndarray:
    """The IDX format of MNIST: big-endian sizes, then bytes -> uint8 [n, ...]."""
    rank = contents[3]
    shape = np.frombuffer(contents, ">i4", rank, offset=4)
    return np.frombuffer(contents, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_verified(path: Path) -> np.ndarray:
    """Read one of the four files.

    Raises:
        ValueError: if it is damaged or another file of that name.
    """
    try:
        contents = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and prepare again.") from error
    if hashlib.sha256(contents).hexdigest() != SHA256[path.name]:
        raise ValueError(
            f"{path} is not Fashion-MNIST's file of that name; remove it and prepare again."
        )
    return read_idx(contents)


def fetch(folder: Path) -> None:
    """Download what ``folder`` lacks of the four files from the authors' servers.

    Raises:
        ConnectionError: if no server answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in tqdm(SHA256, desc="downloading fashion_mnist", unit="file"):
        if not (folder / name).exists():
            partial = folder / f"{name}.part"
            partial.write_bytes(_download(name))
            partial.replace(folder / name)


def _download(name: str) -> bytes:
    reasons = []
    for server in SERVERS:
        try:
            with urllib.request.urlopen(server + name, timeout=TIMEOUT_SECONDS) as answer:
                return answer.read()
        except (OSError, urllib.error.URLError) as error:
            reasons.append(f"{server}: {error}")
    raise ConnectionError(
        f"fashion_mnist could not be downloaded ({'; '.join(reasons)}); on Debian run "
        "`apt-get install dataset-fashion-mnist`, or set --source_dir (or the environment variable "
        f"{FOLDER_VARIABLE}) to a folder with {', '.join(SHA256)}."
    )


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60,000 train and 10,000 test articles of clothing, 28 by 28 grey, 10 classes."""

    name = "fashion_mnist"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: Path, data_dir: str):
        self.folder = folder
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__ or "",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        if not all((self.folder / name).exists() for name in SHA256):
            fetch(self.folder)
        return {
            "train": self._generate_examples("train", TRAIN),
            "test": self._generate_examples("test", TEST),
        }

    def _generate_examples(self, split, stem):
        images = read_verified(self.folder / f"{stem}-images-idx3-ubyte.gz")
        labels = read_verified(self.folder / f"{stem}-labels-idx1-ubyte.gz")
        pairs = list(zip(images, labels, strict=True))
        for key, (image, label) in enumerate(with_progress(pairs, self.name, split)):
            yield key, {"image": Image.fromarray(image), "label": int(label)}
