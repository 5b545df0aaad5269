"""Aspect buckets of a config: which sizes, and whether the model takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Context, Params, Recipe
from diffusion_jax.data.buckets import BUCKETS
from diffusion_jax.spec import Config, build


def bucket_sizes(config: Config, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """``config.data.buckets`` with each string in it turned into sizes; () for none.

    Args:
        config: its entries are (height, width) pairs, or strings that ``BUCKETS`` knows.
        image_size: (height, width) of samples, whose area is that of a string that names none.

    Raises:
        ValueError: for a string that names nothing, or with several steps in a dispatch.
    """
    found: list[Any] = []
    for each in config.data.get("buckets", ()):
        if isinstance(each, str):
            found += build(BUCKETS, each, "data.buckets", area=image_size[0] * image_size[1])
        else:
            found.append(tuple(each) if isinstance(each, (list, tuple)) else each)
    if found and config.train.steps_per_call > 1:
        raise ValueError(
            f"config.train.steps_per_call = {config.train.steps_per_call} stacks batches of one "
            "shape, and config.data.buckets has several; set steps_per_call = 1"
        )
    return tuple(dict.fromkeys(found))


def check_sizes(
    recipe: Recipe, frozen: Params, batch: Mapping[str, Any], sizes: Sequence[tuple[int, int]]
) -> None:
    """Trace the loss at each size: else one that does not fit would end a run when its turn came.

    Args:
        recipe: what is trained.
        frozen: parameters that the loss reads.
        batch: one of the data, arrays [b, ...]; images are those under names in "image".
        sizes: of ``bucket_sizes``.

    Raises:
        ValueError: naming the size, with what the network says of it.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    for size in sizes:
        shapes = {
            name: jax.ShapeDtypeStruct(
                (len(x), *size, x.shape[-1]) if name.endswith("image") else x.shape, x.dtype
            )
            for name, x in batch.items()
        }

        def loss(key, batch, frozen):
            params = recipe.init(key, batch)
            context = Context(jnp.zeros((), jnp.int32), params, frozen, recipe.carry())
            return recipe.loss(params, context, batch, key)

        try:
            jax.eval_shape(loss, key, shapes, frozen)
        except ValueError as error:
            said = f"config.data.buckets has {size[0]}x{size[1]}: {error}"
            raise ValueError(said) from None
