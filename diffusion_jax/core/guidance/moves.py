"""Changes of a prediction that keep it consistent, and guidance by a classifier.

By x = alpha·x0 + sigma·eps and score = -eps/sigma (Tweedie), at fixed x a change of one of the
three unknowns is a change of all:

    d x0 = -(sigma/alpha)·d eps = (sigma²/alpha)·d score                                     (1)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.guidance.weights import Weight, weight_at
from diffusion_jax.core.types import Denoise, NoiseLevel, Prediction, like


def move_x0(prediction: Prediction, change: Array, level: NoiseLevel) -> Prediction:
    """x0 + change, and eps so that alpha·x0 + sigma·eps stays; eps stays where sigma is 0."""
    alpha, sigma = like(level.alpha, change), like(level.sigma, change)
    ratio = jnp.where(sigma > 0, alpha / jnp.where(sigma > 0, sigma, 1.0), 0.0)
    return prediction._replace(x0=prediction.x0 + change, eps=prediction.eps - ratio * change)


def move_score(prediction: Prediction, change: Array, level: NoiseLevel) -> Prediction:
    """score + change: eps - sigma·change and x0 by (1); nothing moves where alpha is 0.

    There x_t says nothing of x0, so that the true score of any likelihood of x0 is 0.
    """
    alpha, sigma = like(level.alpha, change), like(level.sigma, change)
    some = alpha > 0
    ratio = jnp.where(some, sigma / jnp.where(some, alpha, 1.0), 0.0)
    shift = jnp.where(some, sigma * change, 0.0)
    return prediction._replace(x0=prediction.x0 + ratio * shift, eps=prediction.eps - shift)


def classifier(
    denoise: Denoise, log_prob: Callable[[Array, NoiseLevel], Array], scale: Weight = 1.0
) -> Denoise:
    """eps - scale·sigma·∇ log p(y | x_t) (Dhariwal & Nichol 2021, algorithm 2 and eq. 14).

    Around the unconditional model with an exact classifier this is ``cfg`` of the same scale.

    Args:
        denoise: the model, guided or not.
        log_prob: (x [b, ...], level) -> log p(y | x_t) of the target y, [b], differentiable in x;
            one example's does not depend on another's x.
        scale: 1 is Bayes' rule.
    """

    def guided(x: Array, level: NoiseLevel) -> Prediction:
        gradient = jax.grad(lambda x: log_prob(x, level).sum())(x)
        change = like(weight_at(scale, level, x), x) * gradient
        return move_score(denoise(x, level), change, level)

    return guided
