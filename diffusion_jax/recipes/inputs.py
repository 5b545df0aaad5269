"""What every recipe does to a batch before its loss: encode it, and drop conditions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.types import Model, like


def encode(model: Model, frozen: Any, batch: dict[str, Array], key: Array) -> tuple[Array, Any]:
    """(x0 [b, ...], cond) of a batch, by the model's codec and condition."""
    return model.codec.encode(frozen, batch["image"], key), model.condition(frozen, batch)


def encode_and_drop(
    model: Model,
    frozen: Any,
    batch: dict[str, Array],
    rate: float,
    codec_key: Array,
    drop_key: Array,
) -> tuple[Array, Any]:
    """``encode``, with the null condition in place of a share of conditions.

    So one network learns both predictions that guidance mixes (Ho & Salimans 2022, algorithm 1).

    Args:
        model, frozen, batch: as in ``encode``.
        rate: probability that an example's condition is dropped, in [0, 1].
        of_codec, of_drop: keys.
    """
    x0, cond = encode(model, frozen, batch, codec_key)
    drop = jax.random.bernoulli(drop_key, rate, x0.shape[:1])
    return x0, drop_condition(drop, cond, model.null(frozen, cond))


def drop_condition(drop: Array, cond: Any, null: Any) -> Any:
    """``null`` in place of the conditions of the examples that ``drop``, bool [b], marks."""
    return jax.tree.map(lambda n, c: jnp.where(like(drop, c), n, c), null, cond)
