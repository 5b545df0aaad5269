"""Parser of a compiled program's text: its computations, and how often each runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CALLED = re.compile(
    r"(?<!\w)(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_LISTED = re.compile(r"(?<!\w)(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"= [su](?:8|16|32|64)\[\]\S* constant\((\d+)\)")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")

# Bits of an element; other types have theirs in the name, as bf16 and s32 do.
_BITS = {"pred": 8, "token": 0}


class Times(NamedTuple):
    """How often a computation runs; not ``known`` if a loop of unknown length counts once."""

    count: int
    known: bool


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of each computation, and the name of the entry."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return found, entry


def frequencies(text: str) -> Callable[[str], Times]:
    """Computation's name -> number of its runs in one run of the program."""
    found, entry = computations(text)
    callers: dict[str, list[tuple[str, int | None]]] = {}
    for name, lines in found.items():
        for line in lines:
            for called, trips in _calls(line, found):
                callers.setdefault(called, []).append((name, trips))

    @cache
    def times(name: str) -> Times:
        if name == entry:
            return Times(1, True)
        count, known = 0, True
        for caller, trips in callers.get(name, ()):
            outer = times(caller)
            count += outer.count * (1 if trips is None else trips)
            known &= outer.known and trips is not None
        return Times(count, known)

    return times


def _calls(line: str, found: dict[str, list[str]]) -> list[tuple[str, int | None]]:
    """(called computation, times per run of the line; None where that is unknown)."""
    named = dict(_CALLED.findall(line))
    loop = " while(" in line
    trips = _trips(line, found.get(named.get("condition", ""), []), found) if loop else 1
    each: list[tuple[str, int | None]] = [(name, trips) for name in named.values()]
    for names in _LISTED.findall(line):
        each += [(name.strip().lstrip("%"), 1) for name in names.split(",") if name.strip()]
    return each


def _trips(line: str, condition: list[str], found: dict[str, list[str]]) -> int | None:
    """Trips of a while loop: XLA's number, or the bound of a count from 0, as in ``lax.scan``."""
    said = _TRIPS.search(line)
    if said:
        return int(said[1])
    fused = [
        inner for name in _CALLED.findall("".join(condition)) for inner in found.get(name[1], [])
    ]
    text = "\n".join([*condition, *fused])
    bounds = set(_CONSTANT.findall(text))
    return int(bounds.pop()) if len(bounds) == 1 and "direction=LT" in text else None


def sizes(type_text: str) -> list[int]:
    """Bytes of each array in a type such as "(f32[2,3]{1,0}, bf16[])", unpadded."""
    return [
        math.ceil(math.prod(int(n) for n in dims.split(",") if n) * _bits(kind) / 8)
        for kind, dims in _SHAPE.findall(type_text)
    ]


def _bits(kind: str) -> int:
    if kind in _BITS:
        return _BITS[kind]
    digits = re.search(r"\d+", kind)
    return int(digits[0]) if digits else 0
