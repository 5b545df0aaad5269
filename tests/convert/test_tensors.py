"""Tensor files are read whole or refused, and written whole or not at all."""

import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.convert import tensors
from diffusion_jax.convert.mapped import forget
from diffusion_jax.convert.tensors import (
    DTYPES,
    finite,
    read_header,
    read_safetensors,
    write_safetensors,
)

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_reads_what_was_written(tmp_path):
    arrays = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(2, np.float16),
    }
    save_file(arrays, tmp_path / "x.safetensors")
    got = read_safetensors(tmp_path / "x.safetensors")
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
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
    for cut in (0, 1, 7, 8, 20, len(whole) - 5):
        (tmp_path / "x.safetensors").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"x\.safetensors is not a whole safetensors file"):
            read_safetensors(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "y.safetensors")


def test_what_is_no_file_is_refused_unopened(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    for path in (tmp_path, tmp_path / "x.safetensors"):
        with pytest.raises(ValueError, match=f"{path.name} is not a file"):
            read_safetensors(path)


def written(path, header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{not json", "its header is not JSON"),
        (b'{"\xff": 1}', "its header is not UTF-8"),
        (b"[1, 2]", "its header is not a JSON object"),
        (b'{"a":' + b"[" * 100_000, "safetensors file"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "safetensors file"),
        (b'{"a": {}, "a": {}}', "names a tensor twice"),
        ({"a": 3}, "a lacks dtype, shape or data_offsets"),
        ({"a": ENTRY | {"dtype": "F7"}}, "a has the dtype 'F7'"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, "a has the dtype"),
        ({"a": ENTRY | {"shape": [-2]}}, "a has a shape"),
        ({"a": ENTRY | {"shape": [True, 2]}}, "a has a shape"),
        ({"a": ENTRY | {"shape": [2.0]}}, "a has a shape"),
        ({"a": ENTRY | {"shape": [1] * 40 + [2]}}, "a has a shape"),
        ({"a": ENTRY | {"shape": [3]}}, r"a has 8 bytes, not those of F32 \[3\]"),
        ({"a": ENTRY | {"shape": [2**40, 2**40]}}, "a has 8 bytes"),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, "a has data_offsets"),
        ({"a": ENTRY | {"data_offsets": [-8, 0]}}, "a has data_offsets"),
        ({"a": ENTRY | {"data_offsets": [8, 16]}}, "leave a gap before a"),
        ({"a": ENTRY, "b": ENTRY}, "the tensors' bytes overlap b"),
        (
            {"a": ENTRY, "b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}},
            "the tensors' bytes overlap b",
        ),
        (
            {"a": ENTRY | {"shape": [2**30], "data_offsets": [0, 2**32]}},
            "take 4294967296 bytes, the file has 8",
        ),
        ({}, "take 0 bytes, the file has 8"),
    ],
)
def test_hostile_headers_are_refused_in_a_sentence(tmp_path, header, words):
    with pytest.raises(ValueError, match=words) as error:
        read_safetensors(written(tmp_path / "x.safetensors", header))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("x.safetensors is not a whole safetensors file (")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 17 * 10])
def test_a_header_longer_than_the_file_is_refused(tmp_path, length):
    path = written(tmp_path / "x.safetensors", {"a": ENTRY}, length=length)
    with pytest.raises(ValueError, match=f"its header should take {length} bytes"):
        read_safetensors(path)


def every_dtype():
    rng = np.random.default_rng(0)
    draw = lambda i, dtype: rng.integers(0, 2, (3, i + 1)).astype(dtype)
    out = {code: draw(i, dtype) for i, (code, dtype) in enumerate(DTYPES.items())}
    return out | {"scalar": np.array(3, np.float32), "empty": np.zeros((0, 4), np.float16)}


def test_the_bytes_are_the_reference_writers(tmp_path):
    arrays = every_dtype()
    save_file(arrays, tmp_path / "theirs.safetensors", {"format": "pt"})
    write_safetensors(tmp_path / "ours.safetensors", arrays, {"format": "pt"})
    ours, theirs = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("ours", "theirs"))
    assert ours == theirs
    again = read_safetensors(tmp_path / "ours.safetensors")
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert again[name].dtype == np.asarray(array).dtype and again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes()


def test_views_and_other_byte_orders_are_written_as_what_they_mean(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {"t": np.arange(6.0).reshape(2, 3).T, "big": np.arange(3, dtype=">i4")}
    arrays["j"] = jnp.ones(2)
    write_safetensors(path, arrays)
    for name, array in read_safetensors(path).items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(ValueError, match="z has the dtype complex128"):
        write_safetensors(path, {"z": np.zeros(1, complex)})


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones(2)})
    old = path.read_bytes()
    bytes_of = iter([b"12345678"])  # of one tensor of two
    monkeypatch.setattr(tensors, "_little_endian", lambda array: next(bytes_of))
    with pytest.raises(StopIteration):
        write_safetensors(path, {"a": np.zeros(1), "b": np.zeros(1)})
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_reading_copies_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.zeros(1 << 20, np.float32), "b": np.ones(1, np.int8)})
    got = read_safetensors(path)
    assert not got["a"].flags.writeable
    # The file's own bytes are seen, those of the moment of use.
    with path.open("r+b") as file:
        file.seek(read_header(path)[1])
        file.write(np.float32(7).tobytes())
    assert got["a"][0] == 7


def test_bytes_that_are_not_aligned(tmp_path):
    entries = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    data = b"\7" + np.array([1.5, -2], np.float32).tobytes()
    got = read_safetensors(written(tmp_path / "x.safetensors", entries, data))
    np.testing.assert_array_equal(jnp.asarray(got["b"]) * 2, [3, -4])


def test_weights_that_are_not_finite_are_named():
    good = {"a": np.ones(3), "i": np.arange(3), "h": np.ones(2, jnp.bfloat16)}
    finite(good)
    late = np.zeros((3, 1 << 20), np.float32)
    late[2, -1] = np.nan
    with pytest.raises(ValueError, match=re.escape("infinities in low, late:")):
        finite(good | {"low": np.array([1, np.inf], jnp.bfloat16), "late": late})


def test_pages_of_a_mapped_file_are_given_back_and_read_again(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"x": np.arange(1 << 21, dtype=np.float32)})
    x = read_safetensors(tmp_path / "a.safetensors")["x"]
    held = lambda: next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssFile")
    )
    total = x.sum()
    before = held()
    forget(x[::2].reshape(-1, 4).T)  # any view of it
    assert held() < before - 7000  # kB, of 8192
    assert x.sum() == total
    own = np.ones(1 << 20)
    forget(own)  # not of a file: stays as it is
    assert own.all()


def test_a_path_may_be_a_string(tmp_path):
    path = str(tmp_path / "a.safetensors")
    write_safetensors(path, {"x": np.arange(3, dtype=np.float32)}, {})
    header, start = read_header(path)
    assert list(header) == ["x"] and start % 8 == 0
    np.testing.assert_array_equal(read_safetensors(path)["x"], [0, 1, 2])
