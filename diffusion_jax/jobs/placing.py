"""Parameters and batches on the config's mesh, in one process or many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.build import training
from diffusion_jax.spec import Config
from diffusion_jax.train import sharding


def place_params(config: Config, params: Any) -> Any:
    """Host arrays, the same on every process, to where ``config.mesh`` says that they lie."""
    places = sharding.of_params(params, training.mesh(config), training.rules(config))
    return jax.tree.map(sharding.from_host, params, places)


def place_batch(config: Config, rows: Any) -> jax.Array:
    """Rows [b, ...], the same on every process, split over the devices if these divide b."""
    rows = np.asarray(rows)
    return sharding.from_host(rows, sharding.of_rows(training.mesh(config), len(rows)))


def jitted(config: Config, f: Callable) -> Callable:
    """F compiled for the mesh; its results are on every device, so that any host reads them."""
    mesh = training.mesh(config)
    return jax.jit(sharding.on_mesh(f, mesh), out_shardings=NamedSharding(mesh, P()))
