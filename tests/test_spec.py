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


def untyped(*values, flag: bool = False, n: int = 0, x: float = 0.0, names: list = (), **more):
    return values, flag, n, x, names, more


ANY = {"untyped": untyped, "with_context": with_context}


def test_arguments_are_literals_of_any_kind_and_keep_their_order():
    got = spec.build(
        ANY, " untyped(-1, 'a', [2, (3.5, None)], flag=True, names=['b'], other=-2e-3) ", "f"
    )
    assert got == ((-1, "a", [2, (3.5, None)]), True, 0, 0.0, ["b"], {"other": -2e-3})
    assert spec.parse("name", "f") == ("name", [], {})
    assert spec.parse("name(2, 1, b=3, a=4)", "f") == ("name", [2, 1], {"b": 3, "a": 4})


def test_a_whole_number_is_a_float_where_one_is_wanted_and_only_there():
    *_, n, x, _, _ = spec.build(ANY, "untyped(n=2, x=3)", "f")
    assert (type(n), type(x)) == (int, float)
    assert type(spec.build(TABLE, "double(3)", "f")[0]) is float


def test_an_argument_of_the_string_wins_over_the_context():
    got = spec.build(ANY, "with_context(process='own')", "f", process="p", bias=2.5)
    assert got == ("own", 2.5)
    with pytest.raises(ValueError, match=r"f\.g = 'with_context\(1\)': multiple values"):
        spec.build(ANY, "with_context(1)", "f.g", process="p")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("untyped(flag=1)", "flag must be of type bool, got 1"),
        ("untyped(x=True)", "x must be of type float, got True"),
        ("untyped(x='1')", "x must be of type float, got '1'"),
        ("untyped(n=1.0)", "n must be of type int, got 1.0"),
        ("double(1, note=2)", "note must be of type str, got 2"),
        ("untyped.f(1)", "not of the form"),
        ("untyped(1)(2)", "not of the form"),
        ("untyped(**{})", "not of the form"),
        ("untyped(*[1])", "not of the form"),
        ("untyped(a)", "not of the form"),
        ("", "not of the form"),
        ("a; b", "not of the form"),
    ],
)
def test_corner_cases_are_said(text, words):
    with pytest.raises(ValueError) as error:
        spec.build({**ANY, **TABLE}, text, "part.f")
    assert str(error.value).startswith(f"config.part.f = {text!r}") and words in str(error.value)


def test_a_plain_config_is_jsons():
    class Config:
        def to_dict(self):
            return {"a": (1, 2), "b": {"c": None}}

    assert spec.plain(Config()) == {"a": [1, 2], "b": {"c": None}}
