"""The least time that a chip needs for a program (Williams, Waterman & Patterson 2009)."""

from __future__ import annotations

from typing import NamedTuple

from diffusion_jax.profiling.chips import Chip


class Roofline(NamedTuple):
    """Seconds that a chip needs for each part if it did nothing else; they may overlap.

    Attributes:
        compute: its FLOPs at the chip's peak.
        memory: its bytes at the bandwidth of HBM.
        network: what it sends at the bandwidth of its links.
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """No run is faster."""
        return max(self)

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))


def roofline(chip: Chip, flops: float, bytes_accessed: float, bytes_sent: float) -> Roofline:
    """Of what one chip does in one call of a program."""
    return Roofline(flops / chip.flops, bytes_accessed / chip.bandwidth, bytes_sent / chip.links)


def mfu(flops: float, seconds: float, chip: Chip, devices: int = 1) -> float:
    """Model FLOPs utilisation: the share of the chips' peak that useful FLOPs take.

    Args:
        flops: of the model over all devices, nothing that is computed twice to save memory.
        seconds: that the devices took.
        chip: of each.
        devices: how many.
    """
    return flops / (seconds * chip.flops * devices)
