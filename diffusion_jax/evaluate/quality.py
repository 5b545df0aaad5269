"""All figures of a set of samples compared with the data."""

from __future__ import annotations

import numpy as np

from diffusion_jax.evaluate import distances
from diffusion_jax.evaluate.features import FeatureNet, Features
from diffusion_jax.evaluate.figures import Figure, bootstrap


def quality(net: FeatureNet, real: Features, fake: Features, seed: int = 0) -> dict[str, Figure]:
    """Distances and shares, each with its bootstrap spread.

    Args:
        net: the network of the features; its name is part of the figures' names.
        real: features of the data.
        fake: features of the samples.
        seed: seed of the bootstrap.

    Returns:
        name -> Figure; its n is that of the smaller set.
    """
    n = min(len(real["frechet"]), len(fake["frechet"]))
    figures = {}
    for name, function, kind in (
        (net.distance, distances.frechet_distance, "frechet"),
        ("KID", distances.kernel_distance, "kernel"),
    ):
        a, b = real[kind], fake[kind]
        spread = bootstrap(function, a, b, resamples=10, seed=seed)
        figures[f"{name} ({net.name})"] = Figure(function(a, b), spread, n)
    each = distances.precision_recall_density_coverage(real["frechet"], fake["frechet"])
    for name, values in each.items():
        # Resampled vectors would fall into each other's balls, so the balls are kept.
        spread = bootstrap(np.mean, values, resamples=100, seed=seed)
        figures[name] = Figure(float(values.mean()), spread, len(values))
    return figures
