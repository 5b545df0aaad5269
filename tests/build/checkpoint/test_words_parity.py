"""Words that textual inversion taught: diffusers' embeddings of prompts, files, and what is odd."""

import os

import jax
import numpy as np
import pytest

from diffusion_jax.build.checkpoint.text_to_image import text_to_image
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.convert.tensors import write_safetensors
from diffusion_jax.convert.textual_inversion import Word, read_word, write_word

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import stable_diffusion
    import torch
else:
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import stable_diffusion

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return stable_diffusion.pipeline("sd1", tmp_path_factory.mktemp("checkpoint"))


def test_prompts_with_new_words(both, tmp_path):
    pipe, folder = both
    words = {"<mine>": RNG.normal(size=(1, 32)), "<two>": RNG.normal(size=(2, 32))}
    words = {name: v.astype(np.float32) for name, v in words.items()}
    read = []
    for i, (name, vectors) in enumerate(words.items()):
        path = tmp_path / f"{i}.safetensors"
        write_word(path, name, [vectors])
        pipe.load_textual_inversion(str(tmp_path), weight_name=path.name)  # reads our file
        read.append(read_word(path))
        assert read[-1].name == name and np.array_equal(read[-1].vectors[0], vectors)
    made = text_to_image(read_checkpoint(folder), words=read)
    prompts = ["a photo of <mine> on the hill", "<two> and the red <mine>", "a cat"]
    ours = made.model.condition(made.weights.frozen, made.inputs.rows(prompts, chunks=1))["context"]
    with torch.no_grad():
        theirs = pipe.encode_prompt(prompts, "cpu", 1, False)[0]
    error = np.abs(np.asarray(ours) - theirs.numpy()).max()
    assert error <= 1e-4 * float(theirs.abs().max())
    assert jax.tree.leaves(made.weights.frozen["text"][0]["token"])[0].shape[0] == len(
        pipe.tokenizer
    )


def test_files_of_web_interfaces(both, tmp_path):
    pipe, folder = both
    vectors = RNG.normal(size=(2, 32)).astype(np.float32)
    tree = {
        "string_to_token": {"*": 265}, "string_to_param": {"*": torch.tensor(vectors)},
        "name": "<web>", "step": 9, "sd_checkpoint": None,
    }  # fmt: skip
    torch.save(tree, tmp_path / "renamed.pt")
    pipe.load_textual_inversion(str(tmp_path), weight_name="renamed.pt")
    read = read_word(tmp_path / "renamed.pt")
    assert read.name == "<web>" and np.array_equal(read.vectors[0], vectors)
    made = text_to_image(read_checkpoint(folder), words=[read])
    prompts = ["a <web> and a cat"]
    ours = made.model.condition(made.weights.frozen, made.inputs.rows(prompts, chunks=1))["context"]
    with torch.no_grad():
        theirs = pipe.encode_prompt(prompts, "cpu", 1, False)[0]
    assert np.abs(np.asarray(ours) - theirs.numpy()).max() <= 1e-4 * float(theirs.abs().max())
    torch.save({"string_to_param": {"*": torch.nn.Parameter(torch.ones(32))}}, tmp_path / "Neg.pt")
    assert read_word(tmp_path / "Neg.pt").name == "Neg"  # the file's own
    torch.save({"<bin>": torch.ones(32, dtype=torch.bfloat16)}, tmp_path / "a.bin")
    assert read_word(tmp_path / "a.bin").name == "<bin>"
    write_safetensors(tmp_path / "EasyNegative.safetensors", {"emb_params": vectors})
    assert read_word(tmp_path / "EasyNegative.safetensors").name == "EasyNegative"
    torch.save({"a": print}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"it asks for \w+\.print"):
        read_word(tmp_path / "evil.pt")
    for array, words in (
        (np.ones((1, 2, 8), np.float32), r"its shapes \[\(1, 2, 8\)\] are not \[k, d\]"),
        (np.ones((0, 8), np.float32), "are not"), (np.ones((2000, 8), np.float32), "1 to 1000"),
        (np.ones((1, 8), np.int32), "are int32, not of a float type"),
    ):  # fmt: skip
        write_safetensors(tmp_path / "odd.safetensors", {"emb_params": array})
        with pytest.raises(ValueError, match=words):
            read_word(tmp_path / "odd.safetensors")


def test_words_that_begin_alike(both):
    checkpoint = read_checkpoint(both[1])
    long, longer = (RNG.normal(size=(k, 32)).astype(np.float32) for k in (3, 2))
    words = [Word("EasyNegative", (long,)), Word("EasyNegativeV2", (longer,))]
    states = []
    for order in (words, words[::-1]):
        made = text_to_image(checkpoint, words=order)
        rows = made.inputs.rows(["EasyNegativeV2", "easynegative", "cartoon"], chunks=1)
        table = made.weights.frozen["text"][0]["token"]["embedding"]
        np.testing.assert_array_equal(table[rows["ids_0"][0, 0, 1:3]], longer)
        np.testing.assert_array_equal(table[rows["ids_0"][1, 0, 1:4]], long)
        states.append(np.asarray(made.model.condition(made.weights.frozen, rows)["context"]))
    np.testing.assert_array_equal(*states)


def test_odd_words_are_sentences(both, tmp_path):
    checkpoint = read_checkpoint(both[1])
    vector = (np.ones((1, 32), np.float32),)
    for word, fault in (
        (Word("", vector), "name a word"),
        (Word("cat</w>", vector), "is a token of this tokenizer already"),
        (Word("<mine>", (np.ones((1, 16), np.float32),)), r"vectors of \[16\].*are of \[32\]"),
    ):
        with pytest.raises(ValueError, match=fault):
            text_to_image(checkpoint, words=[word])
    path = tmp_path / "odd.safetensors"
    write_safetensors(path, {"a": np.ones(3), "b": np.ones(3)})
    with pytest.raises(ValueError, match="an embedding has one tensor"):
        read_word(path)
    write_word(path, "<xl>", [np.ones((2, 8), np.float32), np.zeros((2, 16), np.float32)])
    assert read_word(path).name == "<xl>" and [v.shape for v in read_word(path).vectors] == [
        (2, 8),
        (2, 16),
    ]
