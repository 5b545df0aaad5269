import re

import numpy as np
import pytest

from diffusion_jax.data.prompts import Window, parse, tokens, unread
from diffusion_jax.data.words import spelled

WINDOW = Window(length=6, begin=100, end=101, pad=0)


def ids_of(text):
    return [ord(char) for char in text if char.isalpha()]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("", [("", 1.0)]),
        ("a red house", [("a red house", 1.0)]),
        ("a (red:1.3) house", [("a ", 1.0), ("red", 1.3), (" house", 1.0)]),
        ("(a)", [("a", 1.1)]),
        ("((a))b", [("a", 1.1 * 1.1), ("b", 1.0)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("(a (b:2):0.5)", [("a ", 0.5), ("b", 1.0)]),
        (r"a \(b\)", [("a (b)", 1.0)]),
        ("smile :) or (", [("smile :) or (", 1.0)]),
        ("flag: Japan", [("flag: Japan", 1.0)]),
        ("(flag: Japan:1.5)", [("flag: Japan", 1.5)]),
        ("(a:-.5)", [("a", -0.5)]),
        ("(a]", [("(a]", 1.0)]),
        ("a\\", [("a\\", 1.0)]),
        ("(emoji 😀\n中:1.2)", [("emoji 😀\n中", 1.2)]),
    ],
)
def test_weights_are_read(prompt, pieces):
    found = parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    np.testing.assert_allclose([w for _, w in found], [w for _, w in pieces])


def test_a_long_prompt_becomes_chunks_and_all_have_as_many():
    found = tokens(["abcdefg", "x", ""], ids_of, WINDOW)
    assert found.ids.shape == found.weights.shape == (3, 2, 6)
    first = [[100, 97, 98, 99, 100, 101], [100, 101, 102, 103, 101, 0]]
    np.testing.assert_array_equal(found.ids[0], first)
    np.testing.assert_array_equal(found.ids[1, 0], [100, 120, 101, 0, 0, 0])
    np.testing.assert_array_equal(found.ids[2, 1], [100, 101, 0, 0, 0, 0])
    assert (found.weights == 1).all()


def test_what_does_not_fit_the_chunks_is_left_out():
    found = tokens(["ab(cdef:2)g"], ids_of, WINDOW, chunks=1)
    np.testing.assert_array_equal(found.ids[0], [[100, 97, 98, 99, 100, 101]])
    np.testing.assert_array_equal(found.weights[0], [[1, 1, 1, 2, 2, 1]])


def test_a_window_without_room_is_refused():
    with pytest.raises(ValueError, match="window of 2 tokens"):
        tokens(["a"], ids_of, Window(2, 0, 1, 0))


def test_break_ends_a_chunk():
    found = tokens(["ab BREAK cdefg", "BREAK x BREAK", "abc"], ids_of, WINDOW)
    want = [[97, 98], [99, 100, 101, 102], [103]], [[], [120], []], [[97, 98, 99], [], []]
    for rows, chunks in zip(found.ids, want, strict=True):
        for row, words in zip(rows, chunks, strict=True):
            padding = [0] * (4 - len(words))
            np.testing.assert_array_equal(row, [100, *words, 101, *padding])
    weighted = tokens(["(a BREAK b:1.5)"], ids_of, WINDOW)
    np.testing.assert_array_equal(weighted.weights[0], [[1, 1.5, 1, 1, 1, 1]] * 2)
    # With one chunk it is left out, and as a part of a word it is none.
    one = tokens(["ab BREAK c"], ids_of, WINDOW, chunks=1)
    np.testing.assert_array_equal(one.ids[0], [[100, 97, 98, 99, 101, 0]])
    assert tokens(["aBREAK break"], ids_of, Window(20, 100, 101, 0)).ids.shape[1] == 1


@pytest.mark.parametrize(
    ("prompt", "words", "pieces"),
    [
        ("a <lora:x:0.8>b", "'<lora:x:0.8>' .* config.lora=", [("a b", 1.0)]),
        ("a AND b", "'AND' in the prompt is read as a word", [("a AND b", 1.0)]),
        ("[a:b:0.5]", r"'\[a:b:0.5\]' .* does not change between", [("a:b:0.5", 1 / 1.1)]),
        ("[a|b]", "has no alternatives", [("a|b", 1 / 1.1)]),
        ("__hair__", "no wildcards", [("__hair__", 1.0)]),
        ("(a:nan)", "is no weight", [("a:nan", 1.1)]),
        ("(a:1e9)", "is no weight", [("a:1e9", 1.1)]),
    ],
)
def test_what_is_not_read_is_said(prompt, words, pieces):
    (said,) = unread(prompt)
    assert re.search(words, said)
    assert parse(prompt) == pieces
    assert not unread("a (red:1.3) house, [fog] and a smile :)")


def test_a_prompt_without_end_is_refused():
    with pytest.raises(ValueError, match=r"the weight 1e\+40 of 'a' is beyond 1000"):
        parse("(a:1" + "0" * 40 + ")")
    with pytest.raises(ValueError, match="a prompt of 250 chunks of 4 tokens"):
        tokens(["a" * 1000], ids_of, WINDOW)


WORDS = (("Easy", 3), ("EasyV2", 2), ("art", 1), ("my cat (v2)", 2), ("<two>", 2), ("EASY", 1))


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("Easy", " Easy Easy_1 Easy_2 "),
        ("EasyV2, x", " EasyV2 EasyV2_1 , x"),
        ("easyv2", " EasyV2 EasyV2_1 "),
        ("EASY", " EASY "),
        ("EasyV23 a cartoon", "EasyV23 a cartoon"),
        ("(Easy:1.2)", "( Easy Easy_1 Easy_2 :1.2)"),
        ("embedding:art", " art "),
        ("a<two>b", "a <two> <two>_1 b"),
        ("my cat (v2)", r" my cat \(v2\) my cat \(v2\)_1 "),
        (r"my cat \(v2\)", r" my cat \(v2\) my cat \(v2\)_1 "),
    ],
)
def test_words_are_spelled_by_their_tokens(text, made):
    for words in (WORDS, WORDS[::-1]):
        assert spelled(text, words) == made
    assert spelled(text, ()) == text
