"""Tokenizers, from the files of a checkpoint's tokenizer folder.

A folder holds one of tokenizer.json; vocab.json and merges.txt (CLIP's byte-level pairs);
spiece.model (T5's unigrams); vocab.txt (BERT's word pieces).  tokenizer_config.json,
special_tokens_map.json and added_tokens.json name the special tokens and the longest text.
Ids, padding and truncation are those of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models, normalizers, pre_tokenizers, processors

Settings = dict[str, Any]

_CONFIG = "tokenizer_config.json"
# transformers writes 10^30 for a tokenizer without a limit.
_NO_LIMIT = 10**9


class Tokens(NamedTuple):
    """A batch of texts.

    Attributes:
        ids: int32 [b, length].
        mask: int32 [b, length], 1 for tokens of the text, begin and end, 0 for padding.
    """

    ids: Int[np.ndarray, "b length"]
    mask: Int[np.ndarray, "b length"]


class Tokenizer(NamedTuple):
    """Texts -> ids.

    Attributes:
        encoder: the library's tokenizer, which neither truncates nor pads.
        prefix: ids before each text.
        suffix: ids after each text.
        pad: the padding id.
        length: default number of ids of a text; None if the files name no limit.
    """

    encoder: tokenizers.Tokenizer
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad: int
    length: int | None

    def __call__(self, texts: Sequence[str], length: int | None = None) -> Tokens:
        """Ids of each text, with prefix and suffix, truncated and padded to length.

        Args:
            texts: any Unicode; a text that is too long keeps its start.
            length: length of the result; None for the tokenizer's default.

        Raises:
            ValueError: if there is no length, or prefix and suffix do not fit in it.
            TypeError: if texts is one str.
        """
        return self.framed(self.raw(texts), length)

    def raw(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without prefix, suffix, truncation or padding, as for chunks.

        Raises:
            ValueError: for a text that is not whole Unicode.
            TypeError: if texts is one str.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts is one str, {texts[:20]!r}: give a list of them.")
        for text in texts:
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise ValueError(f"{text[:40]!a} holds half of a character: write it again.")
        encoded = self.encoder.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def framed(self, ids: Sequence[Sequence[int]], length: int | None = None) -> Tokens:
        """prefix + ids + suffix of each, truncated and padded to length; raises as a call does."""
        length = self.length if length is None else length
        if length is None:
            raise ValueError("length is None, and the tokenizer's files name none: give one.")
        room = length - len(self.prefix) - len(self.suffix)
        if room < 0:
            raise ValueError(
                f"length={length} is too short for the {length - room} tokens that frame a text."
            )
        out = np.full((len(ids), length), self.pad, np.int32)
        mask = np.zeros((len(ids), length), np.int32)
        for i, text in enumerate(ids):
            row = [*self.prefix, *text[:room], *self.suffix]
            out[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return Tokens(out, mask)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder, such as a checkpoint's "tokenizer" or "tokenizer_2".

    Raises:
        FileNotFoundError: naming the missing file.
        ValueError: if a file cannot be read, or asks for truncation or padding on the left.
    """
    folder = Path(folder)
    kind = next((kind for kind, files in _FILES.items() if (folder / files[0]).is_file()), None)
    if kind is None:
        first = ", ".join(files[0] for files in _FILES.values())
        raise FileNotFoundError(f"{folder} holds no tokenizer: it needs one of {first}.")
    for name in _FILES[kind]:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: {_FILES[kind][0]} needs it.")
    try:
        return _loaded(folder, kind)
    except ValueError:
        raise
    except Exception as error:  # of a setting of another type than any that is written
        raise ValueError(f"The files of {folder} cannot be read ({error}): fetch them.") from error


def _loaded(folder: Path, kind: str) -> Tokenizer:
    settings = _settings(folder)
    try:
        encoder = _BUILDERS[kind](folder, settings)
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{folder / _FILES[kind][0]} cannot be read ({error}).") from error
    for side in ("truncation_side", "padding_side"):
        if settings.get(side, "right") != "right":
            raise ValueError(
                f"{side}={settings[side]!r} in {folder} is not supported: only 'right' is."
            )
    tokenizer = _finished(encoder, settings)
    if tokenizer.pad is None:
        raise ValueError(f"The files of {folder} name no pad_token: add it to {_CONFIG}.")
    return tokenizer


def _finished(encoder: tokenizers.Tokenizer, settings: Settings) -> Tokenizer:
    encoder.no_truncation()
    padding = encoder.padding or {}
    encoder.no_padding()
    special = [_added(token) for token in settings["added"]]
    special += [_added(settings[name]) for name in _NAMED if settings.get(name) is not None]
    special += [_added(token) for token in settings.get("additional_special_tokens") or ()]
    encoder.add_tokens(_new(special, encoder))
    pad = settings.get("pad_token")
    pad_id: Any = encoder.token_to_id(_content(pad)) if pad else padding.get("pad_id")
    # What the library adds around a text of one ordinary token or more.
    framed = encoder.encode("a")
    inside = [i for i, special in enumerate(framed.special_tokens_mask) if not special]
    limit = int(settings.get("model_max_length") or _NO_LIMIT)
    return Tokenizer(
        encoder,
        tuple(framed.ids[: inside[0]]),
        tuple(framed.ids[inside[-1] + 1 :]),
        pad_id,
        limit if limit < _NO_LIMIT else None,
    )


def _new(tokens: list[tokenizers.AddedToken], encoder: tokenizers.Tokenizer) -> list:
    """Tokens not added yet, each once: the first form of a token counts."""
    known = {token.content for token in encoder.get_added_tokens_decoder().values()}
    first = {token.content: token for token in reversed(tokens)}
    return [t for t in tokens if first[t.content] is t and t.content not in known]


def _settings(folder: Path) -> Settings:
    """The three files of settings as one; "added" are the tokens that they add, by id."""
    settings = _read_json(folder / _CONFIG)
    # Older folders keep the special tokens apart, and their word counts.
    if "added_tokens_decoder" not in settings:
        settings |= _read_json(folder / "special_tokens_map.json")
    decoder = {int(i): token for i, token in settings.get("added_tokens_decoder", {}).items()}
    if not decoder:
        named = {_content(settings[name]) for name in _NAMED if settings.get(name)}
        for content, i in _read_json(folder / "added_tokens.json").items():
            special = content in named
            decoder[i] = {"content": content, "special": special, "normalized": not special}
    forms = {token["content"]: token for token in decoder.values()}
    for name in _NAMED:
        if settings.get(name) is not None:
            settings[name] = forms.get(_content(settings[name]), settings[name])
    return settings | {"added": [decoder[i] for i in sorted(decoder)]}


def _read_json(path: Path) -> Settings:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}, not a JSON object.")
    return settings


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _added(token: str | dict[str, Any]) -> tokenizers.AddedToken:
    if isinstance(token, str):
        return tokenizers.AddedToken(token, special=True, normalized=False)
    flags = {name: token.get(name, False) for name in ("single_word", "lstrip", "rstrip")}
    special = token.get("special", True)
    normalized = token.get("normalized", not special)
    return tokenizers.AddedToken(token["content"], special=special, normalized=normalized, **flags)


def _from_json(folder: Path, settings: Settings) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def _clip(folder: Path, settings: Settings) -> tokenizers.Tokenizer:
    """Lower case, then pairs of bytes within words (Radford et al. 2021, section 2.4)."""
    for name, content in _CLIP_TOKENS.items():
        settings[name] = settings.get(name) or content
    bos, eos, unk = (_content(settings[f"{name}_token"]) for name in ("bos", "eos", "unk"))
    files = (str(folder / name) for name in _FILES["clip"])
    model = models.BPE.from_file(*files, end_of_word_suffix="</w>", unk_token=unk)
    encoder = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    encoder.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return _template(encoder, f"{bos} $A {eos}", (bos, eos))


def _t5(folder: Path, settings: Settings) -> tokenizers.Tokenizer:
    """The most likely unigrams (Kudo 2018), and the sentinels <extra_id_99> ... <extra_id_0>."""
    for name, content in _T5_TOKENS.items():
        settings[name] = settings.get(name) or content
    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString((folder / "spiece.model").read_bytes())
    extra = [f"<extra_id_{i}>" for i in range(settings.get("extra_ids", 100))]
    # Types 3 and 4 are control symbols and user-defined ones.
    marked = [piece.piece for piece in proto.pieces if piece.type in (3, 4)]
    given = settings.get("additional_special_tokens") or []
    settings["additional_special_tokens"] = [*given, *marked, *extra]
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    vocab += [(name, 0.0) for name in reversed(extra)]
    encoder = tokenizers.Tokenizer(models.Unigram(vocab, proto.trainer_spec.unk_id, False))
    if charsmap := proto.normalizer_spec.precompiled_charsmap:
        encoder.normalizer = normalizers.Precompiled(charsmap)
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "always", True)]
    )
    eos = _content(settings["eos_token"])
    return _template(encoder, f"$A {eos}", (eos,))


def _bert(folder: Path, settings: Settings) -> tokenizers.Tokenizer:
    """Greedy longest piece from the left (Devlin et al. 2019)."""
    for name, content in _BERT_TOKENS.items():
        settings[name] = settings.get(name) or content
    cls, sep, unk = (_content(settings[f"{name}_token"]) for name in ("cls", "sep", "unk"))
    model = models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token=unk)
    encoder = tokenizers.Tokenizer(model)
    encoder.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    encoder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _template(encoder, f"{cls} $A {sep}", (cls, sep))


def _template(
    encoder: tokenizers.Tokenizer, single: str, tokens: tuple[str, ...]
) -> tokenizers.Tokenizer:
    ids = [(token, encoder.token_to_id(token)) for token in dict.fromkeys(tokens)]
    if missing := [token for token, i in ids if i is None]:
        raise ValueError(f"the vocabulary lacks the special tokens {missing}")
    encoder.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return encoder


_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
    r"|[^\s\p{L}\p{N}]+"
)
_END = "<|endoftext|>"
_CLIP_TOKENS = {
    "bos_token": "<|startoftext|>", "eos_token": _END, "unk_token": _END, "pad_token": _END
}  # fmt: skip
_T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_BERT_TOKENS = {
    f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
}
_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

# The files that each kind needs; the first identifies it; in order of preference.
_FILES: dict[str, tuple[str, ...]] = {
    "json": ("tokenizer.json",),
    "clip": ("vocab.json", "merges.txt"),
    "t5": ("spiece.model",),
    "bert": ("vocab.txt",),
}
_BUILDERS: dict[str, Callable[[Path, Settings], tokenizers.Tokenizer]] = {
    "json": _from_json,
    "clip": _clip,
    "t5": _t5,
    "bert": _bert,
}
