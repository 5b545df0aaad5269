"""What is done to the predicted x0, of any Denoise: ``config.sampler.post`` names it."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import flow_maps
from diffusion_jax.core.guidance.moves import move_x0
from diffusion_jax.core.types import Denoise, NoiseLevel, Prediction, like

Transform = Callable[[Denoise], Denoise]
"""What goes around a Denoise."""


def clip(low: float | Array = -1.0, high: float | Array = 1.0, keep_eps: bool = False) -> Transform:
    """Clip x0 to [low, high]: static thresholding (Saharia et al. 2022, section 2.3).

    Args:
        low, high: range of the data, [].
        keep_eps: leave eps as it was predicted, as diffusers' DDIM does, rather than what x and the
            new x0 say.
    """
    return _of_x0(lambda x0: jnp.clip(x0, low, high), keep_eps)


def dynamic_threshold(
    percentile: float | Array = 0.995,
    limit: float | Array = 1.0,
    most: float | Array = jnp.inf,
    keep_eps: bool = False,
) -> Transform:
    """x0 := clip(x0, -s, s)·limit/s, s = max(percentile of |x0|, limit), but not above ``most``.

    Dynamic thresholding (Saharia et al. 2022, section 2.3): an image that leaves the range is drawn
    back as a whole, rather than saturated.

    Args:
        percentile: of the example's |x0|, 0 to 1, []; the paper takes 0.995.
        limit: largest |x0| of the data, [].
        most: largest s; diffusers' ``sample_max_value``, whose default, 1, makes this a clip.
        keep_eps: see ``clip``.
    """

    def bounded(x0: Array) -> Array:
        size = jnp.quantile(jnp.abs(x0.reshape(x0.shape[0], -1)), percentile, axis=1)
        s = like(jnp.minimum(jnp.maximum(size, limit), most), x0)
        return jnp.clip(x0, -s, s) * (limit / s)

    return _of_x0(bounded, keep_eps)


def latent_consistency(
    scale: float = 10.0, sigma_data: float = 0.5, steps: int = 1000
) -> Transform:
    """The boundary condition of a latent consistency model, ``flow_maps.latent_consistency``.

    Around the guided prediction, for models with an LCM-LoRA (Luo et al. 2023b).

    Args:
        scale, sigma_data, steps: see there.
    """
    boundary = flow_maps.latent_consistency(scale, sigma_data, steps)

    def transform(denoise: Denoise) -> Denoise:
        f = flow_maps.bounded(lambda x, level, cond: denoise(x, level), boundary)
        return lambda x, level: f(x, level, {})

    return transform


def _of_x0(bounded: Callable[[Array], Array], keep_eps: bool) -> Transform:
    def transform(denoise: Denoise) -> Denoise:
        def changed(x: Array, level: NoiseLevel) -> Prediction:
            out = denoise(x, level)
            x0 = bounded(out.x0)
            if keep_eps:
                return out._replace(x0=x0)
            return move_x0(out, x0 - out.x0, level)._replace(x0=x0)

        return changed

    return transform


POSTS: dict[str, Callable[..., Transform]] = {
    "clip": clip,
    "dynamic_threshold": dynamic_threshold,
    "latent_consistency": latent_consistency,
}
