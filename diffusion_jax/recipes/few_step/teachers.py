"""What distillation adds to a training batch: a teacher, and numbers that the student is told."""

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

Tell = Callable[[Array, int], dict[str, Array]]
"""(key, b) -> what the student's cond has beside the batch's own, [b] each."""

SCALE = "guidance_scale"
"""The key of cond by which a student is told the guidance scale that it shall show."""

_CFG = GUIDANCES["cfg"]()


def plain(model: Model) -> Teacher:
    """The network of ``frozen["teacher"]``, told all that its student is told."""
    return lambda frozen, cond: condition(denoiser(model, frozen["teacher"]), cond)


def guided(model: Model, guidance: Guidance = _CFG, scale: Weight | None = None) -> Teacher:
    """The network of ``frozen["teacher"]`` under guidance.

    Args:
        model: of the teacher; its network is not told the scale.
        guidance: see ``core.guidance``.
        scale: None for that of each example, ``cond["guidance_scale"]``, 1 being no guidance.
    """

    def teacher(frozen: Params, cond: Cond) -> Denoise:
        own = {name: leaf for name, leaf in cond.items() if name != SCALE}
        null = model.null(frozen, own)
        weight = cond[SCALE] if scale is None else scale
        return guidance(denoiser(model, frozen["teacher"]), own, null, weight)

    return teacher


def nothing(key: Array, n: int) -> dict[str, Array]:
    """A student that is told nothing more."""
    del key, n
    return {}


def scales(low: float = 1.0, high: float = 5.0) -> Tell:
    """A guidance scale ~ U(low, high) for each example (Meng et al. 2023, section 3.1).

    In the convention of ``core.guidance``: 1 is no guidance, the paper's w is the scale less 1.

    Raises:
        ValueError: if low is above high.
    """
    if low > high:
        raise ValueError(f"guidance scales from {low} to {high}: give the lower one first")
    return lambda key, n: {SCALE: jax.random.uniform(key, (n,), minval=low, maxval=high)}


def initialiser(
    model: Model, init_net: Callable[[Array, Array, Any], Params], tell: Tell = nothing
) -> Callable[[Array, dict[str, Array]], Params]:
    """``Recipe.init`` of a student: (key, batch) -> {"net": ...}.

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> parameters; ``train.loop.train`` puts a teacher's in
            their place, if it is told to start from them.
        tell: what cond has beside the batch's own.
    """

    def init(key: Array, batch: dict[str, Array]) -> Params:
        of_net, of_codec, of_tell = jax.random.split(key, 3)
        x0, cond = encode(model, {}, batch, of_codec)
        return {"net": init_net(of_net, x0, {**cond, **tell(of_tell, x0.shape[0])})}

    return init


def still(tree: Any) -> Any:
    """Constants of the loss: no gradient flows into them."""
    return jax.tree.map(jax.lax.stop_gradient, tree)
