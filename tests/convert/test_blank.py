"""Checkpoints of zeros have the published shapes, and a tokenizer that reads any word."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_jax.convert import blank
from diffusion_jax.convert.blank import _write_letters, blank_checkpoint
from diffusion_jax.convert.names import by_path
from diffusion_jax.data.tokenizers import load_tokenizer


def test_a_family_without_weights_has_every_parameter():
    made = blank_checkpoint("sd1")
    leaves = by_path(made.unet.params).values()
    assert sum(leaf.size for leaf in leaves) == 859_520_964  # of stable-diffusion-v1-5's U-Net
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float16)}
    assert all(leaf.base.nbytes == 2 for leaf in leaves)  # one zero, seen in many places
    assert len(made.text_encoders) == 1 and made.scheduler["beta_schedule"] == "scaled_linear"


def test_its_tokenizer_spells(tmp_path):
    config = {"vocab_size": 49408, "max_position_embeddings": 77}
    _write_letters(tmp_path / "tokenizer", config)
    ids = load_tokenizer(tmp_path / "tokenizer").raw(["a red cat"])[0]
    assert len(ids) == 7 and max(ids) < 49408
    vocab = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text())
    assert [vocab[token] for token in ("!", "~", "!</w>", "<unused0>")] == [0, 93, 94, 188]
    assert (vocab["<|startoftext|>"], vocab["<|endoftext|>"]) == (49406, 49407)
    told = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    assert (told["model_max_length"], told["pad_token"]) == (77, "<|endoftext|>")


def test_a_folder_has_the_family_and_a_tokenizer_for_each_text_encoder(tmp_path, monkeypatch):
    asked, written = [], []
    text = {"vocab_size": 49408, "max_position_embeddings": 77}
    configs = {"text_encoder_0": text, "text_encoder_1": {**text, "vocab_size": 300}}
    made = SimpleNamespace(configs=configs, text_encoders=(None, None))
    monkeypatch.setattr(blank, "blank_checkpoint", lambda *given: asked.append(given) or made)

    def write(folder, checkpoint, tokenizers):
        sizes = [len(json.loads((place / "vocab.json").read_text())) for place in tokenizers]
        written.append((folder, checkpoint is made, sizes))

    monkeypatch.setattr(blank, "write_checkpoint", write)
    assert blank.write_blank(str(tmp_path / "x"), "sdxl", np.float32) == tmp_path / "x"
    assert asked == [("sdxl", np.float32)] and written == [
        (str(tmp_path / "x"), True, [49408, 300])
    ]


def test_an_unknown_family():
    with pytest.raises(ValueError, match="family='sd9' is unknown: use one of sd1, sd2, sdxl"):
        blank_checkpoint("sd9")
