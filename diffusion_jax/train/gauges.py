"""Performance: examples and FLOPs per second, memory, compilations."""

from __future__ import annotations

import jax

from diffusion_jax.profiling.chips import of_kind
from diffusion_jax.profiling.roofline import mfu
from diffusion_jax.train.program import compilations


class Gauges:
    """Performance numbers for a line of metrics.

    Args:
        examples: number of examples in a step, over all devices.
    """

    def __init__(self, examples: int):
        self._examples = examples
        self._chip = of_kind(jax.devices()[0].device_kind)
        self._before = compilations()

    def read(self, steps_per_second: float | None, flops: float) -> dict[str, float]:
        """The numbers that are known by now.

        Args:
            steps_per_second: None before the first measurement.
            flops: FLOPs of a step, over all devices.

        Returns:
            compilations and compile_seconds since the start; and, where known, examples_per_second,
            flops_per_second (over all devices), mfu (their share of the chips' bfloat16 peak),
            memory_in_use and memory_peak, GiB, the most of this process's devices.
        """
        count, seconds = (a - b for a, b in zip(compilations(), self._before, strict=True))
        numbers = {"compilations": float(count), "compile_seconds": seconds, **memory()}
        if steps_per_second:
            numbers["examples_per_second"] = self._examples * steps_per_second
            numbers["flops_per_second"] = flops * steps_per_second
            if self._chip:
                numbers["mfu"] = mfu(flops, 1 / steps_per_second, self._chip, jax.device_count())
        return numbers


def memory() -> dict[str, float]:
    """memory_in_use and memory_peak, GiB; {} where the backend does not report them, as on CPUs."""
    found = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not found:
        return {}
    most = lambda key: max(float(stats.get(key, 0)) for stats in found) / 2**30
    return {"memory_in_use": most("bytes_in_use"), "memory_peak": most("peak_bytes_in_use")}
