import pytest

from diffusion_jax import spec


def double(x: float, times: int = 2, note: str = "") -> tuple:
    return (x * times, note)


def union(rate: "float | Array" = 1.0, least: "int | None" = None) -> tuple:
    return (rate, least)


def with_context(process, bias: float = 1.0):
    return (process, bias)


TABLE = {"double": double, "with_context": with_context, "union": union}


def test_calls_with_literal_arguments():
    assert spec.build(TABLE, "double(3)", "f") == (6, "")
    assert spec.build(TABLE, "double(1.5, times=4, note='n')", "f") == (6.0, "n")


def test_a_part_of_a_union_is_a_literal():
    assert spec.build(TABLE, "union(2, least=3)", "f") == (2, 3)
    assert spec.build(TABLE, "union(least=None)", "f") == (1.0, None)


def test_context_reaches_only_those_that_ask():
    assert spec.build(TABLE, "with_context(bias=2)", "f", process="p") == ("p", 2)
    assert spec.build(TABLE, "double(1)", "f", process="p") == (2, "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tripple(3)", ["config.f", "tripple", "known are double, union, with_context"]),
        ("double", ["config.f", "missing", "'x'"]),
        ("double(3, size=1)", ["config.f", "unexpected keyword argument 'size'"]),
        ("double('a')", ["x must be of type float", "'a'"]),
        ("double(1, times=2.5)", ["times must be of type int", "2.5"]),
        ("double(1, times=True)", ["times must be of type int"]),
        ("union('a')", ["rate must be of type float", "'a'"]),
        ("union(least=0.5)", ["least must be of type int", "0.5"]),
        ("double(" + "(" * 5000, ["not of the form"]),
        ("double({[]: 1})", ["not of the form"]),
        ("double(", ["not of the form"]),
        ("double(open('x'))", ["not of the form"]),
        ("1 + 1", ["not of the form"]),
    ],
)
def test_what_is_wrong_is_said(text, words):
    with pytest.raises(ValueError) as error:
        spec.build(TABLE, text, "f")
    for word in words:
        assert word in str(error.value)
