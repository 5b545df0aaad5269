"""Checkpoints of zeros have the published shapes, and a tokenizer that reads any word."""

import numpy as np
import pytest

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


def test_an_unknown_family():
    with pytest.raises(ValueError, match="family='sd9' is unknown: use one of sd1, sd2, sdxl"):
        blank_checkpoint("sd9")
