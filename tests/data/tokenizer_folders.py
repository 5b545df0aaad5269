"""Folders of tokenizers such as checkpoints have, and 1,000 texts to try them on."""

import importlib.util
import json
import random
import unicodedata
from pathlib import Path

import sentencepiece
import tokenizers

END = "<|endoftext|>"
START = "<|startoftext|>"
CORPUS = [
    "a photo of a red apple on a wooden table, don't you think? it's 12345 o'clock!!",
    "an astronaut riding a horse on the moon, oil painting by the sea, highly detailed",
    "the quick brown fox jumps over the lazy dog; they've seen we're here, I'd say you'll go",
    "Ein großer Bär, él niño, 猫と犬が走る, 你好世界, مرحبا بالعالم, привет мир, नमस्ते",
    "cafe\u0301 naïve façade ﬁne ½ cup Ⅷ x² — “quoted” … 100% #tag @name e-mail foo_bar",
] * 20


def texts(seed=0, number=1000):
    """Texts that are hard in every way known, then random ones, number in all."""
    rng = random.Random(seed)
    fixed = [
        "",
        " ",
        "\n\t \r",
        "\u00a0",
        "\u3000a\u3000",
        "\u200b",
        "\ufeffa",
        "\x00",
        "a\x00b",
        "\x7f\x1b",
        "hello, world!",
        "HELLO World",
        "don't I'LL we've 'S it''s",
        "12345 ٣٤٥ ½ Ⅷ ² 一二三",
        "你好，世界",
        "日本語のテキスト",
        "안녕하세요 세계",
        "مرحبا بالعالم",
        "שלום",
        "नमस्ते दुनिया",
        "ภาษาไทย",
        "😀😃👩‍⚕️🏳️‍🌈👍🏽🇯🇵",
        "text😀text",
        "e\u0301 é e\u0301\u0302",
        "\u0301",
        "a" + "\u0301" * 50,
        "İIıi ẞß ŒœÆ ǅ ς Σ",
        "ﬁ ﬀ ﷺ Å Å ①",
        "ＡＢＣ　ｆｕｌｌ",
        "𝕳𝖊𝖑𝖑𝖔",
        "\U0010ffff\U000e0001",
        "\ufffd\ufffe",
        "<|startoftext|>a<|endoftext|>b",
        "<|STARTOFTEXT|>",
        "< |endoftext| >",
        "a !! b ! c!d",
        "!",
        "<extra_id_0> a <extra_id_99><extra_id_100>",
        "</s> a</s>b",
        "<pad><unk>",
        "▁a ▁ b",
        "<s>",
        "[CLS] a [SEP] [MASK] [PAD] [UNK] [cls]",
        "a-b_c/d\\e|f~g`h",
        "##ing ##",
        "</w> a</w>",
        "Ġ Ċ",
        "a" * 10000,
        "ab " * 3334,
        "猫" * 10000,
        "😀" * 2500,
        " " * 10000,
        "pneumono" * 40,
        "1" * 300,
        "\u2028a\u2029b\x85c\x0bd\x0ce\x1cf",
        "\u1680\u180e\u2000\u202f\u205f",
        "a\u00adb",
        "\u202eabc\u202c",
    ]
    ranges = [(32, 127), (32, 127), (0, 0x250), (0x300, 0x370), (0x370, 0x800), (0x900, 0x1000)]
    ranges += [(0x2000, 0x2C00), (0x3000, 0xA000), (0xAC00, 0xD7A4), (0xF900, 0xFFFF)]
    ranges += [(0x1D400, 0x1D800), (0x1F300, 0x1FB00), (0x20000, 0x20100), (0, 0x110000)]
    words = " ".join(CORPUS[:5]).split()

    def piece():
        if rng.random() < 0.5:
            return rng.choice(words)
        low, high = rng.choice(ranges)
        codes = (rng.randrange(low, high) for _ in range(rng.randrange(1, 9)))
        return "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)

    def text():
        joined = rng.choice(["", " ", " ", "  "]).join(piece() for _ in range(rng.randrange(1, 40)))
        return unicodedata.normalize(rng.choice(["NFC", "NFD", "NFKD"]), joined)

    return [*fixed, *(text() for _ in range(number - len(fixed)))]


def real_clip_merges():
    """CLIP's 48,894 merges, which the package instant-clip-tokenizer carries; None without it."""
    spec = importlib.util.find_spec("instant_clip_tokenizer")
    if spec is None:
        return None
    library = next(Path(spec.origin).parent.glob("*.so")).read_bytes()
    start = library.index(b"i n\nt h\na n\n")
    lines = library[start : start + 2**20].decode("utf-8", "ignore").split("\n")
    return lines[: 49152 - 256 - 2]


def small_clip_merges():
    """Merges learned from CORPUS."""
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    encoder.normalizer = tokenizers.normalizers.Lowercase()
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, end_of_word_suffix="</w>", show_progress=False
    )
    encoder.train_from_iterator(CORPUS, trainer)
    return [" ".join(pair) for pair in json.loads(encoder.to_str())["model"]["merges"]]


def write_clip(folder, merges, special=None, config=None):
    """vocab.json and merges.txt, with SD 1's settings unless others are given."""
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    # Printable bytes first, as in CLIP's vocabulary, so that "!" has id 0.
    letters = sorted(letters, key=lambda c: (ord(c) > 255, ord(c)))
    tokens = [*letters, *(f"{c}</w>" for c in letters)]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens = list(dict.fromkeys([*tokens, START, END]))
    _write(folder, "vocab.json", {token: i for i, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    form = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = {"content": START, **form}, {"content": END, **form}
    special = special or {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": END}
    _write(folder, "special_tokens_map.json", special)
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **(config or {})}
    _write(folder, "tokenizer_config.json", config)
    return folder


def write_t5(folder, config=None):
    """spiece.model, a unigram model of CORPUS with T5's order of special tokens."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "spiece"),
        vocab_size=300,
        model_type="unigram",
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    config = {"model_max_length": 64, "tokenizer_class": "T5Tokenizer", **(config or {})}
    _write(folder, "tokenizer_config.json", config)
    return folder


def write_bert(folder, config=None):
    """vocab.txt, the word pieces of CORPUS."""
    encoder = tokenizers.BertWordPieceTokenizer()
    encoder.train_from_iterator(CORPUS, vocab_size=300, show_progress=False)
    encoder.save_model(str(folder))
    config = {"model_max_length": 64, "tokenizer_class": "BertTokenizer", **(config or {})}
    _write(folder, "tokenizer_config.json", config)
    return folder


def _write(folder, name, value):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value), "utf-8")
