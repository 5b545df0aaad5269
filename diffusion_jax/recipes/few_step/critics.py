"""Discriminator heads that tell generated from real data by the features of a network.

    L_D = discriminator(D(f(x_real)), D(f(x_gen))) + γ·E‖∇_f D(f(x_real))‖²,
    L_net = w·generator(D(f(x_gen))).                                                         (1)

f may be trained along with D (the middle of a fake score: DMD2) or stay frozen (ADD, LADD).  The
penalty of weight γ is on the gradient in the features (Sauer et al. 2023), so that no network's
gradient is differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.types import Cond, Model, NoiseLevel, Params, like
from diffusion_jax.recipes.autoencoder import AdversarialLosses

Features = Callable[[Params, Array, NoiseLevel, Cond], list[Array]]
"""(a network's parameters, x, level [b], cond) -> arrays [b, ..., c]."""


class Critic(NamedTuple):
    """A discriminator D: heads on features.

    Attributes:
        init: (key, features, or their shapes, cond) -> params.
        logits: (params, features, cond) -> [b, heads], large for what looks real.
        game: the losses of discriminator and generator.
        weight: w of (1).
        r1: γ of (1).
    """

    init: Callable[[Array, list, Cond], Params]
    logits: Callable[[Params, list[Array], Cond], Array]
    game: AdversarialLosses
    weight: float
    r1: float = 0.0


def network_features(model: Model, features: Callable[..., list[Array]]) -> Features:
    """Features of a diffusion network, called with the same inputs as for its output.

    Args:
        model: its ``time_in`` and ``scale_in`` make the network's inputs.
        features: such as those of ``models.adapter.features_from_module``.
    """

    def read(net: Params, x: Array, level: NoiseLevel, cond: Cond) -> list[Array]:
        time = jnp.broadcast_to(model.time_in(level), x.shape[:1])
        return features(net, like(model.scale_in(level), x) * x, time, cond)

    return read


def initialiser(
    critic: Critic, features: Features
) -> Callable[[Array, Params, Array, Cond], Params]:
    """(key, params of a network, x, cond) -> params of the heads; only shapes are computed."""

    def init(key: Array, net: Params, x: Array, cond: Cond) -> Params:
        ones = jnp.ones(x.shape[:1], jnp.float32)
        level = NoiseLevel(ones, ones, ones, ones)
        return critic.init(key, jax.eval_shape(features, net, x, level, cond), cond)

    return init


def discriminator_loss(
    critic: Critic, params: Params, real: list[Array], generated: list[Array], cond: Cond
) -> tuple[Array, dict[str, Array]]:
    """(L_D of (1), metrics); real and generated examples have the same cond."""
    real_logits, generated_logits = (
        critic.logits(params, real, cond),
        critic.logits(params, generated, cond),
    )
    loss = critic.game.discriminator(real_logits, generated_logits)
    metrics = {
        "logit_real": real_logits.mean(),
        "logit_made": generated_logits.mean(),
        "discriminator": loss,
    }
    if critic.r1:
        # Logits of different examples are independent: one gradient of their sum holds all.
        gradients = jax.grad(lambda f: critic.logits(params, f, cond).sum())(real)
        square = sum(jnp.sum(gradient**2) for gradient in gradients) / real_logits.shape[0]
        loss, metrics = loss + critic.r1 * square, {**metrics, "r1": square}
    return loss, metrics


def generator_loss(critic: Critic, params: Params, generated: list[Array], cond: Cond) -> Array:
    """w·generator of (1); no gradient flows into the heads."""
    logits = critic.logits(jax.lax.stop_gradient(params), generated, cond)
    return critic.weight * critic.game.generator(logits)
