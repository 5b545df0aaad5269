"""New words for a tokenizer, as learned by textual inversion."""

from __future__ import annotations

import re
from collections.abc import Iterable

import tokenizers

from diffusion_jax.data.tokenizers import Tokenizer


def with_word(tokenizer: Tokenizer, word: str, count: int = 1) -> Tokenizer:
    """The tokenizer with ``names(word, count)`` as new tokens, after all others.

    Args:
        tokenizer: not modified.
        word: such as "<my-cat>", or one of letters, which is then found as a whole word alone.
        count: number of tokens of the word.

    Raises:
        ValueError: if there is such a token already.
    """
    encoder = tokenizers.Tokenizer.from_str(tokenizer.encoder.to_str())
    for name in names(word, count):
        if not name.strip() or encoder.token_to_id(name) is not None:
            raise ValueError(
                f"the word {name!r} is a token of this tokenizer already; choose another, such as "
                f"'<{name.strip('<>') or 'mine'}-2>'"
            )
        alone = bool(re.match(r"\w", name[0]) and re.match(r"\w", name[-1]))
        token = tokenizers.AddedToken(name, normalized=False, single_word=alone)
        encoder.add_tokens([token])
    return tokenizer._replace(encoder=encoder)


def ids_of(tokenizer: Tokenizer, word: str, count: int = 1) -> list[int]:
    """The ids of a word's tokens that exist."""
    found = [tokenizer.encoder.token_to_id(name) for name in names(word, count)]
    return [i for i in found if i is not None]


def names(word: str, count: int) -> list[str]:
    """The tokens of a word: "<cat>", "<cat>_1", "<cat>_2" ..., as diffusers names them."""
    return [word, *(f"{word}_{i}" for i in range(1, count))]


def spelled(text: str, words: Iterable[tuple[str, int]]) -> str:
    """A prompt with each (word, count) replaced by all its tokens, brackets in them escaped.

    Of words that begin alike the longest counts, case does not (the text encoders' letters are
    small ones), and a word of letters is none within others: "art" is not in "cartoon".
    """
    counts = dict(words)
    if not counts:
        return text
    longest = sorted(counts, key=lambda word: (-len(word), word))

    def tokens_of(match: re.Match[str]) -> str:
        exact = match[0] in counts  # of two words that differ in case alone
        word = match[0] if exact else longest[(match.lastindex or 1) - 1]
        return f" {_BRACKET.sub(_ESCAPED, ' '.join(names(word, counts[word])))} "

    either = "|".join(f"({_pattern(word)})" for word in longest)
    return re.sub(f"(?:embedding:)?(?:{either})", tokens_of, text, flags=re.IGNORECASE)


def _pattern(word: str) -> str:
    """Regex of a word, brackets escaped or not, between what are no letters if it ends in one."""
    body = "".join(f"\\\\?{re.escape(c)}" if _BRACKET.match(c) else re.escape(c) for c in word)
    before = r"(?<!\w)" if re.match(r"\w", word[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", word[-1]) else ""
    return before + body + after


_BRACKET = re.compile(r"[()\[\]]")
_ESCAPED = r"\\\g<0>"
