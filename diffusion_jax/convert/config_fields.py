"""What is done with each field of a config.json: followed, equivalent here, or refused.

A table of fields (``config_tables``) says so of one class; a field that is in no table is refused,
so nothing that could change a picture is passed over.  Names that begin with "_" are diffusers'
notes of where a file comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What values a field may have.

    Attributes:
        words: for people, such as "a whole number from 1 to 64".
        fits: whether a value of JSON is one.
    """

    words: str
    fits: Callable[[Any], bool]


class Followed(NamedTuple):
    """A field that is read.

    Attributes:
        default: the value of a file without it, as in the library that writes it.
        kind: of its values.
    """

    default: Any
    kind: Kind


class Only(NamedTuple):
    """A field of which some values alone can be had.

    Attributes:
        values: these; the first is the default.
        mend: what to do about another one, in a few words.
    """

    values: tuple[Any, ...]
    mend: str = ""


class Equivalent(NamedTuple):
    """A field whose value makes no difference here.

    Attributes:
        why: in a few words.
    """

    why: str


Fields = Mapping[str, Followed | Only | Equivalent]


def checked(config: Mapping[str, Any], fields: Fields, file: str = "") -> dict[str, Any]:
    """A config with the defaults of absent fields.

    Args:
        config: the entries of the file.
        fields: of its class.
        file: its name, for the message.

    Raises:
        ValueError: naming file, field and value, and what can be had.
    """
    where = f"{file}: " if file else ""
    for name, value in config.items():
        field = fields.get(name)
        if field is None and not str(name).startswith("_") and value is not None:
            raise ValueError(
                f"{where}{name}={_said(value)} is no field that is known: take it out if it "
                "changes no picture, or another checkpoint."
            )
        if fault := _fault(field, value):
            raise ValueError(f"{where}{name}={_said(value)} cannot be converted: {fault}.")
    return {**defaults(fields), **config}


def defaults(fields: Fields) -> dict[str, Any]:
    """Name -> default, of the fields that are read or restricted."""
    followed = {n: f.default for n, f in fields.items() if isinstance(f, Followed)}
    return followed | {n: f.values[0] for n, f in fields.items() if isinstance(f, Only)}


def _fault(field: Followed | Only | Equivalent | None, value: Any) -> str:
    if isinstance(field, Only):
        held = tuple(value) if isinstance(value, list) else value
        alike = any(held == known and type(held) in _ALIKE(known) for known in field.values)
        return "" if alike else "; ".join((f"only {field.values} can", *filter(None, [field.mend])))
    if isinstance(field, Followed) and not field.kind.fits(value):
        return f"it must be {field.kind.words}"
    return ""


def _ALIKE(known: Any) -> tuple[type, ...]:
    """Types of equal values: 1 and 1.0 are alike, 1 and true are not."""
    return (int, float) if type(known) in (int, float) else (type(known),)


def _said(value: Any) -> str:
    text = repr(tuple(value) if isinstance(value, list) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def whole(least: int = 1, most: int = 2**20) -> Kind:
    """A whole number within bounds."""
    fits = lambda x: type(x) is int and least <= x <= most
    return Kind(f"a whole number from {least} to {most}", fits)


def number(least: float = -math.inf, words: str = "a number") -> Kind:
    """A finite number above a bound."""
    fits = lambda x: type(x) in (int, float) and abs(x) < 1e30 and x > least
    return Kind(words, fits)


def optional(kind: Kind) -> Kind:
    """A value of a kind, or null."""
    return Kind(f"{kind.words}, or null", lambda x: x is None or kind.fits(x))


def several(kind: Kind, most: int = 64) -> Kind:
    """A list of values of a kind."""
    fits = lambda x: isinstance(x, (list, tuple)) and 0 < len(x) <= most and all(map(kind.fits, x))
    return Kind(f"a list, each {kind.words}", fits)


def one_or_several(kind: Kind, most: int = 64) -> Kind:
    """A value of a kind, or a list of them."""
    many = several(kind, most)
    return Kind(f"{kind.words}, or a list of them", lambda x: kind.fits(x) or many.fits(x))


FLAG = Kind("true or false", lambda x: type(x) is bool)
POSITIVE = number(0, "a number above 0")
NUMBER = number()
NAME = Kind("a name", lambda x: type(x) is str)
