"""The communication of a compiled program, read from its text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from diffusion_jax.profiling.hlo import computations, frequencies, sizes

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_CHAIN = re.compile(r'chain_id="(\d+)"')


class Collective(NamedTuple):
    """One operation between devices.

    Attributes:
        kind: one of ``KINDS``.
        bytes: size of the array that its group exchanges: the result of a gather, the operand of
            a scatter.
        group: number of devices that take part together.
        times: number of runs in one call of the program.
        known: False if it is in a loop of unknown length, which then counts once.
    """

    kind: str
    bytes: int
    group: int
    times: int = 1
    known: bool = True

    @property
    def wire(self) -> float:
        """Bytes that each device sends in all runs, by the best ring algorithm."""
        n = self.group
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
        return self.times * self.bytes * share.get(self.kind, (n - 1) / n)


def parse(text: str, devices: int) -> list[Collective]:
    """The collectives of an optimised program.

    A start and its done count once, and so do the copies that TPU's compiler makes of one
    operation to overlap pieces of it with others: they name one chain.

    Args:
        text: ``compiled.as_text()``.
        devices: the program's number of devices.
    """
    found, _ = computations(text)
    times, once = frequencies(text), {}
    for name, lines in found.items():
        for i, line in enumerate(lines):
            operation = _OPERATION.search(line)
            if not operation or not times(name).count:
                continue
            chain = _CHAIN.search(line)
            one = _collective(operation, line, name, devices)
            key = (one.kind, chain[1]) if chain else (name, i)
            before = once.get(key, one._replace(times=0))
            count, known = times(name)
            known = known and before.known
            once[key] = one._replace(times=max(count, before.times), known=known)
    return list(once.values())


def _collective(found: re.Match[str], line: str, computation: str, devices: int) -> Collective:
    type_text, kind, start = found[1], found[2], found[3]
    arrays, group = sizes(type_text), _group(line, devices)
    if start and kind in ("all-gather", "collective-permute"):
        # (operands, results, and for a permute two counters)
        arrays = arrays[:-2] if kind == "collective-permute" and len(arrays) > 2 else arrays
        arrays = arrays[len(arrays) // 2 :]
    # TPU's compiler writes a scatter as a reduction inside a fusion with this name.
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return Collective("reduce-scatter", sum(arrays), group)
    whole = group if kind == "reduce-scatter" else 1
    return Collective(kind, sum(arrays) * whole, group)


def _group(line: str, devices: int) -> int:
    """The number of devices that take part together."""
    if listed := _LISTED.search(line):
        return len(listed[1].split(","))
    if iota := _IOTA.search(line):
        return int(iota[1])
    if mesh := _MESH.search(line):
        axes = dict(re.findall(r"'([^']*)'=(\d+)", mesh[1]))
        used = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or axes[name]) for name, part in used)
    return devices


class Total(NamedTuple):
    """All collectives of a kind: runs, bytes, bytes that a device sends, whether all are known."""

    count: int
    bytes: int
    wire: float
    known: bool


def totals(collectives: Sequence[Collective]) -> dict[str, Total]:
    """Kind -> sums over one call of the program, in the order of ``KINDS``."""
    found = {}
    for kind in KINDS:
        of_kind = [c for c in collectives if c.kind == kind and c.group > 1]
        if of_kind:
            found[kind] = Total(
                sum(c.times for c in of_kind),
                sum(c.times * c.bytes for c in of_kind),
                sum(c.wire for c in of_kind),
                all(c.known for c in of_kind),
            )
    return found
