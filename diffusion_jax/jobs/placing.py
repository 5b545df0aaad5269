"""Parameters and batches on the config's mesh; where compiled programs are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.apps.plan import Weights
from diffusion_jax.build import training
from diffusion_jax.convert.mapped import forget
from diffusion_jax.spec import Config
from diffusion_jax.train import sharding


def place_params(config: Config, params: Any) -> Any:
    """Host arrays, the same on every process, to where ``config.mesh`` says that they lie."""
    places = sharding.of_params(params, training.mesh(config), training.rules(config))
    return jax.tree.map(sharding.from_host, params, places)


def place_weights(config: Config, weights: Weights, networks: Sequence[str]) -> Weights:
    """All arrays of a generator to the mesh; pages of mapped files are given back."""

    def one(x, place):
        x = np.asarray(x)
        placed = sharding.from_host(x, place).block_until_ready()
        forget(x)
        return placed

    mesh = training.mesh(config)
    return jax.tree.map(one, weights, places_of(config, weights, networks, mesh))


def places_of(config: Config, weights: Weights, networks: Sequence[str], mesh: Mesh) -> Weights:
    """Where each array lies on a mesh, by ``config.mesh.rules`` and the networks' own."""
    return sharding.of_params(weights, mesh, training.rules(config, networks))


def place_batch(config: Config, rows: Any) -> jax.Array:
    """Rows [b, ...], the same on every process, split over the devices if these divide b."""
    rows = np.asarray(rows)
    return sharding.from_host(rows, sharding.of_rows(training.mesh(config), len(rows)))


def jitted(config: Config, f: Callable) -> Callable:
    """F compiled for the mesh; its results are on every device, so that any host reads them."""
    mesh = training.mesh(config)
    return jax.jit(sharding.on_mesh(f, mesh), out_shardings=NamedSharding(mesh, P()))


def cache_compilations() -> None:
    """Keep compiled programs on disk, so that the next start skips the compiler.

    In $JAX_COMPILATION_CACHE_DIR, or ~/.cache/diffusion_jax.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        folder = Path("~/.cache/diffusion_jax").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))
