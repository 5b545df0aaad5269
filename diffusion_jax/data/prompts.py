"""Prompts with weights and of any length, as chunks of tokens.

A text encoder with a window of n tokens reads a long prompt in chunks, each between its own begin
and end token; the states of the chunks are concatenated.  Weights are written as in the
common web interfaces: ``a (red:1.3) house``, ``(word)`` for 1.1, ``[word]`` for its
inverse; a backslash before a bracket makes it plain text, and ``BREAK`` ends a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

STEP = 1.1  # factor of one pair of plain brackets

MOST_WEIGHT = 1000.0
"""Largest size of a weight; far smaller ones already leave nothing of a prompt."""

MOST_CHUNKS = 64
"""Most chunks of a prompt: about 20,000 letters."""

_TAG = r"<(?:lora|lyco|hypernet):[^<>]*>"
_PIECE = re.compile(
    rf"{_TAG}|\\[\\()\[\]]|[()\[\]]|:\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*\)|[^\\()\[\]:<]+|.",
    re.S,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class Window(NamedTuple):
    """The window of a text encoder.

    Attributes:
        length: tokens of a chunk, begin and end included.
        begin: id of the first token.
        end: id after the last word.
        pad: id of padding.
    """

    length: int
    begin: int
    end: int
    pad: int


class Tokens(NamedTuple):
    """Prompts for an encoder.

    Attributes:
        ids: int32 [b, chunks, length].
        weights: float32 [b, chunks, length], 1 where none was given.
    """

    ids: np.ndarray
    weights: np.ndarray


def parse(prompt: str) -> list[tuple[str, float]]:
    """A prompt as (text, weight), in order; neighbours of equal weight are one piece.

    A bracket without its partner is plain text.  Tags of web interfaces such as
    "<lora:name:0.8>", which are no text, are left out (``unread`` names them).

    Raises:
        ValueError: for a weight beyond ``MOST_WEIGHT``.
    """
    texts: list[str] = []
    open_: list[tuple[str, int]] = []  # (bracket, index of its piece)
    factors: dict[int, float] = {}  # index of a bracket's piece -> the factor of the pair
    ends: dict[int, int] = {}  # index of a piece -> how many pairs end before it
    for token in _PIECE.findall(prompt):
        if token in "([":
            open_.append((token, len(texts)))
            texts.append(token)
        elif token[0] == "\\" and len(token) == 2:
            texts.append(token[1])
        elif (closes := _factor(token)) and open_ and open_[-1][0] == closes[0]:
            _, at = open_.pop()
            factors[at] = closes[1]
            ends[len(texts)] = ends.get(len(texts), 0) + 1
        elif not (token[0] == "<" and len(token) > 1):
            texts.append(token)
    return _merged(_weighted(texts, factors, ends))


def _weighted(
    texts: Sequence[str], factors: dict[int, float], ends: dict[int, int]
) -> list[tuple[str, float]]:
    """Each text with the product of the factors around it."""
    around, pieces = [1.0], []
    for i, text in enumerate(texts):
        del around[len(around) - ends.get(i, 0) :]
        if i in factors:
            around.append(around[-1] * factors[i])
        elif not abs(around[-1]) <= MOST_WEIGHT:
            raise ValueError(
                f"config.prompt: the weight {around[-1]:g} of {text[:30]!r} is beyond "
                f"{MOST_WEIGHT:g}; weights are about 0.5 to 1.5"
            )
        else:
            pieces.append((text, around[-1]))
    return pieces


def _factor(token: str) -> tuple[str, float] | None:
    """(bracket that this closes, factor), or None."""
    if token == "]":
        return "[", 1 / STEP
    if token == ")":
        return "(", STEP
    if token.startswith(":") and token.endswith(")"):
        return "(", float(token[1:-1])
    return None


def _merged(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    merged: list[tuple[list[str], float]] = []
    for text, weight in pieces:
        if merged and merged[-1][1] == weight:
            merged[-1][0].append(text)
        else:
            merged.append(([text], weight))
    return [("".join(texts), weight) for texts, weight in merged] or [("", 1.0)]


def unread(prompt: str) -> list[str]:
    """Sentences on what of a prompt is written as in web interfaces, and is not read as there."""
    found = ((pattern.search(prompt), said) for pattern, said in _UNREAD)
    return [f"{match[0][:60]!r} in the prompt {said}" for match, said in found if match]


def tokens(
    prompts: Sequence[str],
    ids_of: Callable[[str], Sequence[int]],
    window: Window,
    chunks: int | None = None,
) -> Tokens:
    """Prompts as chunks, the same number for all.

    The word BREAK ends a chunk, the rest of which is padding; with ``chunks=1`` it is left out.

    Args:
        prompts: b texts, weights in them.
        ids_of: text -> ids of its words alone, without begin, end or truncation.
        window: the encoder's window.
        chunks: number of chunks; what does not fit is cut off.  None for as many as the longest
            prompt needs.

    Raises:
        ValueError: for a window without room for a word, or a prompt of too many chunks.
    """
    room = window.length - 2
    if room < 1:
        raise ValueError(f"a window of {window.length} tokens holds no word between begin and end")
    read = [_parts(prompt, ids_of, room, whole=chunks == 1) for prompt in prompts]
    count = chunks or max(map(len, read), default=1)
    if count > MOST_CHUNKS:
        raise ValueError(
            f"config.prompt: a prompt of {count} chunks of {room} tokens is longer than any that "
            f"is read, {MOST_CHUNKS}; shorten it, or cut it by --config.chunks=1"
        )
    rows = [_chunked(parts[:count], window, count) for parts in read]
    shape = (len(prompts), count, window.length)
    ids = np.array([row[0] for row in rows], np.int32).reshape(shape)
    return Tokens(ids, np.array([row[1] for row in rows], np.float32).reshape(shape))


Part = tuple[list[int], list[float]]
"""Ids and weights of a chunk's words."""


def _parts(prompt: str, ids_of: Callable, room: int, whole: bool) -> list[Part]:
    """A prompt cut at each BREAK and where a chunk is full; at least one part."""
    sections = _sections(prompt, ids_of)
    if whole:
        sections = [tuple([x for s in sections for x in s[k]] for k in (0, 1))]
    parts = []
    for i, (ids, weights) in enumerate(sections):
        last = i == len(sections) - 1 and i > 0  # nothing after a BREAK is no chunk
        count = max(-(-len(ids) // room), 0 if last else 1)
        cuts = [slice(k * room, (k + 1) * room) for k in range(count)]
        parts += [(ids[cut], weights[cut]) for cut in cuts]
    return parts


def _sections(prompt: str, ids_of: Callable) -> list[Part]:
    """Ids and weights between one BREAK and the next."""
    sections: list[Part] = [([], [])]
    for text, weight in parse(prompt):
        for i, words in enumerate(_BREAK.split(text)):
            if i:
                sections.append(([], []))
            found = list(ids_of(words)) if words or not i else []
            sections[-1][0].extend(found)
            sections[-1][1].extend([weight] * len(found))
    return sections


def _chunked(parts: Sequence[Part], window: Window, count: int):
    out_ids, out_weights = [], []
    for words, factors in [*parts, *[([], [])] * (count - len(parts))]:
        rest = window.length - 2 - len(words)
        out_ids.append([window.begin, *words, window.end, *[window.pad] * rest])
        out_weights.append([1.0, *factors, *[1.0] * (rest + 1)])
    return out_ids, out_weights


_UNREAD = tuple(
    (re.compile(pattern), said)
    for pattern, said in (
        (
            _TAG,
            "is left out: a prompt loads no file; name it in config.lora=('name.safetensors:0.8',)",
        ),
        (r"\bAND\b", "is read as a word: prompts are not composed"),
        (
            r"\[[^\[\]:]*:[^\[\]]*\]",
            "is read as text of a smaller weight: what a prompt says does not change between steps",
        ),
        (
            r"\[[^\[\]|]*\|[^\[\]]*\]|\{[^{}|]*\|[^{}]*\}",
            "is read as text: a prompt has no alternatives; name several in config.prompts",
        ),
        (r"__\w[\w/-]*__", "is read as text: a prompt has no wildcards"),
        (
            r"\([^()]*:\s*[+-]?(?:nan|inf|\d[\d.]*[eE][+-]?\d+)\s*\)",
            "is no weight and read as text; a weight is a number such as (word:1.3)",
        ),
    )
)
