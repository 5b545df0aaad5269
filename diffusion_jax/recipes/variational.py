"""Training by the variational bound, with the noise schedule among the parameters.

The loss is the bound of ``core.continuous_bound``, one draw of t for each example.  Network and
ends of the schedule follow its gradient, the interior of the schedule the gradient of its variance,
both from one backward pass (``core.learned_schedule``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.continuous_bound import Decoder, diffusion_term, ends_of_bound
from diffusion_jax.core.guidance import condition
from diffusion_jax.core.learned_schedule import split, with_variance_gradient
from diffusion_jax.core.process import Process
from diffusion_jax.core.proposals import Proposal
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import (
    Context,
    Model,
    NoiseLevel,
    Params,
    Prediction,
    Recipe,
    Report,
)
from diffusion_jax.recipes.inputs import Dropout, encode, encode_and_drop


def variational(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    init_schedule: Callable[[], Params],
    process_of: Callable[[Params], Process],
    proposal: Proposal,
    decoder: Decoder,
    condition_dropout: Dropout = 0.0,
) -> Recipe:
    """The recipe of a model whose process has parameters.

    Args:
        model: the model to train, with any process.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        init_schedule: () -> the schedule's parameters.
        process_of: the schedule's parameters -> Process.
        proposal: how t is drawn, uniformly in (0, 1); without importance weights.
        decoder: decoder at the cleanest level, without a network: it must move the ends alone.
        condition_dropout: share of examples that get the null condition, for guidance; or which
            slots of it are emptied, how often.

    Returns:
        A Recipe over params {"net": ..., "schedule": ...}; its loss is in nats per dimension.
    """

    def init(key, batch):
        net_key, codec_key = jax.random.split(key)
        return {
            "net": init_net(net_key, *encode(model, {}, batch, codec_key)),
            "schedule": init_schedule(),
        }

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, level_key, terms_key = jax.random.split(key, 4)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, codec_key, drop_key
        )
        process = process_of(params["schedule"])
        drawn, _ = proposal.draw(level_key, x0.shape[0], process, context.carry)
        t = jax.lax.stop_gradient(drawn.t)
        terms = bound_terms(terms_key, model, params, process_of, x0, cond, t, decoder)
        mean = {f"bits_{name}": jnp.mean(term) / math.log(2) for name, term in terms.items()}
        low, high = (process.at(time).log_snr for time in (1.0, 0.0))
        carry = proposal.update(context.carry, drawn, jax.lax.stop_gradient(terms["steps"]))
        report = Report({**mean, "log_snr_low": low, "log_snr_high": high}, carry)
        return jnp.mean(sum(terms.values(), jnp.zeros(x0.shape[0]))), report

    return Recipe(init, loss, proposal.init)


def bound_terms(
    key: Array,
    model: Model,
    params: Params,
    process_of: Callable[[Params], Process],
    x0: Array,
    cond: Any,
    t: Array,
    decoder: Decoder,
) -> dict[str, Array]:
    """Prior, steps and decoder, nats per dimension [b], with the gradients of the recipe."""
    noise_key, net_key, decoder_key = jax.random.split(key, 3)
    eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
    bound_process, variance_process = (process_of(part) for part in split(params["schedule"]))

    def steps(net: Params, rows: tuple[Array, Array]) -> Array:
        log_snr, rate = rows
        level = NoiseLevel(t, log_snr, *bound_process.path(log_snr))
        denoise = condition(denoiser(model, {"net": net}, net_key), cond)
        return diffusion_term(denoise, x0, eps, level, rate)

    diffusion_loss = with_variance_gradient(steps)(
        params["net"], rows_at(bound_process, t), rows_at(variance_process, t)
    )
    prior, decoder_loss = ends_of_bound(decoder_key, no_network, x0, bound_process, decoder)
    return {"prior": prior, "steps": diffusion_loss, "decoder": decoder_loss}


def rows_at(process: Process, t: Array) -> tuple[Array, Array]:
    """(λ, -dλ/dt) at times t [b]."""
    log_snr, slope = jax.jvp(process.schedule.log_snr, (t,), (jnp.ones_like(t),))
    return log_snr, -slope


def no_network(x: Array, level: NoiseLevel) -> Prediction:
    """In place of the network where a decoder must not use it."""
    raise ValueError("the decoder of a learned schedule must not need the network's prediction")
