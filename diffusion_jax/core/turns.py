"""Alternating updates of several networks: the steps that losses and optimisers agree on."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def is_turn(step: Int[Array, ""] | int, every: int) -> Bool[Array, ""]:
    """Whether a step is the last of ``every``: the other networks are updated first, and a log at
    a multiple of ``every`` steps includes it.

    Args:
        step: int32 [], steps done before this one.
        every: at least 1.
    """
    return (jnp.asarray(step) + 1) % every == 0
