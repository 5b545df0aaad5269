"""The minimum time of a program on a chip (Williams, Waterman & Patterson 2009)."""

from __future__ import annotations

from typing import NamedTuple

from diffusion_jax.profiling.chips import Chip


class Roofline(NamedTuple):
    """Seconds that a chip needs for each part alone; parts may overlap.

    Attributes:
        compute: its FLOPs at the chip's peak.
        memory: its bytes at the bandwidth of HBM.
        network: the bytes it sends at the bandwidth of its links.
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """The lower bound of a run's time."""
        return max(self)

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))


def roofline(chip: Chip, flops: float, bytes_accessed: float, bytes_sent: float) -> Roofline:
    """The roofline of one chip's work in one call of a program."""
    return Roofline(flops / chip.flops, bytes_accessed / chip.bandwidth, bytes_sent / chip.links)


def mfu(flops: float, seconds: float, chip: Chip, devices: int = 1) -> float:
    """Model FLOPs utilisation: the share of the chips' peak that useful FLOPs take.

    Args:
        flops: FLOPs of the model over all devices, without rematerialisation.
        seconds: time of the devices.
        chip: chip of each device.
        devices: number of devices.
    """
    return flops / (seconds * chip.flops * devices)
