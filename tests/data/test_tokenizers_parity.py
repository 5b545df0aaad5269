"""Our tokenizers against transformers', on 1,000 texts each."""

import os

import numpy as np
import pytest
from tokenizer_folders import (
    END,
    START,
    real_clip_merges,
    small_clip_merges,
    texts,
    write_bert,
    write_clip,
    write_t5,
)

from diffusion_jax.data.packaged_minilm import packaged_minilm
from diffusion_jax.data.tokenizers import load_tokenizer

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import transformers
else:
    transformers = pytest.importorskip("transformers")

FORM = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
FORMS = {START: {"content": START, **FORM}, END: {"content": END, **FORM}}
SD2 = {
    "bos_token": FORMS[START],
    "eos_token": FORMS[END],
    "unk_token": FORMS[END],
    "pad_token": "!",
}
BANG = {"content": "!", **FORM, "normalized": False, "special": True}
T5_TOKENS = {
    "extra_ids": 100,
    "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)],
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def _clip(folder, special=None, config=None):
    return write_clip(folder, real_clip_merges() or small_clip_merges(), special, config)


def _sdxl(folder):
    """As SDXL's second tokenizer: every special token in tokenizer_config.json, with its id."""
    plain = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}
    merges = real_clip_merges() or small_clip_merges()
    end = 512 + len(merges) + 1
    forms = {end - 1: FORMS[START], end: FORMS[END]}
    decoder = {0: BANG} | {i: {**form, "special": True} for i, form in forms.items()}
    decoder = {str(i): form for i, form in decoder.items()}
    return write_clip(folder, merges, SD2, {**plain, "added_tokens_decoder": decoder})


def _minilm(folder):
    """A folder with a tokenizer.json that truncates and pads by itself."""
    try:
        return packaged_minilm()
    except FileNotFoundError as error:
        pytest.skip(str(error))


FOLDERS = {
    "SD 1": ("CLIPTokenizer", _clip),
    "SD 2": ("CLIPTokenizer", lambda folder: _clip(folder, SD2)),
    "SDXL 2": ("CLIPTokenizer", _sdxl),
    "small CLIP": ("CLIPTokenizer", lambda folder: write_clip(folder, small_clip_merges())),
    "T5": ("T5Tokenizer", write_t5),
    "T5, named tokens": ("T5Tokenizer", lambda folder: write_t5(folder, T5_TOKENS)),
    "BERT": ("BertTokenizer", write_bert),
    "cased BERT": ("BertTokenizer", lambda folder: write_bert(folder, {"do_lower_case": False})),
    "MiniLM": ("BertTokenizer", _minilm),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_same_ids_padding_and_truncation(case, tmp_path):
    name, write = FOLDERS[case]
    (tmp_path / "files").mkdir()
    folder = write(tmp_path / "files")
    theirs = getattr(transformers, name).from_pretrained(str(folder))
    theirs.save_pretrained(str(tmp_path / "json"))
    batch = texts()
    assert len(batch) == 1000
    ours = load_tokenizer(folder)
    assert ours.length == theirs.model_max_length
    _compare(ours, theirs, batch)
    # transformers saves one tokenizer.json, whatever it read.
    _compare(load_tokenizer(tmp_path / "json"), theirs, batch[:100])


def _compare(ours, theirs, batch):
    out = ours(batch)
    expected = theirs(
        batch, padding="max_length", truncation=True, max_length=ours.length, return_tensors="np"
    )
    np.testing.assert_array_equal(out.ids, expected["input_ids"])
    np.testing.assert_array_equal(out.mask, expected["attention_mask"])
    raw = theirs(batch, add_special_tokens=False, verbose=False)["input_ids"]
    assert ours.raw(batch) == raw
    assert max(map(len, raw)) > ours.length
