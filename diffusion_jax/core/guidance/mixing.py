"""Affine mixes of predictions: several conditions, or several models.

Since x0 and eps are affine in one another at fixed x, mixing either with weights that sum to 1 is
mixing both.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.guidance.weights import Weight, weight_at
from diffusion_jax.core.types import Cond, Denoise, Denoiser, NoiseLevel, Prediction, like


def condition(denoiser: Denoiser, cond: Cond) -> Denoise:
    """The plain conditional model: no guidance."""
    return lambda x, level: denoiser(x, level, cond)


def predictions(
    denoiser: Denoiser, conds: Sequence[Cond]
) -> Callable[[Array, NoiseLevel], tuple[Prediction, ...]]:
    """(x, level) -> the prediction for each condition, in one evaluation of the stacked batch.

    Args:
        denoiser: the model.
        conds: k conditions of equal structure and shapes, leaves [b, ...].
    """
    k = len(conds)
    stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conds)

    def each(x: Array, level: NoiseLevel) -> tuple[Prediction, ...]:
        repeat = lambda leaf: jnp.tile(leaf, (k,) + (1,) * (jnp.ndim(leaf) - 1))
        whole = lambda leaf: jnp.broadcast_to(leaf, (x.shape[0], *leaf.shape[1:]))
        many = level if level.t.ndim == 0 else jax.tree.map(lambda leaf: repeat(whole(leaf)), level)
        out = denoiser(repeat(x), many, stacked)
        split = lambda leaf: leaf.reshape((k, *x.shape[:-1], leaf.shape[-1]))
        parts = jax.tree.map(split, out)
        return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], parts) for i in range(k))

    return each


def mix(denoiser: Denoiser, conds: Sequence[Cond], weights: Sequence[Weight]) -> Denoise:
    """Σ_i w_i · prediction(cond_i), in one network evaluation of the stacked batch.

    Args:
        denoiser: the model.
        conds: k conditions of equal structure and shapes.
        weights: k weights that sum to 1 (for x0 and eps to stay consistent with x).

    Returns:
        A Denoise.  ``aux`` is that of the last condition.
    """
    each = predictions(denoiser, conds)
    return lambda x, level: _total(each(x, level), weights, level, x)


def blend(denoises: Sequence[Denoise], weights: Sequence[Weight]) -> Denoise:
    """Σ_i w_i · denoise_i: as ``mix``, for different models; one evaluation of each.

    Classifier-free guidance and autoguidance at once is
    ``blend((null, reference, plain), (1 - w, 1 - v, w + v - 1))``.
    """
    return lambda x, level: _total([each(x, level) for each in denoises], weights, level, x)


def cfg(denoiser: Denoiser, cond: Cond, null: Cond, scale: Weight) -> Denoise:
    """Classifier-free guidance: null + scale·(cond - null) (Ho & Salimans 2022, eq. 6, with 1 + w).

    Args:
        denoiser: a model trained with condition dropout.
        cond: the condition.
        null: the empty condition, or a negative one.
        scale: 1 is the conditional model, 0 the unconditional one; traced, or a function of level.
    """
    at = scale if callable(scale) else lambda level: jnp.asarray(scale)
    return mix(denoiser, (null, cond), (lambda level: 1 - at(level), at))


def compose(
    denoiser: Denoiser, null: Cond, conds: Sequence[Cond], scales: Sequence[Weight]
) -> Denoise:
    """null + Σ_i scale_i·(cond_i - null), all conditions at once (Liu et al. 2022).

    Args:
        denoiser: a model trained with condition dropout.
        null: the empty condition.
        conds: the conditions; one of a negative scale is avoided.
        scales: one for each.
    """

    def guided(x: Array, level: NoiseLevel) -> Prediction:
        each = [weight_at(scale, level, x) for scale in scales]
        rest = 1 - functools.reduce(jnp.add, each)
        return mix(denoiser, (null, *conds), (rest, *each))(x, level)

    return guided


def chain(denoiser: Denoiser, conds: Sequence[Cond], scales: Sequence[Weight]) -> Denoise:
    """e_0 + Σ_i scale_i·(e_i - e_{i-1}): each condition guided beside those before it.

    InstructPix2Pix is (∅, ∅), (picture, ∅), (picture, text) with scales of the picture and of the
    text (Brooks et al. 2023, equation 3); one network evaluation.  Scales of 1 are the last one.

    Args:
        denoiser: a model trained with dropout of each condition.
        conds: k + 1 conditions, of growing content; see ``emptied``.
        scales: k.

    Raises:
        ValueError: unless there is one scale for each step from a condition to the next.
    """
    if len(scales) != len(conds) - 1:
        raise ValueError(
            f"chain: {len(conds)} conditions need {len(conds) - 1} scales, got {len(scales)}"
        )
    each = predictions(denoiser, conds)

    def guided(x: Array, level: NoiseLevel) -> Prediction:
        s = [jnp.ones((), x.dtype), *(weight_at(scale, level, x) for scale in scales)]
        weights = [a - b for a, b in itertools.pairwise(s)]
        return _total(each(x, level), [*weights, s[-1]], level, x)

    return guided


def emptied(cond: Cond, null: Cond, slots: Sequence[str] | None = None) -> Cond:
    """cond with the null's values in the named slots, and its own in the others.

    Args:
        cond: the condition; a dict, if slots are named.
        null: the empty one, with at least these slots.
        slots: keys; None for the null itself.

    Raises:
        ValueError: for a slot that is not in both.
    """
    if slots is None:
        return null
    named = isinstance(cond, Mapping)
    if missing := [slot for slot in slots if not named or slot not in cond or slot not in null]:
        raise ValueError(
            f"the condition has no slots {missing} to empty: it has "
            f"{sorted(cond) if named else 'no names'}"
        )
    return {**cond, **{slot: null[slot] for slot in slots}}


def autoguidance(denoiser: Denoiser, reference: Denoiser, cond: Cond, scale: Weight) -> Denoise:
    """reference + scale·(model - reference), of a worse model (Karras et al. 2024a).

    Args:
        denoiser: the model.
        reference: one with the same faults, but more of them: smaller, or trained for less long.
        cond: the condition of both.
        scale: 1 is the model itself.
    """
    at = scale if callable(scale) else lambda level: jnp.asarray(scale)
    both = (condition(reference, cond), condition(denoiser, cond))
    return blend(both, (lambda level: 1 - at(level), at))


def perturbed(
    denoiser: Denoiser,
    cond: Mapping[str, Array],
    gates: Mapping[str, Array],
    strength: Weight,
    null: Mapping[str, Array] | None = None,
    scale: Weight = 1.0,
) -> Denoise:
    """cond + strength·(cond - perturbed), plus classifier-free guidance where there is a null.

    With gates that make attention maps the identity this is perturbed-attention guidance (Ahn et
    al. 2024), with gates that skip blocks skip-layer guidance (Hyung et al. 2024).  With a null:
    null + scale·(cond - null) + strength·(cond - perturbed).  One network evaluation.

    Args:
        denoiser: a model whose network reads the gates (see ``models.unet.unet.UNet``).
        cond: the condition, or {}.
        gates: of the perturbed evaluation, beside cond, each [n] or [b, n], 1 where it perturbs.
        strength: 0 changes nothing.
        null: the empty condition, or a negative one; None for no classifier-free guidance.
        scale: of the latter; not used without a null.
    """

    def guided(x: Array, level: NoiseLevel) -> Prediction:
        full = {
            key: jnp.broadcast_to(gate, (x.shape[0], jnp.shape(gate)[-1]))
            for key, gate in gates.items()
        }
        none = {key: jnp.zeros_like(gate) for key, gate in full.items()}
        s = weight_at(strength, level, x)
        conds = [{**cond, **full}, {**cond, **none}]
        if null is None:
            return mix(denoiser, conds, (-s, 1 + s))(x, level)
        w = weight_at(scale, level, x)
        return mix(denoiser, [{**null, **none}, *conds], (1 - w, -s, w + s))(x, level)

    return guided


def _total(
    parts: Sequence[Prediction], weights: Sequence[Weight], level: NoiseLevel, x: Array
) -> Prediction:
    each = [weight_at(weight, level, x) for weight in weights]
    total = lambda leaves: functools.reduce(
        jnp.add, (like(w, x) * leaf for w, leaf in zip(each, leaves, strict=True))
    )
    x0, eps = total([part.x0 for part in parts]), total([part.eps for part in parts])
    return Prediction(x0, eps, parts[-1].aux)
