"""A player who tells what is made from what is real, by features of a network.

    L_D = discriminator(D(f(x_real)), D(f(x_made))) + γ·E‖∇_f D(f(x_real))‖²,
    L_net = w·generator(D(f(x_made))).                                                         (1)

f may be trained along with D (the middle of a fake score: DMD2) or never (ADD, LADD).  γ's term
is of the features that the heads see (Sauer et al. 2023), so that no network's gradient is
differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.types import Cond, Model, NoiseLevel, Params, like
from diffusion_jax.recipes.autoencoder import Game

Features = Callable[[Params, Array, NoiseLevel, Cond], list[Array]]
"""(a network's parameters, x, level [b], cond) -> arrays [b, ..., c]."""


class Critic(NamedTuple):
    """The heads, D.

    Attributes:
        init: (key, features, or their shapes, cond) -> params.
        logits: (params, features, cond) -> [b, heads], large for what looks real.
        game: the two losses.
        weight: w of (1).
        r1: γ of (1).
    """

    init: Callable[[Array, list, Cond], Params]
    logits: Callable[[Params, list[Array], Cond], Array]
    game: Game
    weight: float
    r1: float = 0.0


def of_network(model: Model, features: Callable[..., list[Array]]) -> Features:
    """Features of a diffusion network, which is asked as it is for its output.

    Args:
        model: how levels and inputs are told to it.
        features: such as ``models.adapter.features_from_module`` makes.
    """

    def at(net: Params, x: Array, level: NoiseLevel, cond: Cond) -> list[Array]:
        time = jnp.broadcast_to(model.time_in(level), x.shape[:1])
        return features(net, like(model.scale_in(level), x) * x, time, cond)

    return at


def initialiser(
    critic: Critic, features: Features
) -> Callable[[Array, Params, Array, Cond], Params]:
    """(key, params of a network, x, cond) -> params of the heads; the network is not run."""

    def init(key: Array, net: Params, x: Array, cond: Cond) -> Params:
        ones = jnp.ones(x.shape[:1], jnp.float32)
        level = NoiseLevel(ones, ones, ones, ones)
        return critic.init(key, jax.eval_shape(features, net, x, level, cond), cond)

    return init


def told_apart(
    critic: Critic, params: Params, real: list[Array], made: list[Array], cond: Cond
) -> tuple[Array, dict[str, Array]]:
    """(L_D of (1), metrics); both are of the same cond."""
    of_real, of_made = critic.logits(params, real, cond), critic.logits(params, made, cond)
    loss = critic.game.discriminator(of_real, of_made)
    metrics = {"logit_real": of_real.mean(), "logit_made": of_made.mean(), "discriminator": loss}
    if critic.r1:
        # Each example's logits are its own, so one gradient of their sum has those of all.
        slopes = jax.grad(lambda f: critic.logits(params, f, cond).sum())(real)
        square = sum(jnp.sum(slope**2) for slope in slopes) / of_real.shape[0]
        loss, metrics = loss + critic.r1 * square, {**metrics, "r1": square}
    return loss, metrics


def fooled(critic: Critic, params: Params, made: list[Array], cond: Cond) -> Array:
    """w·generator of (1); the heads stand still."""
    logits = critic.logits(jax.lax.stop_gradient(params), made, cond)
    return critic.weight * critic.game.generator(logits)
