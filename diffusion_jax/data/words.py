"""New words for a tokenizer, as learned by textual inversion."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers

from diffusion_jax.data.tokenizers import Tokenizer


def with_word(tokenizer: Tokenizer, word: str, count: int = 1) -> Tokenizer:
    """The tokenizer with ``names(word, count)`` as new tokens, after all others.

    Args:
        tokenizer: not modified.
        word: such as "<my-cat>", found anywhere in a text.
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
        encoder.add_tokens([tokenizers.AddedToken(name, normalized=False)])
    return tokenizer._replace(encoder=encoder)


def ids_of(tokenizer: Tokenizer, word: str, count: int = 1) -> list[int]:
    """The ids of a word's tokens that exist."""
    found = [tokenizer.encoder.token_to_id(name) for name in names(word, count)]
    return [i for i in found if i is not None]


def names(word: str, count: int) -> list[str]:
    """The tokens of a word: "<cat>", "<cat>_1", "<cat>_2" ..., as diffusers names them."""
    return [word, *(f"{word}_{i}" for i in range(1, count))]


def spelled(text: str, words: Iterable[tuple[str, int]]) -> str:
    """A text with each (word, count) replaced by all its tokens."""
    for word, count in words:
        text = text.replace(word, " ".join(names(word, count)))
    return text
