"""The blocks of a U-Net as plain numbers, without arrays or modules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

Widths = tuple[tuple[int, int], ...]
"""For each block of a level: channels from the block before, and from the skip (0: no skip)."""


def per_level(value: Any, count: int, field: str) -> tuple[Any, ...]:
    """One value for each of count levels, from a single value or a sequence.

    Raises:
        ValueError: if a sequence has another length.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * count
    if len(value) != count:
        raise ValueError(
            f"{field}={tuple(value)} has {len(value)} entries: give one value, or {count} entries."
        )
    return tuple(value)


def down_widths(features: Sequence[int], counts: Sequence[int]) -> list[Widths]:
    """The blocks on the way down, for levels of ``features`` channels and ``counts`` blocks."""
    before = (features[0], *features[:-1])
    return [
        tuple((b if j == 0 else f, 0) for j in range(n))
        for b, f, n in zip(before, features, counts, strict=True)
    ]


def up_widths(features: Sequence[int], counts: Sequence[int]) -> list[Widths]:
    """The blocks on the way up, lowest size first; each level has one more than on the way down.

    The skips are the outputs of the first convolution, of each block and of each change of size.
    """
    skips = [features[0]]
    for i, (f, n) in enumerate(zip(features, counts, strict=True)):
        skips += [f] * (n + (i < len(features) - 1))
    before, levels = features[-1], []
    for f, n in zip(reversed(features), reversed(counts), strict=True):
        levels.append(tuple((before if j == 0 else f, skips.pop()) for j in range(n + 1)))
        before = f
    return levels


def runs(widths: Widths, scan: bool) -> list[tuple[int, int]]:
    """(first, last) block index of each run of equal blocks; without scan each block is its own."""
    if not scan:
        return [(j, j) for j in range(len(widths))]
    groups = [[j for j, _ in group] for _, group in groupby(enumerate(widths), key=lambda w: w[1])]
    return [(group[0], group[-1]) for group in groups]


def block_names(counts: Sequence[int]) -> tuple[str, ...]:
    """The blocks in the order that they run: "down_0/block_0", ..., "mid", "up_0/block_0", ...

    Args:
        counts: residual blocks of each level on the way down, full size first.
    """
    down = [f"down_{i}/block_{j}" for i, n in enumerate(counts) for j in range(n)]
    up = [f"up_{i}/block_{j}" for i, n in enumerate(reversed(counts)) for j in range(n + 1)]
    return (*down, "mid", *up)


def attends(name: str, levels: int, attention_levels: Collection[int], middle: bool) -> bool:
    """Whether the block of that name ends in attention.

    Args:
        name: in ``block_names``.
        levels: number of levels.
        attention_levels: those that attend, 0 being the full size.
        middle: whether the middle does.
    """
    if name == "mid":
        return middle
    side, index = name.split("/")[0].split("_")
    return (int(index) if side == "down" else levels - 1 - int(index)) in attention_levels


def select(layers: Sequence[str], chosen: Any) -> tuple[float, ...]:
    """1 for each chosen layer, 0 for the rest: a gate for guidance.

    Args:
        layers: names, such as ``UNet.blocks`` or ``UNet.attention_layers``.
        chosen: an index, a name, the first part of names ("up_0"), "middle", or a list of them.

    Raises:
        ValueError: for what names no layer.
    """
    wanted = [chosen] if isinstance(chosen, (str, int)) else list(chosen)
    gates = [0.0] * len(layers)
    for one in wanted:
        prefix = "mid" if one == "middle" else one
        named = [i for i, n in enumerate(layers) if n == prefix or n.startswith(f"{prefix}/")]
        if isinstance(one, int):
            named = [one] if 0 <= one < len(layers) else []
        if not named:
            known = ", ".join(f"{i} {name}" for i, name in enumerate(layers)) or "none"
            raise ValueError(f"layers={chosen!r} names {one!r}; this network has {known}.")
        for i in named:
            gates[i] = 1.0
    return tuple(gates)


def check_size(height: int, width: int, patch: int, halvings: int) -> None:
    """Check that a size can be patched and halved.

    Raises:
        ValueError: naming the size, the number of halvings and the nearest sizes that work.
    """
    unit = patch * 2**halvings
    if height % unit == 0 and width % unit == 0 and height and width:
        return
    below = [max(unit, n // unit * unit) for n in (height, width)]
    above = [max(unit, -(-n // unit) * unit) for n in (height, width)]
    nearest = " or ".join(f"{h}x{w}" for h, w in sorted({tuple(below), tuple(above)}))
    raise ValueError(
        f"The size {height}x{width} cannot be split into {patch}x{patch} patches and halved "
        f"{halvings} times: both sides must be multiples of {unit}, such as {nearest}."
    )


def check_time(network: str, shape: Sequence[int]) -> None:
    """Refuse a time for each pixel, frame or token where a network reads one for each example.

    Args:
        network: its name.
        shape: of the time.

    Raises:
        ValueError: naming the network and the shape.
    """
    if len(shape) != 1:
        raise ValueError(
            f"{network} reads one time for each example, [b], but was given {tuple(shape)}: give "
            "all of an example one noise level, or take a network that reads a time for each "
            "token, such as DiT."
        )


def check_name(field: str, name: str, known: Collection[str]) -> None:
    """Check that a name is in a table.

    Raises:
        ValueError: listing the known names.
    """
    if name not in known:
        raise ValueError(f"{field}={name!r} is unknown: use one of {', '.join(sorted(known))}.")


def check_keys(
    given: Collection[str], needed: Collection[str], more: Collection[str], fields: str
) -> None:
    """Check that a cond has the keys that a network reads.

    Args:
        given: keys of the cond.
        needed: required keys.
        more: optional keys.
        fields: fields of the network for the message, "num_classes=0".

    Raises:
        ValueError: naming the keys that are missing or unknown.
    """
    if missing := sorted(set(needed) - set(given)):
        raise ValueError(
            f"cond lacks {missing}, which this network ({fields}) needs: add them, or build the "
            "network without them."
        )
    known = {*needed, *more}
    if unknown := sorted(set(given) - known):
        raise ValueError(
            f"cond has {unknown}, but this network ({fields}) knows {sorted(known)}: drop them, "
            "or build the network with them."
        )
