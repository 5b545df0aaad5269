import numpy as np
import pytest

from diffusion_jax.data.prompts import Window, parse, tokens

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
