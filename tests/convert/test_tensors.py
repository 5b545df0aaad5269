"""Tensor files are read whole or refused."""

import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.convert.tensors import read_safetensors


def test_reads_what_was_written(tmp_path):
    tensors = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(2, np.float16),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    got = read_safetensors(tmp_path / "x.safetensors")
    assert got.keys() == tensors.keys()
    for name, array in tensors.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def test_every_header_length_is_read(tmp_path):
    # Headers whose length starts with the byte of a pickle (0x80) or of a zip.
    for size in range(120, 136):
        save_file({"n" * size: np.zeros(1)}, tmp_path / "x.safetensors")
        assert len(read_safetensors(tmp_path / "x.safetensors")) == 1


def test_pickles_are_refused_unread(tmp_path):
    bare, zipped = tmp_path / "model.bin", tmp_path / "model.safetensors"
    bare.write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive/data.pkl", b"")
    for path in (bare, zipped):
        with pytest.raises(ValueError, match=f"{path.name} is a pickle"):
            read_safetensors(path)


def test_damaged_and_absent_files(tmp_path):
    save_file({"a": np.zeros(9)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"x\.safetensors is not a whole safetensors file"):
        read_safetensors(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "y.safetensors")
