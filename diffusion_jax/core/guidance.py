"""Guidance: turn a Denoiser and conditions into the Denoise that a sampler calls.

Every method here is an affine mix of predictions, with weights that sum to 1.  Since x0 and eps are
affine in one another at fixed x, mixing either is mixing both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.types import Cond, Denoise, Denoiser, NoiseLevel, Prediction, like

Weight = float | Array | Callable[[NoiseLevel], Array]
"""A number, a traced [] or [b] array, or a function of the level giving one."""


def condition(denoiser: Denoiser, cond: Cond) -> Denoise:
    """The plain conditional model: no guidance."""
    return lambda x, level: denoiser(x, level, cond)


def mix(denoiser: Denoiser, conds: Sequence[Cond], weights: Sequence[Weight]) -> Denoise:
    """Σ_i w_i · prediction(cond_i), in one call of the network on the stacked batch.

    Args:
        denoiser: the model.
        conds: k conditions of equal structure and shapes.
        weights: k weights that sum to 1 (for x0 and eps to stay consistent with x).

    Returns:
        A Denoise.  ``aux`` is that of the last condition.
    """
    k = len(conds)
    stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conds)

    def guided(x: Array, level: NoiseLevel) -> Prediction:
        repeat = lambda leaf: jnp.tile(leaf, (k,) + (1,) * (jnp.ndim(leaf) - 1))
        many = level if jnp.ndim(level.t) == 0 else jax.tree.map(repeat, level)
        out = denoiser(repeat(x), many, stacked)
        split = lambda leaf: leaf.reshape((k, *x.shape[:-1], leaf.shape[-1]))
        each = [jnp.asarray(w(level) if callable(w) else w, x.dtype) for w in weights]
        total = lambda leaf: functools.reduce(
            jnp.add, (like(w, x) * part for w, part in zip(each, split(leaf), strict=True))
        )
        aux = None if out.aux is None else split(out.aux)[-1]
        return Prediction(total(out.x0), total(out.eps), aux)

    return guided


def cfg(denoiser: Denoiser, cond: Cond, null: Cond, scale: Weight) -> Denoise:
    """Classifier-free guidance: null + scale·(cond - null) (Ho & Salimans 2022, eq. 6, with 1 + w).

    Args:
        denoiser: a model trained with condition dropout.
        cond: the wanted condition.
        null: the empty condition, or a negative one.
        scale: 1 is the conditional model, 0 the unconditional one; traced, or a function of level.
    """
    at = scale if callable(scale) else lambda level: jnp.asarray(scale)
    return mix(denoiser, (null, cond), (lambda level: 1 - at(level), at))
