"""Folders of weights: what is found, what is refused, and what is written."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.convert.folders import (
    inside,
    read_json,
    read_weights,
    write_json,
    write_weights,
)
from diffusion_jax.convert.tensors import write_safetensors

STEM = "diffusion_pytorch_model"
TENSORS = {
    "a": np.arange(4, dtype=np.float32),
    "b": np.ones((2, 3), np.float16),
    "c": np.full(5, -2, jnp.bfloat16),
}


def same(got, wanted=TENSORS):
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
        assert got[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("part", ["unet", ""])
@pytest.mark.parametrize("most_bytes", [10**9, 30, 1])
def test_there_and_back(tmp_path, part, most_bytes):
    names = write_weights(tmp_path, part, TENSORS, most_bytes=most_bytes)
    same(read_weights(tmp_path, part))
    assert len(names) == {10**9: 1, 30: 3, 1: 4}[most_bytes]
    if len(names) == 4:
        assert names[0] == f"{STEM}-00001-of-00003.safetensors"
        index = read_json(tmp_path / part, f"{STEM}.safetensors.index.json")
        assert index["metadata"] == {"total_size": 16 + 12 + 10}
        assert index["weight_map"]["c"] == f"{STEM}-00003-of-00003.safetensors"
    assert {p.name for p in (tmp_path / part).iterdir()} == set(names)


def test_one_form_replaces_the_other(tmp_path):
    write_weights(tmp_path, "unet", TENSORS, most_bytes=1)
    write_weights(tmp_path, "unet", {"z": np.zeros(2)})
    same(read_weights(tmp_path, "unet"), {"z": np.zeros(2)})
    write_weights(tmp_path, "unet", TENSORS, most_bytes=1)
    same(read_weights(tmp_path, "unet"))


def test_variants(tmp_path):
    half = {name: array.astype(np.float16) for name, array in TENSORS.items()}
    write_weights(tmp_path, "unet", half, variant="fp16", most_bytes=1)
    same(read_weights(tmp_path, "unet"), half)  # the only one that there is
    write_weights(tmp_path, "unet", {"n": np.ones(1)}, variant="non_ema")
    with pytest.raises(FileNotFoundError, match="variant=None: give 'fp16', 'non_ema'"):
        read_weights(tmp_path, "unet")
    write_weights(tmp_path, "unet", TENSORS)
    same(read_weights(tmp_path, "unet"))
    same(read_weights(tmp_path, "unet", "fp16"), half)
    same(read_weights(tmp_path, "unet", "non_ema"), {"n": np.ones(1)})
    write_weights(tmp_path, "text_encoder", TENSORS, stem="model", variant="fp16")
    assert os.listdir(tmp_path / "text_encoder") == ["model.fp16.safetensors"]
    same(read_weights(tmp_path, "text_encoder"))


def test_what_is_not_there_and_pickles(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder 'unet'"):
        read_weights(tmp_path, "unet")
    (tmp_path / "unet").mkdir()
    with pytest.raises(FileNotFoundError, match=r"unet has no \.safetensors file"):
        read_weights(tmp_path, "unet")
    (tmp_path / "unet" / f"{STEM}.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=f"unet has only {STEM}.bin, pickles"):
        read_weights(tmp_path, "unet")
    with pytest.raises(FileNotFoundError, match=r"has no unet/config\.json"):
        read_json(tmp_path, "unet/config.json")


@pytest.fixture
def secret(tmp_path):
    """A file outside of the checkpoint, which is tmp_path / "model"."""
    (tmp_path / "model" / "unet").mkdir(parents=True)
    write_safetensors(tmp_path / "secret.safetensors", TENSORS)
    return tmp_path / "secret.safetensors"


@pytest.mark.parametrize(
    "name", ["../../secret.safetensors", "{}", "x/../../../secret.safetensors", "..\\secret", "C:x"]
)
def test_an_index_may_not_name_what_lies_outside(tmp_path, secret, name):
    root = tmp_path / "model"
    index = {"weight_map": dict.fromkeys(TENSORS, name.format(secret))}
    write_json(root, f"unet/{STEM}.safetensors.index.json", index)
    with pytest.raises(ValueError, match="is not a name inside of it") as error:
        read_weights(root, "unet")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="is not a name inside of it"):
        read_weights(root, "../model")


def test_links_may_not_lead_outside(tmp_path, secret):
    root = tmp_path / "model"
    link = root / "unet" / f"{STEM}.safetensors"
    link.symlink_to(secret)
    with pytest.raises(ValueError, match="is a symbolic link out of it"):
        read_weights(root, "unet")
    link.unlink()
    link.symlink_to("../other.safetensors")
    write_safetensors(root / "other.safetensors", TENSORS)
    same(read_weights(root, "unet"))
    (root / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="is a symbolic link out of it"):
        read_json(root, "config.json")
    (root / "vae").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="is a symbolic link out of it"):
        read_weights(root, "vae")


def test_links_in_a_circle(tmp_path):
    (tmp_path / "config.json").symlink_to("config.json")
    with pytest.raises(ValueError, match=r"'config\.json' .* is a link to itself"):
        read_json(tmp_path, "config.json")


def test_a_snapshot_of_the_hubs_cache_links_to_its_blobs_alone(tmp_path):
    cache = tmp_path / "models--a--b"
    root = cache / "snapshots" / "0123"
    write_safetensors(cache / "blobs" / "f00d", TENSORS)
    write_safetensors(tmp_path / "models--other" / "blobs" / "f00d", TENSORS)
    (root / "unet").mkdir(parents=True)
    link = root / "unet" / f"{STEM}.safetensors"
    link.symlink_to("../../../blobs/f00d")
    same(read_weights(root, "unet"))
    link.unlink()
    link.symlink_to("../../../../models--other/blobs/f00d")
    with pytest.raises(ValueError, match="is a symbolic link out of it"):
        read_weights(root, "unet")


def test_an_index_that_does_not_fit_its_shards(tmp_path):
    write_weights(tmp_path, "unet", TENSORS, most_bytes=1)
    name = f"unet/{STEM}.safetensors.index.json"
    index = read_json(tmp_path, name)
    for change, words in {
        ("d", f"{STEM}-00001-of-00003.safetensors"): "disagree about 1 tensors, such as d",
        ("a", f"{STEM}-00002-of-00003.safetensors"): "disagree about 1 tensors, such as a",
    }.items():
        write_json(tmp_path, name, {"weight_map": index["weight_map"] | dict([change])})
        with pytest.raises(ValueError, match=words):
            read_weights(tmp_path, "unet")
    write_json(tmp_path, name, {"weight_map": {"a": "gone.safetensors"}})
    with pytest.raises(FileNotFoundError, match=r"names gone\.safetensors, which is not there"):
        read_weights(tmp_path, "unet")
    for odd in ({}, {"weight_map": [1]}, {"weight_map": {"a": 3}}):
        write_json(tmp_path, name, odd)
        with pytest.raises(ValueError, match="has no weight_map"):
            read_weights(tmp_path, "unet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "holds a list"),
        (b"\xff", "is not JSON"),
        (b'{"a":' * 100_000, "is not JSON"),
    ],
)
def test_settings_that_are_none(tmp_path, text, words):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"config.json {words}"):
        read_json(tmp_path, "config.json")


def test_json_there_and_back(tmp_path):
    value = {"b": [1, 2.5, None], "a": "ä"}
    write_json(tmp_path, "unet/config.json", value)
    assert read_json(tmp_path, "unet/config.json") == value
    assert json.loads((tmp_path / "unet/config.json").read_text("utf-8")) == value
    assert inside(tmp_path, "unet/config.json") == tmp_path / "unet" / "config.json"
