"""Point sets in the plane, as data: seconds to learn, and easy to see.

``toy2d:ring`` and the other sets use the same functions as image sets: a batch has ``image``
float32 [b, 2], roughly in [-1, 1], and ``label`` int32 [b], the component of a point.  Example i is
a pure function of (split, i), so nothing is on disk.  ``ring`` and ``grid`` are
Gaussian mixtures with equal weights, with the exact density given by ``means`` and ``DEVIATION``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.order import uniform

DEVIATION = 0.05
"""Standard deviation of each component of ``ring`` and ``grid``, and of the other sets' noise."""

LENGTH = 2**18
"""Points in a split."""


class Toy(NamedTuple):
    """One set.

    Attributes:
        points: uniforms float64 [n, 4] -> (points float64 [n, 2], labels int64 [n]).
        classes: how many labels there are.
    """

    points: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    classes: int


def means(name: str) -> np.ndarray:
    """Component means of ``ring`` (8) or ``grid`` (25), float64 [k, 2]."""
    if name == "ring":
        angle = np.arange(8) * (2 * np.pi / 8)
        return 0.8 * np.stack([np.cos(angle), np.sin(angle)], -1)
    if name == "grid":
        side = np.linspace(-0.8, 0.8, 5)
        return np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    raise ValueError(f"name is {name!r}, but only 'ring' and 'grid' are Gaussian mixtures.")


def draw(name: str, split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Examples of a set: (points float32 [n, 2], labels int32 [n]) at ``indices`` int64 [n]."""
    seed = {"train": 1, "test": 2}[split]
    u = np.stack([uniform(seed, stream, indices) for stream in range(4)], -1)
    points, labels = TOYS[name].points(u)
    return points.astype(np.float32), labels.astype(np.int32)


def _normal(u: np.ndarray) -> np.ndarray:
    """Uniforms [n, 2] -> independent standard normals [n, 2] (Box and Muller)."""
    radius = np.sqrt(-2 * np.log1p(-u[:, 0]))
    angle = 2 * np.pi * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def _mixture(name: str) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    centres = means(name)

    def points(u):
        label = (u[:, 2] * len(centres)).astype(np.int64)
        return centres[label] + DEVIATION * _normal(u), label

    return points


def _moons(u):
    label = (u[:, 2] * 2).astype(np.int64)
    angle = np.pi * u[:, 3]
    upper = np.stack([np.cos(angle), np.sin(angle)], -1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], -1)
    curve = np.where(label[:, None] == 0, upper, lower) - np.array([0.5, 0.25])
    return 0.6 * curve + DEVIATION * _normal(u), label


def _checkerboard(u):
    """Uniform on the 8 dark squares of a 4 by 4 board over [-1, 1]^2; the label is the square."""
    label = (u[:, 2] * 8).astype(np.int64)
    row, pair = np.divmod(label, 2)
    corner = np.stack([2 * pair + row % 2, row], -1)
    return (corner + u[:, :2]) / 2 - 1, label


def _swiss_roll(u):
    angle = 1.5 * np.pi * (1 + 2 * u[:, 2])
    curve = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1) / (4.5 * np.pi)
    return 0.9 * curve + 0.5 * DEVIATION * _normal(u), np.zeros(len(u), np.int64)


TOYS: dict[str, Toy] = {
    "checkerboard": Toy(_checkerboard, 8),
    "grid": Toy(_mixture("grid"), 25),
    "moons": Toy(_moons, 2),
    "ring": Toy(_mixture("ring"), 8),
    "swiss_roll": Toy(_swiss_roll, 1),
}
