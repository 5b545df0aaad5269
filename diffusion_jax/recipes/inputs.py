"""What every recipe does to a batch before its loss: encode it, and drop conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax.core.guidance import emptied
from diffusion_jax.core.types import Model, like


class Drop(NamedTuple):
    """One way to empty a condition.

    Attributes:
        probability: of an example, in [0, 1].
        slots: keys of cond that are emptied together; None for the whole condition.
    """

    probability: float
    slots: tuple[str, ...] | None = None


Dropout = float | Sequence[Drop]
"""The probability to empty the whole condition, or several ways; an example gets one at most.

InstructPix2Pix's 5 % without text, 5 % without picture and 5 % without both (Brooks et al. 2023,
section 3.2.1) are

    text, picture = ("context",), ("edit",)
    (Drop(0.05, text), Drop(0.05, text + picture), Drop(0.05, picture))
"""


def encode(model: Model, frozen: Any, batch: dict[str, Array], key: Array) -> tuple[Array, Any]:
    """(x0 [b, ...], cond) of a batch, by the model's codec and condition."""
    return model.codec.encode(frozen, batch["image"], key), model.condition(frozen, batch)


def encode_and_drop(
    model: Model,
    frozen: Any,
    batch: dict[str, Array],
    dropout: Dropout,
    codec_key: Array,
    drop_key: Array,
) -> tuple[Array, Any]:
    """``encode``, with the null condition in place of a share of conditions.

    So one network learns all predictions that guidance mixes (Ho & Salimans 2022, algorithm 1).

    Args:
        model, frozen, batch: as in ``encode``.
        dropout: probability that an example's condition is dropped, in [0, 1]; or which parts of
            it are, how often.
        codec_key, drop_key: PRNG keys.

    Raises:
        ValueError: as ``dropped``.
    """
    x0, cond = encode(model, frozen, batch, codec_key)
    return x0, dropped(drop_key, cond, model.null(frozen, cond), x0.shape[0], dropout)


def dropped(key: Array, cond: Any, null: Any, count: int, dropout: Dropout) -> Any:
    """cond with parts of ``null`` in place of its own, by one uniform number for each example.

    The ways are disjoint intervals of [0, 1): of several ways, slots are emptied together as often
    as the table says, whatever the others are.

    Args:
        key: PRNG key.
        cond: leaves [b, ...]; a dict, if ``dropout`` names slots.
        null: the empty condition in cond's shapes.
        count: b.
        dropout: see ``Dropout``.

    Raises:
        ValueError: for probabilities below 0 or above 1 in all, or slots that cond does not have.
    """
    ways = tuple(dropout) if isinstance(dropout, Sequence) else (Drop(dropout),)
    bounds = _bounds(ways)
    r = jax.random.uniform(key, (count,))
    for way, low, high in zip(ways, bounds, bounds[1:], strict=False):
        cond = drop_condition((low <= r) & (r < high), cond, null, way.slots)
    return cond


def drop_condition(drop: Array, cond: Any, null: Any, slots: Sequence[str] | None = None) -> Any:
    """``guidance.emptied`` of the examples that ``drop``, bool [b], marks.

    Args:
        drop: which examples.
        cond: leaves [b, ...].
        null: in cond's shapes.
        slots: the keys of cond that are emptied; None for all of it.

    Raises:
        ValueError: for a slot that cond does not have.
    """
    empty = emptied(cond, null, slots)
    return jax.tree.map(lambda n, c: jnp.where(like(drop, c), n, c), empty, cond)


def _bounds(ways: Sequence[Drop]) -> list[float]:
    """0 and the ends of the intervals of the ways, one after the other."""
    each = [way.probability for way in ways]
    if min(each, default=0.0) < 0 or sum(each) > 1 + 1e-9:
        raise ValueError(
            f"dropout has the probabilities {each}: give numbers from 0 to 1, at most 1 in all."
        )
    return [0.0, *np.cumsum(each).tolist()]
