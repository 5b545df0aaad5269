"""Peak figures of accelerator chips, as their makers publish them."""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """Figures of one chip.

    Attributes:
        name: its part of a topology's name, such as "v5e" in "v5e:4x4".
        kind: prefix of ``device_kind``.
        memory: bytes of HBM.
        flops: peak FLOP/s, dense bfloat16 with float32 sums.
        bandwidth: bytes/s between HBM and the chip.
        links: bytes/s that it can send to other chips over all its links together.
    """

    name: str
    kind: str
    memory: float
    flops: float
    bandwidth: float
    links: float


# TPUs: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p-training and /v6e.  These give both
# directions of the links together (v5e 400, v5p 1200, v6e 800 GB/s); ``links`` is half of it, what
# a chip can send.  v4's: six links of 50 GB/s a direction (Jouppi et al. 2023, arXiv 2304.01433).
# GPUs: NVIDIA's data sheets of the SXM boards, without sparsity; ``links`` is half of NVLink's.
CHIPS = (
    Chip("v4", "TPU v4", 32 * GIB, 275e12, 1200e9, 300e9),
    Chip("v5e", "TPU v5 lite", 16 * GIB, 197e12, 819e9, 200e9),
    Chip("v5p", "TPU v5", 95 * GIB, 459e12, 2765e9, 600e9),
    Chip("v6e", "TPU v6 lite", 32 * GIB, 918e12, 1638e9, 400e9),
    Chip("a100", "NVIDIA A100-SXM4-40GB", 40 * GIB, 312e12, 1555e9, 300e9),
    Chip("a100-80g", "NVIDIA A100-SXM4-80GB", 80 * GIB, 312e12, 2039e9, 300e9),
    Chip("h100", "NVIDIA H100 80GB HBM3", 80 * GIB, 989e12, 3350e9, 450e9),
    Chip("h200", "NVIDIA H200", 141e9, 989e12, 4800e9, 450e9),
)


def named(name: str) -> Chip:
    """The chip of that name.

    Raises:
        ValueError: listing the known ones.
    """
    for chip in CHIPS:
        if chip.name == name:
            return chip
    known = ", ".join(chip.name for chip in CHIPS)
    raise ValueError(f"chip {name!r} is unknown; known are {known}")


def of_kind(device_kind: str) -> Chip | None:
    """The chip of a device; None for one without an entry, such as a CPU."""
    # The longest first, as "TPU v5" is a prefix of "TPU v5 lite".
    fits = [chip for chip in CHIPS if device_kind.startswith(chip.kind)]
    return max(fits, key=lambda chip: len(chip.kind), default=None)
