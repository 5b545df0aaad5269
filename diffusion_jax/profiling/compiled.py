"""Costs of one call of a compiled program on each device."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.profiling.chips import Chip
from diffusion_jax.profiling.collectives import Total, parse, totals
from diffusion_jax.profiling.flops import Flops
from diffusion_jax.profiling.roofline import Roofline, roofline

# "Used 21.50G of 15.75G hbm", or "required ... (64.00G) exceeds available HBM (15.75G)".
_NEEDED = re.compile(r"([\d.]+)([KMGT])\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT])")
_SCALE = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Memory(NamedTuple):
    """Bytes on each device.

    Attributes:
        arguments, outputs: of the call.
        aliased: part of the outputs that reuses the memory of arguments.
        temporaries: intermediate values, those in the chip's fast memory included.
        peak: the maximum at any time, by the compiler's plan; 0 where it is not reported.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int

    @property
    def most(self) -> int:
        """The peak, or where that is unknown the sum of all parts."""
        return self.peak or self.arguments + self.outputs - self.aliased + self.temporaries


class Costs(NamedTuple):
    """Costs of one call, for each device unless noted.

    Attributes:
        memory: see there.
        flops: FLOPs of matrix products and convolutions over all devices, with all iterations.
        executed: FLOPs by XLA's count, including elementwise ones and work that every device
            repeats.
        bytes_accessed: bytes that operations read and write, by XLA's count.
        collectives: kind -> total.
        devices: number of devices.
    """

    memory: Memory
    flops: float
    executed: float
    bytes_accessed: float
    collectives: Mapping[str, Total]
    devices: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends."""
        return sum(total.wire for total in self.collectives.values())


def costs(compiled: Any, flops: Flops, devices: int) -> Costs:
    """The costs of a compiled program.

    XLA counts the body of a loop once, so its numbers are scaled by the share of the traced
    program that this omits.  Loops that XLA itself adds, to gather a parameter in pieces while it
    is used, stay counted once: the numbers are lower bounds.

    Args:
        compiled: from ``jitted.lower(...).compile()``.
        flops: count of the traced program (see ``flops.count``).
        devices: number of devices that it is compiled for.
    """
    said = compiled.cost_analysis() or {}
    loops = flops.total / flops.once if flops.once else 1.0
    shares = flops.total / devices
    return Costs(
        memory(compiled),
        flops.total,
        max(loops * float(said.get("flops", 0.0)), shares),
        loops * float(said.get("bytes accessed", 0.0)),
        totals(parse(compiled.as_text(), devices)),
        devices,
    )


def memory(compiled: Any) -> Memory:
    """The compiler's memory plan."""
    plan = compiled.memory_analysis()
    return Memory(
        plan.argument_size_in_bytes,
        plan.output_size_in_bytes,
        plan.alias_size_in_bytes,
        plan.temp_size_in_bytes,
        getattr(plan, "peak_memory_in_bytes", 0),
    )


def bounds(costs: Costs, chip: Chip) -> Roofline:
    """The minimum time of the call on this chip."""
    return roofline(chip, costs.executed, costs.bytes_accessed, costs.sent)


def bytes_of(arguments: Any) -> int:
    """Bytes on each device of ShapeDtypeStructs with shardings, known without compiling."""
    local = lambda a: math.prod(a.sharding.shard_shape(a.shape)) * _itemsize(a.dtype)
    return sum(local(leaf) for leaf in jax.tree.leaves(arguments))


def _itemsize(dtype: Any) -> int:
    key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return 8 if key else dtype.itemsize


def out_of_memory(error: Exception) -> tuple[float, float] | None:
    """(bytes needed, bytes available) from an out-of-memory error; None for another error.

    Both are NaN where the message gives no numbers.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
        return None
    found = _NEEDED.search(text)
    if not found:
        return math.nan, math.nan
    return float(found[1]) * _SCALE[found[2]], float(found[3]) * _SCALE[found[4]]
