"""Prompts with weights and of any length, as chunks of tokens.

A text encoder with a window of n tokens reads a long prompt in chunks, each between its own begin
and end token; the states of the chunks are concatenated.  Weights are written as in the
common web interfaces: ``a (red:1.3) house``, ``(word)`` for 1.1, ``[word]`` for its
inverse; a backslash before a bracket makes it plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

STEP = 1.1  # factor of one pair of plain brackets

_PIECE = re.compile(
    r"\\[\\()\[\]]|[()\[\]]|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[^\\()\[\]:]+|.", re.S
)


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

    A bracket without its partner is plain text.
    """
    pieces: list[list] = []  # [text, weight]
    open_: list[tuple[str, int]] = []  # (bracket, index of its piece)
    for token in _PIECE.findall(prompt):
        if token in "([":
            open_.append((token, len(pieces)))
            pieces.append([token, 1.0])
        elif token[0] == "\\" and len(token) == 2:
            pieces.append([token[1], 1.0])
        elif (closes := _factor(token)) and open_ and open_[-1][0] == closes[0]:
            _, at = open_.pop()
            pieces[at][0] = ""
            for piece in pieces[at:]:
                piece[1] *= closes[1]
        else:
            pieces.append([token, 1.0])
    return _merged(pieces)


def _factor(token: str) -> tuple[str, float] | None:
    """(bracket that this closes, factor), or None."""
    if token == "]":
        return "[", 1 / STEP
    if token == ")":
        return "(", STEP
    if token.startswith(":") and token.endswith(")"):
        return "(", float(token[1:-1])
    return None


def _merged(pieces: list[list]) -> list[tuple[str, float]]:
    merged: list[tuple[str, float]] = []
    for text, weight in pieces:
        if not text:
            continue
        if merged and merged[-1][1] == weight:
            text = merged.pop()[0] + text
        merged.append((text, weight))
    return merged or [("", 1.0)]


def tokens(
    prompts: Sequence[str],
    ids_of: Callable[[str], Sequence[int]],
    window: Window,
    chunks: int | None = None,
) -> Tokens:
    """Prompts as chunks, the same number for all.

    Args:
        prompts: b texts, weights in them.
        ids_of: text -> ids of its words alone, without begin, end or truncation.
        window: the encoder's window.
        chunks: number of chunks; what does not fit is cut off.  None for as many as the longest
            prompt needs.

    Raises:
        ValueError: for a window without room for a word.
    """
    room = window.length - 2
    if room < 1:
        raise ValueError(f"a window of {window.length} tokens holds no word between begin and end")
    read = [_words(prompt, ids_of) for prompt in prompts]
    count = chunks or max([1, *(-(-len(words) // room) for words, _ in read)])
    rows = [_chunked(words, weights, window, count) for words, weights in read]
    shape = (len(prompts), count, window.length)
    ids = np.array([row[0] for row in rows], np.int32).reshape(shape)
    return Tokens(ids, np.array([row[1] for row in rows], np.float32).reshape(shape))


def _words(prompt: str, ids_of: Callable) -> tuple[list[int], list[float]]:
    ids, weights = [], []
    for text, weight in parse(prompt):
        found = list(ids_of(text))
        ids += found
        weights += [weight] * len(found)
    return ids, weights


def _chunked(ids: list[int], weights: list[float], window: Window, count: int):
    room = window.length - 2
    out_ids, out_weights = [], []
    for k in range(count):
        part = slice(k * room, (k + 1) * room)
        words, factors = ids[part], weights[part]
        rest = room - len(words)
        out_ids.append([window.begin, *words, window.end, *[window.pad] * rest])
        out_weights.append([1.0, *factors, *[1.0] * (rest + 1)])
    return out_ids, out_weights
