"""State dicts of other codebases <-> parameter trees: nothing missing, nothing left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.convert.names import Row, by_path, locate, nested
from diffusion_jax.models.adapter import init_params

_MOST_NAMED = 40
"""Number of names of each kind that a message lists; the rest are counted."""


def differences(
    wanted: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]
) -> str | None:
    """The differences of two sets of named shapes, in one line; None if there are none.

    Args:
        wanted: tensor name -> shape, in the network.
        found: tensor name -> shape, in the file.
    """
    both = sorted(set(wanted) & set(found))
    odd = [n for n in both if tuple(wanted[n]) != tuple(found[n])]
    kinds = {
        "missing": sorted(set(wanted) - set(found)),
        "extra": sorted(set(found) - set(wanted)),
        "misshapen": [f"{n}: {tuple(found[n])} instead of {tuple(wanted[n])}" for n in odd],
    }
    said = []
    for kind, items in kinds.items():
        said += [f"{kind} {item}" for item in items[:_MOST_NAMED]]
        if len(items) > _MOST_NAMED:
            said.append(f"and {len(items) - _MOST_NAMED} more {kind}")
    return "; ".join(said) or None


def tensor_shapes(
    shapes: Mapping[str, tuple[int, ...]], rows: tuple[Row, ...]
) -> dict[str, tuple[int, ...]]:
    """{parameter path: shape} -> {tensor name there: shape there}."""
    out = {}
    for path, shape in shapes.items():
        leaf = locate(path, rows)
        out[leaf.name] = leaf.save(np.broadcast_to(False, shape)).shape
    return out


def load_params(
    state: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rows: tuple[Row, ...],
    dtype: DTypeLike | None = None,
) -> dict[str, Any]:
    """The parameter tree from a state dict.

    Args:
        state: tensor name -> array.
        shapes: parameter path -> shape, of every parameter.
        rows: the name map.
        dtype: dtype of the result; None keeps each array's without a copy: the result has views of
            the state's arrays, which may be in a mapped file.

    Returns:
        A nested dict of NumPy arrays.

    Raises:
        ValueError: naming the missing, extra and misshapen tensors.
    """
    arrays = {name: np.asarray(array) for name, array in state.items()}
    found = {name: array.shape for name, array in arrays.items()}
    if fault := differences(tensor_shapes(shapes, rows), found):
        raise ValueError(f"The weights do not fit the config: {fault}.")
    params = {}
    for path in shapes:
        leaf = locate(path, rows)
        array = leaf.load(arrays[leaf.name])
        params[path] = array if dtype is None else array.astype(dtype, copy=False)
    return nested(params)


def save_params(params: Mapping[str, Any], rows: tuple[Row, ...]) -> dict[str, np.ndarray]:
    """The inverse of ``load_params``: tensor name -> array, each in its parameter's dtype."""
    out = {}
    for path, array in by_path(params).items():
        leaf = locate(path, rows)
        out[leaf.name] = leaf.save(np.asarray(array))
    return out


def parameter_shapes(
    module: Any, x_shape: Sequence[int], cond: Any = None
) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of a module called as (x, time, cond); makes no array."""
    make = lambda key, cond: init_params(module, key, x_shape, cond)
    params = jax.eval_shape(make, jax.random.key(0), cond)
    return {path: leaf.shape for path, leaf in by_path(params).items()}
