"""The state of a run between two steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion_jax.core.ema import Ema
from diffusion_jax.core.types import Params, Recipe
from diffusion_jax.train.start import widened

# Initialisation runs once: on a CPU, optimising its random draws takes longer than drawing.
QUICK = {"xla_backend_optimization_level": 0}


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
        step: int32 [], optimiser steps done.
        params: trained parameters.
        opt_state: the optimiser's state.
        ema: the moving average's state.
        carry: the recipe's state.
        finite: bool [], False from the first non-finite loss or gradient on; that step and all
            later ones change nothing else, so the rest is the last good state.
    """

    step: Array
    params: Params
    opt_state: Any
    ema: Any
    carry: Any
    finite: Array


def new_state(
    recipe: Recipe,
    tx: optax.GradientTransformation,
    ema: Ema,
    key: Array,
    batch: dict[str, Array],
    start: Params = None,
) -> TrainState:
    """The state before the first step: pure, so it can be jitted or ``jax.eval_shape``d."""
    params = recipe.init(key, batch)
    if start is not None:
        params = widened(params, start)
    carry = jax.tree.map(jnp.asarray, recipe.carry())
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=ema.init(params),
        carry=carry,
        finite=jnp.ones((), bool),
    )


def init_state(
    recipe: Recipe,
    tx: optax.GradientTransformation,
    ema: Ema,
    key: Array,
    batch: dict[str, Array],
    shardings: Any = None,
    start: Params = None,
) -> TrainState:
    """``new_state`` in one compiled program, each leaf created on its devices.

    Args:
        recipe, tx, ema: recipe, optimiser and moving average.
        key: for the parameters.
        batch: on the devices; mostly its shapes matter, not its values.
        shardings: a NamedSharding per leaf, from ``sharding.of_state``; None for one device.
        start: parameters, on the devices, in place of all or some of the recipe's
            (``start.widened``); None for none.
    """
    fresh = lambda key, batch, start: new_state(recipe, tx, ema, key, batch, start)
    options = QUICK if jax.default_backend() == "cpu" else None
    made = jax.jit(fresh, out_shardings=shardings, compiler_options=options)
    return made(key, batch, start)


def abstract_state(
    recipe: Recipe, tx: optax.GradientTransformation, ema: Ema, batch: dict[str, Any]
) -> TrainState:
    """The shapes and dtypes of ``new_state``'s leaves; computes nothing."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda k, b: new_state(recipe, tx, ema, k, b), key, batch)


def with_shardings(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with the sharding of each leaf."""
    place = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    return jax.tree.map(place, tree, shardings)
