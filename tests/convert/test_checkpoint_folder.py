"""A checkpoint written as a folder: the same bytes, and diffusers draws the same from it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from diffusion_jax.convert.checkpoint_folder import write_checkpoint
from diffusion_jax.convert.folders import read_weights
from diffusion_jax.convert.stable_diffusion import find_tokenizers, read_checkpoint

pytestmark = pytest.mark.parity
ROOT = pathlib.Path(__file__).parents[2]

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import stable_diffusion
    import torch
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import stable_diffusion


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def both(request, tmp_path_factory):
    return stable_diffusion.pipeline(request.param, tmp_path_factory.mktemp("checkpoint"))


def parts_of(folder):
    return sorted(path.parent.name for path in folder.glob("*/*.safetensors"))


def named(state):
    """The newest transformers leaves the first word away that published files have."""
    return {name.removeprefix("text_model."): array for name, array in state.items()}


def rewritten(folder, out, **options):
    read = read_checkpoint(folder)
    return write_checkpoint(out, read, find_tokenizers((), read), **options)


def test_every_tensor_comes_back_byte_for_byte(both, tmp_path):
    _, folder = both
    out = rewritten(folder, tmp_path / "out")
    assert parts_of(out) == parts_of(folder)
    for part in parts_of(folder):
        before, after = (named(read_weights(root, part)) for root in (folder, out))
        assert set(before) == set(after)
        for name, array in before.items():
            assert array.dtype == after[name].dtype
            assert array.tobytes() == after[name].tobytes(), name
    for file in folder.glob("tokenizer*/*.json"):
        assert (out / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_half_precision_and_shards_come_back_too(both, tmp_path):
    _, folder = both
    half = rewritten(folder, tmp_path / "half", dtype=np.float16)
    again = rewritten(half, tmp_path / "again", most_bytes=40_000)
    assert len(list((again / "unet").glob("*.safetensors"))) > 3
    for part in parts_of(folder):
        before, after = read_weights(half, part), read_weights(again, part)
        assert {n: a.tobytes() for n, a in before.items()} == {
            n: a.tobytes() for n, a in after.items()
        }
        assert {a.dtype for a in after.values()} == {np.dtype(np.float16)}


def test_diffusers_draws_the_same_image_from_it(both, tmp_path):
    pipe, folder = both
    out = rewritten(folder, tmp_path / "out")
    theirs = type(pipe).from_pretrained(out)
    theirs.set_progress_bar_config(disable=True)
    draw = lambda p: p(
        "a red cat", num_inference_steps=2, height=64, width=64, output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    np.testing.assert_allclose(draw(theirs), draw(pipe), atol=1e-5)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return stable_diffusion.pipeline("sd1", tmp_path_factory.mktemp("checkpoint"))[1]


def test_the_command_ends_with_one_sentence_or_a_folder(sd1, tmp_path):
    folder = sd1
    script = [sys.executable, str(ROOT / "scripts" / "convert_checkpoint.py")]
    run = lambda *words: subprocess.run([*script, *words], capture_output=True, text=True)
    (tmp_path / "there").mkdir()
    there = run(f"--source={folder}", f"--out={tmp_path / 'there'}")
    assert there.returncode == 2 and "exists; name a folder that does not" in there.stderr
    absent = run(f"--source={tmp_path / 'none'}", f"--out={tmp_path / 'out'}")
    assert absent.returncode == 2 and "There is no checkpoint" in absent.stderr
    assert not (tmp_path / "out").exists()
    made = run(f"--source={folder}", f"--out={tmp_path / 'out'}", "--dtype=float16")
    assert made.returncode == 0 and "holds the checkpoint" in made.stdout
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"]


def test_a_folder_that_cannot_be_filled_is_not_there(sd1, tmp_path):
    read = read_checkpoint(sd1)
    broken = read._replace(scheduler={"beta": object()})
    with pytest.raises(TypeError):
        write_checkpoint(tmp_path / "out", broken, find_tokenizers((), read))
    assert list(tmp_path.iterdir()) == []
