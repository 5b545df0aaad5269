"""Distances between two sets of feature vectors [n, d], in float64.

``real`` and ``fake`` are features of the data and of samples, from the same network.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial.distance import cdist

_ROWS = 2048  # rows of a pairwise table in memory: 50,000 x 50,000 would be 20 GB


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """‖μ_r - μ_f‖² + tr(Σ_r + Σ_f - 2 (Σ_r Σ_f)^½) (Dowson & Landau 1982; Heusel et al. 2017).

    The square root is that of the symmetric Σ_r^½ Σ_f Σ_r^½, which has the same trace and needs no
    complex arithmetic.  Biased upwards for small n: compare at equal n.

    Raises:
        ValueError: for fewer than 2 vectors, or different dimensions.
    """
    real, fake = _checked(real, fake)
    mean = real.mean(0) - fake.mean(0)
    cov_real, cov_fake = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    cov_real, cov_fake = np.atleast_2d(cov_real), np.atleast_2d(cov_fake)
    return gaussian_distance(mean, cov_real, cov_fake)


def gaussian_distance(mean: np.ndarray, cov_a: np.ndarray, cov_b: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two Gaussians whose means differ by ``mean`` [d]."""
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * _roots(values)) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_b @ root)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * _roots(cross).sum()
    return float(mean @ mean + trace)


def _roots(values: np.ndarray) -> np.ndarray:
    """Square roots of eigenvalues [d] >= 0; one that is but rounding, 1e-16, has not 1e-8 but 0."""
    rounding = len(values) * np.finfo(values.dtype).eps * np.abs(values).max(initial=0.0)
    return np.sqrt(np.where(values > rounding, values, 0.0))


def kernel_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """KID: the unbiased squared MMD of the kernel (x·y/d + 1)³ (Bińkowski et al. 2018, eq. 4).

    It is unbiased for any n, and negative about half of the time for equal distributions.
    """
    real, fake = _checked(real, fake)
    kernel = lambda dot: (dot / real.shape[1] + 1) ** 3
    total = lambda a, b: sum(kernel(rows @ b.T).sum() for rows in _blocks(a))
    diagonal = lambda a: kernel(np.sum(a * a, axis=1)).sum()
    off_diagonal = lambda a: (total(a, a) - diagonal(a)) / (len(a) * (len(a) - 1))
    across = total(real, fake) / (len(real) * len(fake))
    return float(off_diagonal(real) + off_diagonal(fake) - 2 * across)


def precision_recall_density_coverage(
    real: np.ndarray, fake: np.ndarray, k: int = 5
) -> dict[str, np.ndarray]:
    """Four figures from balls around each vector up to its k-th neighbour in its own set.

    precision: share of fakes in some real ball; recall: share of reals in some fake ball
    (Kynkäänniemi et al. 2019, eq. 2).  density: number of real balls around a fake over k, which
    may exceed 1; coverage: share of real balls that contain a fake (Naeem et al. 2020, eqs. 3, 4).

    Returns:
        name -> each vector's contribution, [n]; the figure is its mean.

    Raises:
        ValueError: if a set has no k-th neighbour.
    """
    real, fake = _checked(real, fake)
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k = {k} neighbours need more than {k} vectors in either set")
    radius, fake_radius = _radius(real, k), _radius(fake, k)
    density, recall, nearest = np.zeros(len(fake)), [], []
    for rows, radii in zip(_blocks(real), _blocks(radius), strict=True):
        across = cdist(rows, fake)
        density += (across <= radii[:, None]).sum(0)
        recall.append(np.any(across <= fake_radius, axis=1))
        nearest.append(across.min(1))
    return {
        "precision": density > 0,
        "recall": np.concatenate(recall),
        "density": density / k,
        "coverage": np.concatenate(nearest) <= radius,
    }


def _radius(x: np.ndarray, k: int) -> np.ndarray:
    """Distance of each vector to its k-th neighbour, itself not counted."""
    return np.concatenate([np.partition(cdist(rows, x), k, axis=1)[:, k] for rows in _blocks(x)])


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[i : i + _ROWS] for i in range(0, len(x), _ROWS))


def _checked(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be [n, d] with one d, got {real.shape} and {fake.shape}")
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"a distance needs 2 vectors or more, got {len(real)} and {len(fake)}")
    return real.astype(np.float64), fake.astype(np.float64)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 32) -> float:
    """Sliced Wasserstein-1 distance of two sets of points in the plane (Bonneel et al. 2015).

    Args:
        a, b: [n, 2], with the same n.
        directions: number of directions, evenly spaced over half a turn.
    """
    angle = np.arange(directions) * np.pi / directions
    along = np.stack([np.cos(angle), np.sin(angle)])
    return float(np.abs(np.sort(a @ along, axis=0) - np.sort(b @ along, axis=0)).mean())
