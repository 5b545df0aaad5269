"""Textual inversion (Gal et al. 2023): a word for one thing, its embedding the only parameters.

Each text encoder's token table has, as its last rows, the vectors of the new word; they take the
place of these rows in the frozen parameters whenever the loss is computed, so gradients reach them
alone, through encoder and denoiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.types import Params, Recipe


def textual_inversion(recipe: Recipe, start: Sequence[Float[Any, "k d"]]) -> Recipe:
    """Any recipe whose condition reads ``frozen["text"]``, but only new words are trained.

    Its params are {"vectors": one [k, d] for each text encoder}; the given recipe's own, which
    stay as they are, are read from ``Context.frozen["base"]``.

    Args:
        recipe: over the denoiser's weights.
        start: first values, such as the vectors of a word that is near to what is meant.
    """

    def init(key, batch):
        del key, batch
        return {"vectors": [jnp.asarray(vectors, jnp.float32) for vectors in start]}

    def loss(params, context, batch, key):
        base = jax.lax.stop_gradient(context.frozen["base"])
        frozen = with_vectors(jax.lax.stop_gradient(context.frozen), params["vectors"])
        return recipe.loss(base, context._replace(ema=base, frozen=frozen), batch, key)

    return Recipe(init, loss, recipe.carry)


def with_vectors(frozen: Params, vectors: Sequence[Float[Array, "k d"]]) -> Params:
    """The frozen parameters with vectors in the last k rows of each text encoder's token table."""
    texts = []
    for text, new in zip(frozen["text"], vectors, strict=True):
        table = jnp.asarray(text["token"]["embedding"])
        table = table.at[table.shape[0] - new.shape[0] :].set(new.astype(table.dtype))
        texts.append({**text, "token": {**text["token"], "embedding": table}})
    return {**frozen, "text": tuple(texts)}


def extended(text: Params, row: int, count: int = 1) -> Params:
    """A text encoder's parameters with ``count`` more tokens, each a copy of a row of the table."""
    table = jnp.asarray(text["token"]["embedding"])
    copies = jnp.repeat(table[row][None], count, 0)
    return {**text, "token": {**text["token"], "embedding": jnp.concatenate([table, copies])}}
