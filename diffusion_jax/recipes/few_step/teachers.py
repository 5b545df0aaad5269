"""What distillation adds to a training batch: a teacher, and extra conditions of the student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from diffusion_jax.core.guidance import GUIDANCES, Guidance, Weight, condition
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Cond, Denoise, Model, Params
from diffusion_jax.recipes.inputs import encode

Teacher = Callable[[Params, Cond], Denoise]
"""(``Context.frozen``, cond) -> Denoise, guidance included."""

ExtraCond = Callable[[Array, int], dict[str, Array]]
"""(key, b) -> what the student's cond has beside the batch's condition, [b] each."""

SCALE = "guidance_scale"
"""The key of cond that holds a student's guidance scale."""

_CFG = GUIDANCES["cfg"]()


def unguided(model: Model) -> Teacher:
    """The network of ``frozen["teacher"]``, with all of its student's cond."""
    return lambda frozen, cond: condition(denoiser(model, frozen["teacher"]), cond)


def guided(model: Model, guidance: Guidance = _CFG, scale: Weight | None = None) -> Teacher:
    """The network of ``frozen["teacher"]`` under guidance.

    Args:
        model: the teacher's; its network is not conditioned on the scale.
        guidance: see ``core.guidance``.
        scale: None for the scale of each example, ``cond["guidance_scale"]``, 1 being no guidance.
    """

    def teacher(frozen: Params, cond: Cond) -> Denoise:
        own = {name: leaf for name, leaf in cond.items() if name != SCALE}
        null = model.null(frozen, own)
        weight = cond[SCALE] if scale is None else scale
        return guidance(denoiser(model, frozen["teacher"]), own, null, weight)

    return teacher


def no_extra_cond(key: Array, n: int) -> dict[str, Array]:
    """No condition beside the batch's."""
    del key, n
    return {}


def guidance_scales(low: float = 1.0, high: float = 5.0) -> ExtraCond:
    """A guidance scale ~ U(low, high) for each example (Meng et al. 2023, section 3.1).

    In the convention of ``core.guidance``: 1 is no guidance, the paper's w is the scale minus 1.

    Raises:
        ValueError: if low is above high.
    """
    if low > high:
        raise ValueError(f"guidance scales from {low} to {high}: give the lower one first")
    return lambda key, n: {SCALE: jax.random.uniform(key, (n,), minval=low, maxval=high)}


def initialiser(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    extra_cond: ExtraCond = no_extra_cond,
) -> Callable[[Array, dict[str, Array]], Params]:
    """``Recipe.init`` of a student: (key, batch) -> {"net": ...}.

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> parameters; ``train.loop.train`` replaces them where
            it is given parameters to start from, such as a teacher's.
        extra_cond: what cond has beside the batch's condition.
    """

    def init(key: Array, batch: dict[str, Array]) -> Params:
        net_key, codec_key, extra_key = jax.random.split(key, 3)
        x0, cond = encode(model, {}, batch, codec_key)
        return {"net": init_net(net_key, x0, {**cond, **extra_cond(extra_key, x0.shape[0])})}

    return init


def stop_gradient(tree: Any) -> Any:
    """``jax.lax.stop_gradient`` of each leaf."""
    return jax.tree.map(jax.lax.stop_gradient, tree)
