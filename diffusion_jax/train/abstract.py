"""The jitted training step of the loop, and the shapes of its arguments on a mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from diffusion_jax.core.ema import Ema
from diffusion_jax.core.types import Recipe
from diffusion_jax.train import sharding
from diffusion_jax.train.plan import Plan
from diffusion_jax.train.program import Program
from diffusion_jax.train.state import abstract_state, with_shardings


def abstract_step(
    recipe: Recipe,
    tx: optax.GradientTransformation,
    ema: Ema,
    plan: Plan,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
    *,
    rules: sharding.Rules = (),
    split: str = "all",
    offload: str = "none",
    seed: int = 0,
    learning_rate: Callable[[Any], Any] | None = None,
) -> tuple[Any, tuple[Any, Any, Any]]:
    """The step that ``loop.train`` dispatches, and its arguments; computes nothing.

    Args:
        recipe, tx, ema, plan, rules, split, offload, seed, learning_rate: as in
            ``loop.train``.
        batch: shapes of one batch over all devices, name -> [b, ...].
        mesh: its devices need not exist here: a topology's will do.

    Returns:
        The jitted step, to ``trace`` or ``lower``, and (state, frozen, batch) of
        ShapeDtypeStructs with shardings.

    Raises:
        ValueError: for a batch, rules, split or offload that do not fit the mesh.
    """
    for shape in batch.values():
        sharding.check_batch(shape.shape[0], mesh)
    shapes = abstract_state(recipe, tx, ema, dict(batch))
    places = sharding.of_state(shapes, mesh, rules, split, offload)
    k = plan.steps_per_call
    program = Program.of(recipe, tx, ema, plan, places, mesh, seed, learning_rate, k)
    where = sharding.of_batch(mesh, leading=int(k > 1))
    stacked = {
        name: jax.ShapeDtypeStruct((k,) * (k > 1) + a.shape, a.dtype, sharding=where)
        for name, a in batch.items()
    }
    return program.jitted, (with_shardings(shapes, places), {}, stacked)
