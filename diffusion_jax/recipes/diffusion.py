"""Training a diffusion model: draw x0, a level and noise; regress the network on its target.

The loss is a sum of *terms*.  Each takes one noised batch and gives a loss per example, so an
objective of the literature is a list: ``regression`` alone is DDPM, EDM, v-prediction or flow
matching by its weight, target and process; ``regression`` + ``variational`` is improved DDPM's
hybrid loss; ``uncertain_regression`` is EDM2's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import losses
from diffusion_jax.core.process import clean, corrupt
from diffusion_jax.core.proposals import Proposal
from diffusion_jax.core.solvers.ancestral import learned_range
from diffusion_jax.core.targets import network_output, predict
from diffusion_jax.core.types import (
    Context,
    Model,
    NoiseLevel,
    Params,
    Prediction,
    Recipe,
    Report,
)
from diffusion_jax.core.weighting import Weight, log_uncertainty, with_uncertainty
from diffusion_jax.recipes.inputs import Dropout, encode, encode_and_drop


class Noised(NamedTuple):
    """One noised batch and the network's output: x0, eps, x, out [b, ...]; level [b]."""

    x0: Array
    eps: Array
    x: Array
    level: NoiseLevel
    out: Array


class Term(NamedTuple):
    """One term of the loss.

    Attributes:
        loss: (term's params, Model, Noised) -> [b].
        init: key -> the term's own parameters, {} if none.
    """

    loss: Callable[[Params, Model, Noised], Array]
    init: Callable[[Array], Params] = lambda key: {}


def regression(weight: Weight) -> Term:
    """w(level)·‖out - F‖² (Ho et al. 2020, eq. 14)."""

    def loss(params, model, noised):
        error = losses.regression(model.target, noised.out, noised.x0, noised.eps, noised.level)
        return weight(noised.level, model.target) * error

    return Term(loss)


def uncertain_regression(weight: Weight, frequencies: int = 32) -> Term:
    """w·‖out - F‖²/e^u + u, with u(λ) learned (Karras et al. 2024, eq. 21).

    Args:
        weight: w.
        frequencies: number of Fourier features of λ/4, of which u is a linear map.
    """
    plain = regression(weight)

    def loss(params, model, noised):
        u = log_uncertainty(params["kernel"], noised.level.log_snr)
        return with_uncertainty(plain.loss({}, model, noised), u)

    return Term(loss, lambda key: {"kernel": jnp.zeros((frequencies,))})


def variational(scale: float = 0.001, steps: int = 0) -> Term:
    """scale·T·L_t with the learned-range variance; x0's gradient is stopped.

    Improved DDPM's L_hybrid = L_simple + λ·L_vlb (Nichol & Dhariwal 2021, eq. 16), L_t in bits per
    dimension, as in their code; the mean over t of T·L_t is L_vlb but for the prior's term.

    Args:
        scale: λ.
        steps: T; 0 means the length of the process's table.
    """

    def loss(params, model, noised):
        total = steps or model.process.schedule.steps
        if not total:
            raise ValueError(
                "config.loss.terms: variational() needs steps on a continuous schedule, "
                "such as variational(steps=1000)"
            )
        now = noised.level
        previous_t = now.t - 1 / total
        # t is a multiple of 1/T up to rounding; half a step separates "the first" from the rest.
        first = previous_t < 0.5 / total
        previous_level = model.process.at(jnp.maximum(previous_t, 0.5 / total))
        before = model.process.at(jnp.minimum(now.t + 1 / total, 1.0))
        nxt = jax.tree.map(lambda a, b: jnp.where(first, a, b), clean(now), previous_level)
        full = predict(model.target, noised.out, noised.x, now)
        fixed_mean = Prediction(*jax.lax.stop_gradient((full.x0, full.eps)), full.aux)
        nats = losses.variational_term(
            noised.x0, noised.x, fixed_mean, now, nxt, learned_range, before
        )
        return scale * total * nats / math.log(2)

    return Term(loss)


def diffusion(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    proposal: Proposal,
    terms: Sequence[Term],
    condition_dropout: Dropout = 0.0,
    noise_offset: float = 0.0,
) -> Recipe:
    """The recipe of every diffusion and flow-matching model.

    Args:
        model: the model to train; its ``net`` reads ``params["net"]``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        proposal: how levels are drawn; its state is the recipe's carry.
        terms: terms of the loss.
        condition_dropout: share of examples that get the null condition, for guidance; or which
            slots of it are emptied, how often.
        noise_offset: standard deviation of a shift of each channel's noise, equal at all positions,
            which teaches an eps-predicting model to change an image's mean (Guttenberg 2023).

    Returns:
        A Recipe over params {"net": ..., "terms": [...]}.
    """

    def init(key, batch):
        net_key, codec_key, *term_keys = jax.random.split(key, 2 + len(terms))
        x0, cond = encode(model, {}, batch, codec_key)
        term_params = [term.init(k) for term, k in zip(terms, term_keys, strict=True)]
        return {"net": init_net(net_key, x0, cond), "terms": term_params}

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, level_key, noise_key, net_key = jax.random.split(key, 5)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, codec_key, drop_key
        )
        level, importance = proposal.draw(level_key, x0.shape[0], model.process, context.carry)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        if noise_offset:
            per_channel = (x0.shape[0], *(1,) * (x0.ndim - 2), x0.shape[-1])
            shift_key = jax.random.fold_in(noise_key, 1)
            eps = eps + noise_offset * jax.random.normal(shift_key, per_channel, x0.dtype)
        x = corrupt(x0, eps, level)
        out = network_output(model, params, x, level, cond, net_key)
        noised = Noised(x0, eps, x, level, out)
        per_example = sum(
            (term.loss(p, model, noised) for term, p in zip(terms, params["terms"], strict=True)),
            jnp.zeros(x0.shape[0]),
        )
        carry = proposal.update(context.carry, level, jax.lax.stop_gradient(per_example))
        return jnp.mean(importance * per_example), Report({}, carry)

    return Recipe(init, loss, proposal.init)


TERMS: dict[str, Callable[..., Term]] = {
    "regression": regression,
    "uncertain_regression": uncertain_regression,
    "variational": variational,
}
