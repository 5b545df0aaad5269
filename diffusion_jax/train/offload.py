"""Offloading: averages and moments in host memory, which a step fetches only to update them.

A device reaches the host's pinned memory by DMA, so XLA moves such a leaf to the device inside the
step, when its update is due, and back.  The results are the same bit for bit; the step is longer by
the part of the transfer that does not overlap with other work.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from diffusion_jax.train.state import TrainState

HOST, DEVICE = "pinned_host", "device"
# Leaves of fewer elements stay: a transfer costs more than the memory is worth.
LEAST = 1024


def placed(places: TrainState, state: TrainState, mesh: Mesh | AbstractMesh, what: str) -> Any:
    """The shardings of a state, with those of offloaded leaves in host memory.

    Args:
        places: a NamedSharding for each leaf.
        state: arrays, or their shapes.
        mesh: their mesh.
        what: a name in ``OFFLOADS``.

    Raises:
        ValueError: for an unknown name, or devices without access to host memory.
    """
    if what not in OFFLOADS:
        raise ValueError(f"config.mesh.offload = {what!r}; known are {', '.join(OFFLOADS)}")
    if not OFFLOADS[what]:
        return places
    _check(mesh, what)

    def move(leaf: Any, place: Any) -> Any:
        number = not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        large = math.prod(leaf.shape) >= LEAST
        return place.with_memory_kind(HOST) if number and large else place

    moved = {
        field: jax.tree.map(move, getattr(state, field), getattr(places, field))
        for field in OFFLOADS[what]
    }
    return places._replace(**moved)


def fetched(tree: Any, places: Any) -> Any:
    """The tree with leaves that ``places`` has on the host moved to the devices; jit or not."""
    fetch = lambda leaf, place: (
        jax.device_put(leaf, place.with_memory_kind(DEVICE)) if place.memory_kind == HOST else leaf
    )
    return jax.tree.map(fetch, tree, places)


def returned(tree: Any, places: Any) -> Any:
    """The inverse of ``fetched``."""
    put = lambda leaf, place: jax.device_put(leaf, place) if place.memory_kind == HOST else leaf
    return jax.tree.map(put, tree, places)


def _check(mesh: Mesh | AbstractMesh, what: str) -> None:
    if isinstance(mesh, AbstractMesh):
        return
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise ValueError(
            f"config.mesh.offload = {what!r} needs devices that reach {HOST} memory; those of "
            f"{device.platform} have {', '.join(kinds)}; set it to 'none'"
        )


# Fields of TrainState that are kept on the host between steps.
OFFLOADS: dict[str, tuple[str, ...]] = {
    "none": (),
    "ema": ("ema",),
    "optimizer": ("ema", "opt_state"),
}
