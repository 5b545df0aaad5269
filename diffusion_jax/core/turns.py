"""Whose turn it is among players of one step: what their losses and their optimisers agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def is_turn(step: Int[Array, ""] | int, every: int) -> Bool[Array, ""]:
    """Whether a step is the last of ``every``: so the others have moved before, and a log at a
    multiple of ``every`` steps shows it.

    Args:
        step: int32 [], steps done before this one.
        every: at least 1.
    """
    return (jnp.asarray(step) + 1) % every == 0


def when(turn: Bool[Array, ""], work: Callable[[], Any]) -> Any:
    """work() in its turn, else zeros of that shape.

    The branch is one for accelerators alone: in it XLA on CPUs takes 35 times as long for the
    gradient of a convolution (measured in JAX 0.10.2), as it brings none into the form that its
    fast code is for, but those of the program's outermost part.  There, work is always done.

    Args:
        turn: bool [].
        work: () -> a pytree of arrays.
    """
    rest = lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(work))
    choose = lambda a, b: jnp.where(turn, a, b)
    return jax.lax.platform_dependent(
        cpu=lambda: jax.tree.map(choose, work(), rest()),
        default=lambda: jax.lax.cond(turn, work, rest),
    )
