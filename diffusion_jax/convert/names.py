"""Name maps: parameter paths here <-> tensor names of other codebases.

A map is data: rows turn the module part of a path into the other codebase's module name, and KINDS
give the names of its arrays there and the order of their axes.  One map serves import and export.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Transform = Callable[[np.ndarray], np.ndarray]


class Leaf(NamedTuple):
    """One array of a module.

    Attributes:
        name: its name in the other codebase.
        load: array there -> array here.
        save: array here -> array there.
    """

    name: str
    load: Transform
    save: Transform


class Row(NamedTuple):
    """One kind of module.

    Attributes:
        ours: regex over the module part of a path, "down_0/block_1/res/conv_0".
        theirs: template of the module's name there, filled with the regex's groups {0}, {1} ...
        kind: key of ``KINDS``.
    """

    ours: str
    theirs: str
    kind: str


Scope = tuple[str, str, tuple[tuple[str, str, str], ...]]
"""(our module, theirs, the parts of both as (ours, theirs, kind)), as in a ``Row``."""


def scoped(scopes: tuple[Scope, ...]) -> tuple[Row, ...]:
    """A row for each part of each scope."""
    return tuple(
        Row(f"{ours}/{part}", f"{theirs}.{name}", kind)
        for ours, theirs, parts in scopes
        for part, name, kind in parts
    )


def locate(path: str, rows: tuple[Row, ...]) -> Leaf:
    """The other codebase's full name for a parameter path, with the transforms of its array.

    Raises:
        KeyError: if no row matches, naming the path.
    """
    module, _, leaf = path.rpartition("/")
    for row in rows:
        match = re.fullmatch(row.ours, module)
        if match and leaf in KINDS[row.kind]:
            known = KINDS[row.kind][leaf]
            return known._replace(name=f"{row.theirs.format(*match.groups())}.{known.name}")
    raise KeyError(f"The name map has no row for the parameter {path}.")


def by_path(params: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict, flattened: {"a": {"b": x}} -> {"a/b": x}."""
    flat = {}
    for name, value in params.items():
        below = by_path(value) if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}/{rest}".rstrip("/"): leaf for rest, leaf in below.items()}
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``by_path``."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *modules, name = path.split("/")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[name] = leaf
    return tree


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transpose(x: np.ndarray) -> np.ndarray:
    return x.T


def _swap(x: np.ndarray) -> np.ndarray:
    """The two halves of the first axis, in the other order."""
    return np.roll(x, len(x) // 2, axis=0)


def _pointwise_load(x: np.ndarray) -> np.ndarray:
    return x[:, :, 0, 0].T if x.ndim == 4 else x.T


_BIAS = Leaf("bias", _same, _same)

KINDS: dict[str, Mapping[str, Leaf]] = {
    # PyTorch's linear weights are [out, in]; ours [in, out].
    "dense": {"kernel": Leaf("weight", _transpose, _transpose), "bias": _BIAS},
    # PyTorch's convolutions are [out, in, kh, kw]; ours [kh, kw, in, out].
    "conv": {
        "kernel": Leaf(
            "weight", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
        ),
        "bias": _BIAS,
    },
    # Scale before shift there, shift before scale here: each is half of the outputs.
    "swapped": {
        "kernel": Leaf("weight", lambda x: _swap(x).T, lambda x: _swap(x.T)),
        "bias": Leaf("bias", _swap, _swap),
    },
    # A 1x1 convolution there, a dense layer here.
    "pointwise": {
        "kernel": Leaf("weight", _pointwise_load, lambda x: x.T[:, :, None, None]),
        "bias": _BIAS,
    },
    "norm": {"scale": Leaf("weight", _same, _same), "bias": _BIAS},
    # Weights of channels, a 1x1 convolution to one channel there.
    "head": {
        "weight": Leaf("weight", lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1)),
    },
    "table": {"embedding": Leaf("weight", _same, _same)},
    "codebook": {"codebook": Leaf("weight", _same, _same)},
    # A parameter of the network itself, without ".weight" there.
    "positions": {"table": Leaf("pos_embed", lambda x: x[0], lambda x: x[None])},
    "class_token": {"class_token": Leaf("class_embedding", _same, _same)},
}
