"""Batches from the host to the devices, ahead of the step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax.train import sharding
from diffusion_jax.train.log import Meter

HostBatches = Iterator[Mapping[str, np.ndarray]]


def feed(
    data: Callable[[int], HostBatches],
    mesh: Mesh,
    start: int,
    steps: int,
    steps_per_call: int,
    meter: Meter,
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """(steps in this dispatch, their batch on the devices) until the end of the run.

    Dispatches of ``steps_per_call`` begin at multiples of it; other steps are single.

    Args:
        data: start step -> iterator of this process's batches; if it has ``broken_records``, the
            number of records replaced so far, the meter reports it.
        mesh: the devices.
        start, steps: first step, and number of steps of the whole run.
        steps_per_call: see above.
        meter: counts the time spent waiting for the data.
    """
    if start >= steps:
        return
    batches, step, k = iter(data(start)), start, steps_per_call
    while step < steps:
        size = k if step % k == 0 and step + k <= steps else 1
        began = time.perf_counter()
        parts = [_next(batches, step + i, steps) for i in range(size)]
        meter.waited(time.perf_counter() - began)
        meter.broken_records = getattr(batches, "broken_records", 0)
        host = parts[0] if size == 1 else jax.tree.map(lambda *xs: np.stack(xs), *parts)
        yield size, sharding.global_batch(host, sharding.of_batch(mesh, leading=int(size > 1)))
        step += size


def _next(batches: HostBatches, step: int, steps: int) -> Mapping[str, np.ndarray]:
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            f"the data ended at step {step} of {steps}; repeat it, or lower config.train.steps"
        ) from None


def example(data: Callable[[int], HostBatches], mesh: Mesh) -> dict[str, jax.Array]:
    """One batch on the devices, for its shapes."""
    host = next(iter(data(0)), None)
    if not host:
        raise ValueError(
            "the data has no batch at all; prepare it, or lower config.train.batch_size"
        )
    sharding.check_batch(len(next(iter(host.values()))) * sharding.data_part(mesh)[1], mesh)
    return sharding.global_batch(host, sharding.of_batch(mesh))
