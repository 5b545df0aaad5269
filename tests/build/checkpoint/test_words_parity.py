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
