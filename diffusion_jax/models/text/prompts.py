"""Prompt embeddings of a diffusion model: weighted states of text encoders, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.models.text.clip import TextStates


class Reader(NamedTuple):
    """One text encoder of a model.

    Attributes:
        encode: (params, ids int [b, n]) -> states.
        read: states -> [b, n, d], those that the model reads (``clip.READS``).
    """

    encode: Callable[[Any, Array], TextStates]
    read: Callable[[TextStates], Array]


def read_prompts(
    readers: tuple[Reader, ...], params: tuple[Any, ...], rows: Mapping[str, Array]
) -> tuple[Float[Array, "b m d"], Float[Array, "b p"]]:
    """The concatenated states of all encoders, and the last one's pooled output.

    Args:
        readers: the encoders.
        params: their parameters.
        rows: for each encoder i "ids_i" int [b, chunks, n] and "weights_i" float [b, chunks, n].

    Returns:
        context: [b, chunks·n, sum of widths]; pooled: [b, p], of the first chunk.
    """
    parts, pooled = [], jnp.zeros(())
    for i, (reader, own) in enumerate(zip(readers, params, strict=True)):
        ids = rows[f"ids_{i}"]
        states, pooled = _read(reader, own, ids)
        parts.append(weighted(states, rows[f"weights_{i}"]))
    context = jnp.concatenate(parts, axis=-1)
    b, chunks, n, d = context.shape
    return context.reshape(b, chunks * n, d), pooled


def _read(reader: Reader, params: Any, ids: Int[Array, "b k n"]) -> tuple[Array, Array]:
    b, chunks, n = ids.shape
    states = reader.encode(params, ids.reshape(b * chunks, n))
    read = reader.read(states)
    pooled = states.pooled.reshape(b, chunks, -1)[:, 0]
    return read.reshape(b, chunks, n, -1).astype(jnp.float32), pooled.astype(jnp.float32)


def weighted(
    states: Float[Array, "b k n d"], weights: Float[Array, "b k n"]
) -> Float[Array, "b k n d"]:
    """Each token's state times its weight, then a chunk scaled back to its original mean.

    The rule of the web interfaces that introduced weights in prompts.  Weights of 1 change nothing;
    a mean of 0 is not rescaled.
    """
    made = states * weights[..., None]
    mean = lambda x: x.mean((2, 3), keepdims=True)
    now = mean(made)
    return made * jnp.where(now == 0, 1.0, mean(states) / jnp.where(now == 0, 1.0, now))
