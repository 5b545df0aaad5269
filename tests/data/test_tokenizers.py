"""Tokenizers by themselves, by hand-made ids, and by libraries that are not transformers."""

import json

import numpy as np
import pytest
import sentencepiece
from tokenizer_folders import (
    CORPUS,
    END,
    START,
    real_clip_merges,
    small_clip_merges,
    write_bert,
    write_clip,
    write_t5,
)

from diffusion_jax.data.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"), small_clip_merges())


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


def test_clip_by_hand(tmp_path):
    """a b -> ab within a word; </w> ends a word; bytes for what no merge reaches."""
    tokenizer = load_tokenizer(write_clip(tmp_path, ["a b", "ab c</w>"]))
    vocabulary = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    names = {i: name for name, i in vocabulary.items()}
    ids = tokenizer.raw(["ABC  abab\n1c é", "", "a" + START])
    assert [[names[i] for i in text] for text in ids] == [
        ["abc</w>", "ab", "a", "b</w>", "1</w>", "c</w>", "Ã", "©</w>"],
        [],
        ["a</w>", START],
    ]
    start, end = vocabulary[START], vocabulary[END]
    out = tokenizer(["abc", ""], length=5)
    assert out.ids.tolist() == [[start, vocabulary["abc</w>"], end, end, end], [start] + [end] * 4]
    assert out.mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert out.ids.dtype == out.mask.dtype == np.int32


def test_real_clip_ids(tmp_path):
    """By a CLIP tokenizer in Rust, over CLIP's own vocabulary."""
    if (merges := real_clip_merges()) is None:
        pytest.skip("needs the package instant-clip-tokenizer")
    import instant_clip_tokenizer

    theirs = instant_clip_tokenizer.Tokenizer()
    ours = load_tokenizer(write_clip(tmp_path, merges))
    texts = [*CORPUS[:3], "a photo of a cat", "Mount Fuji, ukiyo-e", "été à Zürich 😀"]
    assert ours.raw(["a photo of a cat"]) == [[320, 1125, 539, 320, 2368]]
    assert ours.raw(texts) == [theirs.encode(text) for text in texts]
    assert (ours.prefix, ours.suffix, ours.pad) == ((49406,), (49407,), 49407)


def test_t5_is_sentencepiece(t5):
    tokenizer = load_tokenizer(t5)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(t5 / "spiece.model"))
    texts = [*CORPUS[:5], "", "  two  spaces ", "zażółć unknown 😀😀 letters"]
    assert tokenizer.raw(texts) == [theirs.encode(text) for text in texts]
    pieces = theirs.get_piece_size()
    assert tokenizer.raw(["<extra_id_0>", "<extra_id_99>"]) == [[pieces + 99], [pieces]]
    out = tokenizer([CORPUS[0], ""], length=8)
    assert out.ids[0].tolist() == [*theirs.encode(CORPUS[0])[:7], 1]
    assert out.ids[1].tolist() == [1] + [0] * 7


def test_bert_by_hand(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "##der", "cafe", "猫", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), "utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.length is None
    out = tokenizer(["Redder, RED café 猫猫 zzz", "[MASK]"], length=12)
    assert out.ids[0].tolist() == [2, 5, 6, 9, 5, 7, 8, 8, 1, 3, 0, 0]
    assert out.ids[1].tolist() == [2, 4, 3] + [0] * 9


@pytest.mark.parametrize("name", ["clip", "t5", "bert"])
def test_long_texts_keep_their_start_and_their_frame(name, request):
    tokenizer = load_tokenizer(request.getfixturevalue(name))
    text = " ".join(CORPUS)
    out, (raw,) = tokenizer([text]), tokenizer.raw([text])
    front, back = len(tokenizer.prefix), len(tokenizer.suffix)
    assert len(raw) > tokenizer.length and out.mask.all()
    kept = tokenizer.length - front - back
    assert out.ids[0].tolist() == [*tokenizer.prefix, *raw[:kept], *tokenizer.suffix]
    # Chunks: what a caller frames is what a call frames.
    np.testing.assert_array_equal(tokenizer.framed([raw[:kept]]).ids, out.ids)
    exact = tokenizer([text], length=front + back + 1)
    assert exact.ids[0].tolist() == [*tokenizer.prefix, raw[0], *tokenizer.suffix]


def test_the_padding_token_of_the_folder(tmp_path):
    """SD 2's and SDXL's pad with "!", which is then a token of its own in a text too."""
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}
    tokenizer = load_tokenizer(write_clip(tmp_path, ["a b"], special))
    out = tokenizer(["a!"], length=6)
    assert out.ids[0, 2] == 0 and out.ids[0, 4:].tolist() == [0, 0]
    assert out.mask[0].tolist() == [1, 1, 1, 1, 0, 0]


def test_errors_name_the_file_and_the_mend(tmp_path, clip):
    with pytest.raises(FileNotFoundError, match=r"one of tokenizer\.json, vocab\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"merges\.txt is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"lacks the special tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text('{"broken"')
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)
    tokenizer = load_tokenizer(clip)
    tokenizer.encoder.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"no pad_token: add it to tokenizer_config\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="length=1 is too short for the 2 tokens"):
        tokenizer(["a"], length=1)
    with pytest.raises(TypeError, match="give a list"):
        tokenizer("a red apple")
    with pytest.raises(ValueError, match="length is None"):
        tokenizer._replace(length=None)(["a"])


def test_the_left_side_is_refused(tmp_path):
    folder = write_clip(tmp_path, ["a b"], config={"padding_side": "left"})
    with pytest.raises(ValueError, match="padding_side='left'"):
        load_tokenizer(folder)
