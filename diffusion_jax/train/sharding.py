"""Sharding: a mesh with named axes, and rules over parameter paths.

The axes are ``data`` (copies of the parameters, each with its part of the batch), ``fsdp`` (parts
of the batch and of the parameters), ``tensor`` (parts of the parameters only) and ``sequence``
(parts of the tokens that attend).  XLA's partitioner inserts the communication; layers only state
the sharding of their examples and tokens (``models.primitives.by_batch``, ``by_sequence``).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.train import offload as offloading
from diffusion_jax.train.start import path_name
from diffusion_jax.train.state import TrainState

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("data", "fsdp")
SPLITS = ("all", "optimizer")
# Leaves of fewer elements are copied: a gather costs more than the memory is worth.
SMALL = 1024

Rules = Sequence[tuple[str, Any]]
"""(regex searched in "a/b/kernel", partition of such a leaf).

It is a PartitionSpec, one axis name per dimension, or a function (shape, mesh) -> PartitionSpec.
"""


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices.

    Args:
        sizes: devices along each of ``AXES``; an absent axis has 1, and -1 takes the rest.
            None means {"data": -1}.
        devices: default ``jax.devices()``.

    Raises:
        ValueError: for an unknown axis, or sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": -1} if sizes is None else dict(sizes)
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"config.mesh.{unknown[0]} is no axis; known are {', '.join(AXES)}")
    wanted = [int(sizes.get(axis, 1)) for axis in AXES]
    shape = _filled(wanted, len(devices))
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)


def _filled(wanted: list[int], n: int) -> tuple[int, ...]:
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, wanted, strict=True))
    if any(size < 1 and size != -1 for size in wanted) or wanted.count(-1) > 1:
        raise ValueError(f"config.mesh ({text}) needs positive sizes, and -1 at most once")
    known = math.prod(size for size in wanted if size != -1)
    shape = tuple(n // known if size == -1 else size for size in wanted)
    if math.prod(shape) != n:
        raise ValueError(
            f"config.mesh ({text}) does not multiply to the {n} devices here; "
            "set one axis to -1 and let the others divide that number"
        )
    return shape


def of_params(params: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """A NamedSharding per leaf: the first rule that matches, else the fsdp rule.

    The fsdp rule splits the largest dimension that ``fsdp`` divides, of leaves of at least
    ``SMALL`` elements.

    Args:
        params: arrays, or their shapes.
        mesh: from ``make_mesh``.
        rules: see ``Rules``.

    Raises:
        ValueError: for a rule that does not fit a leaf it matches, naming both.
    """

    def one(path, leaf):
        name = path_name(path)
        for pattern, axes in rules:
            if re.search(pattern, name):
                spec = _spec(axes(leaf.shape, mesh) if callable(axes) else axes)
                return NamedSharding(mesh, _checked(spec, leaf, name, pattern, mesh))
        return NamedSharding(mesh, _fsdp(leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(one, params)


def where_it_fits(axes: Sequence[str | None]) -> Callable[[tuple[int, ...], Mesh], P]:
    """For a model's rules: these axes where they divide the shape, and fsdp on a free dimension.

    An axis that does not divide its dimension is dropped, so that one rule serves every width.
    """

    def spec(shape: tuple[int, ...], mesh: Mesh) -> P:
        fits = lambda size, axis: axis is not None and size % mesh.shape[axis] == 0
        kept = [a if fits(n, a) else None for n, a in zip(shape, axes, strict=True)]
        kept = [a if a is None or mesh.shape[a] > 1 else None for a in kept]
        return _fsdp(shape, mesh.shape["fsdp"], kept)

    return spec


def of_state(
    state: TrainState, mesh: Mesh, rules: Rules = (), split: str = "all", offload: str = "none"
) -> Any:
    """A TrainState of NamedShardings: moments and averages are sharded as their parameter.

    A leaf of the optimiser or the average belongs to a parameter if its path ends with that
    parameter's path and the shapes agree; every other leaf is copied to each device.

    Args:
        state: arrays, or their shapes.
        mesh: from ``make_mesh``.
        rules: see ``Rules``.
        split: one of ``SPLITS``: "all", or "optimizer" for copies of the parameters on each device,
            and sharded moments and averages: less memory for little more communication than copies
            of everything (ZeRO stage 1; Rajbhandari et al. 2020, section 5.1).
        offload: what is kept in host memory between steps: one of ``offload.OFFLOADS``.

    Raises:
        ValueError: for an unknown split, or as ``of_params`` and ``offload.placed``.
    """
    if split not in SPLITS:
        raise ValueError(f"config.mesh.split = {split!r}; known are {', '.join(SPLITS)}")
    params = of_params(state.params, mesh, rules)
    where = {
        tuple(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(params), strict=True
        )
    }
    copied: Any = NamedSharding(mesh, P())

    def follow(path, leaf):
        for start in range(len(path)):
            shape, sharding = where.get(tuple(path[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return copied

    by_path = lambda tree: jax.tree_util.tree_map_with_path(follow, tree)
    places = TrainState(
        step=copied,
        params=params if split == "all" else jax.tree.map(lambda leaf: copied, state.params),
        opt_state=by_path(state.opt_state),
        ema=by_path(state.ema),
        carry=jax.tree.map(lambda leaf: copied, state.carry),
        finite=copied,
    )
    return offloading.placed(places, state, mesh, offload)


def of_batch(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Examples over ``BATCH_AXES``; ``leading`` axes (stacked steps) come before the batch's."""
    return NamedSharding(mesh, P(*(None,) * leading, BATCH_AXES))


def of_rows(mesh: Mesh, n: int) -> NamedSharding:
    """As ``of_batch`` if the devices divide n rows, else a copy on each."""
    return of_batch(mesh) if n % batch_parts(mesh) == 0 else NamedSharding(mesh, P())


def global_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's examples, [b / processes, ...], as parts of one array [b, ...]."""
    place = jax.make_array_from_process_local_data
    return {name: place(sharding, np.asarray(x)) for name, x in batch.items()}


def on_mesh(f: Callable, mesh: Mesh) -> Callable:
    """f, to be jitted, within the mesh: functions it calls can constrain the sharding of arrays."""

    @functools.wraps(f)
    def known(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return f(*args)

    return known


def from_host(x: np.ndarray, where: Sharding) -> jax.Array:
    """An array that every process has in full, as one array on all devices."""
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def data_part(mesh: Mesh) -> tuple[int, int]:
    """(index, count): the part of a batch that this process loads, and the number of parts.

    Processes whose devices hold the same examples (a tensor or sequence axis spans them) load
    the same part.

    Raises:
        ValueError: for a mesh that gives two processes some examples in common, but not all.
    """
    rows = mesh.devices.reshape(batch_parts(mesh), -1)
    held: dict[int, set[int]] = {}
    for i, devices in enumerate(rows):
        for device in devices:
            held.setdefault(device.process_index, set()).add(i)
    parts = sorted({tuple(sorted(mine)) for mine in held.values()})
    if sum(map(len, parts)) != len(rows):
        raise ValueError(
            f"config.mesh {dict(mesh.shape)} lets processes share a part of their examples; make "
            "tensor x sequence divide the devices of a process, or a multiple of them"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def check_batch(size: int, mesh: Mesh) -> None:
    """Raise ValueError for a global batch that does not divide evenly over the devices."""
    parts = batch_parts(mesh)
    if size % parts:
        raise ValueError(
            f"a batch of {size} does not divide over the {parts} devices of data x fsdp; "
            f"make config.train.batch_size a multiple of {parts}"
        )


def _spec(axes: Any) -> P:
    if isinstance(axes, P):
        return axes
    return P(*(tuple(a) if isinstance(a, (list, tuple)) else a for a in axes))


def _fsdp(shape: tuple[int, ...], parts: int, taken: Sequence[str | None] = ()) -> P:
    """The largest free dimension over fsdp, if the leaf is large enough."""
    axes = list(taken) or [None] * len(shape)
    fits = [i for i, size in enumerate(shape) if size % parts == 0 and axes[i] is None]
    if parts > 1 and math.prod(shape) >= SMALL and fits:
        axes[max(fits, key=lambda i: shape[i])] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return P(*axes)


def _checked(spec: P, leaf: Any, name: str, pattern: str, mesh: Mesh) -> P:
    rule = f"config.mesh.rules: ({pattern!r}, {tuple(spec)}) matches {name} {leaf.shape}"
    if len(spec) > len(leaf.shape):
        raise ValueError(f"{rule}, which has fewer dimensions; shorten the rule or its pattern")
    for size, axes in zip(leaf.shape, spec, strict=False):
        names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
        unknown = [axis for axis in names if axis not in mesh.shape]
        if unknown:
            raise ValueError(f"{rule}, but {unknown[0]!r} is no axis; known are {', '.join(AXES)}")
        parts = math.prod(mesh.shape[axis] for axis in names)
        if size % parts:
            raise ValueError(f"{rule}, but {parts} devices do not divide {size}; leave it None")
    return spec
