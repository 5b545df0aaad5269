"""Bottlenecks that regularise the latents of an autoencoder: a KL term, or a codebook.

Each is (encoder output, ...) -> the latent z, a loss term, and the recipe's carry.  A codebook is
trained by gradients (``vq``) or is a moving average of encoder outputs (``vq_ema``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.core.types import Params

_ANCHOR_STEPS = 200  # mean number of steps for which a dead entry keeps its anchor


class BottleneckOutput(NamedTuple):
    """The latent z [b, h, w, d] that is decoded, a loss [], metrics, and the next carry."""

    z: Array
    loss: Array
    metrics: dict[str, Array]
    carry: Any


class Bottleneck(NamedTuple):
    """A regulariser of latents.

    Attributes:
        apply: (autoencoder's params, its encoder's output, number of values of an image, carry,
            key) -> BottleneckOutput.
        carry: () -> the carry before the first step.
        settle: (autoencoder's params, carry) -> its params, with those that the carry determines.
    """

    apply: Callable[[Params, Any, int, Any, Array], BottleneckOutput]
    carry: Callable[[], Any] = lambda: ()
    settle: Callable[[Params, Any], Params] = lambda params, carry: params


class Usage(NamedTuple):
    """How often the entries of a codebook are used.

    Attributes:
        share: [k], moving average of the share of positions that an entry is chosen for.
        anchor: [k, d], an encoder output for each entry, towards which it moves when it is dead.
    """

    share: Array
    anchor: Array


class Sums(NamedTuple):
    """Moving averages over the encoder outputs that choose each entry of a codebook.

    Attributes:
        count: [k], N of (1): how many positions of a batch an entry is chosen for.
        total: [k, d], m of (1): the sum of the encoder's outputs there.
    """

    count: Array
    total: Array


def kl(weight: float = 1e-6) -> Bottleneck:
    """A sample of the posterior, and weight·KL to N(0, I) in nats per value of the image.

    The weight is therefore that of Rombach et al. 2022, whose reconstruction and KL are both sums.
    """

    def apply(params, encoded, values, carry, key):
        nats = encoded.kl().mean()
        metrics = {"kl_nats": nats, "code_std": encoded.mean.std()}
        return BottleneckOutput(encoded.sample(key), weight * nats / values, metrics, carry)

    return Bottleneck(apply)


def vq(
    entries: int,
    width: int,
    beta: float = 0.25,
    weight: float = 1.0,
    revive: float = 1.0,
    decay: float = 0.99,
    dead: float = 0.1,
) -> Bottleneck:
    """‖sg(before) - entry‖² + beta·‖before - sg(entry)‖² (van den Oord et al. 2017, eq. 3).

    An entry that is chosen less than ``dead`` times as often as the average is dead.  As parameters
    change by gradients alone, it is not reset but pulled, by a squared distance, towards one output
    of the encoder, the same until the entry is alive again, or for 200 steps on average.  That is
    in the spirit of Zheng & Vedaldi 2023, section 3.2.

    Args:
        entries, width: shape of the codebook, ``params["codebook"]``.
        beta: weight of the commitment.
        weight: weight of the whole loss.
        revive: weight of the pull on dead entries, 0 for none.
        decay: decay of the moving average of the shares.
        dead: see above, in [0, 1).
    """
    if not 0 <= dead < 1 or not 0 <= decay < 1:
        raise ValueError(f"vq(decay={decay}, dead={dead}) needs both in [0, 1)")

    def apply(params, encoded, values, carry, key):
        stop_gradient = jax.lax.stop_gradient
        codebook = jnp.square(encoded.entries - stop_gradient(encoded.before)).mean()
        commitment = jnp.square(encoded.before - stop_gradient(encoded.entries)).mean()
        share = shares(encoded.indices, entries)
        usage = decay * carry.share + (1 - decay) * share
        is_dead = usage < dead / entries
        anchor = _anchors(key, stop_gradient(encoded.before), carry.anchor, is_dead)
        squared_distance = jnp.square(params["codebook"] - anchor).mean(-1)
        revival = jnp.mean(jnp.where(is_dead, squared_distance, 0.0))
        metrics = {
            "codebook": codebook,
            "perplexity": perplexity(share),
            "dead_entries": is_dead.sum().astype(jnp.float32),
        }
        loss = weight * (codebook + beta * commitment) + revive * revival
        return BottleneckOutput(encoded.z, loss, metrics, Usage(usage, anchor))

    init_usage = lambda: Usage(jnp.full(entries, 1 / entries), jnp.zeros((entries, width)))
    return Bottleneck(apply, init_usage)


def vq_ema(
    entries: int,
    width: int,
    beta: float = 0.25,
    weight: float = 1.0,
    decay: float = 0.99,
    dead: float = 0.1,
    smoothing: float = 1e-5,
) -> Bottleneck:
    """A codebook of moving averages: the loss is the commitment alone.

        N <- decay·N + (1 - decay)·n,   m <- decay·m + (1 - decay)·Σ before,   entry = m/N   (1)

    with n the positions of a batch that choose the entry and the sum over these; N counts with
    Laplace smoothing, N' = ΣN·(N + smoothing)/(ΣN + k·smoothing) (van den Oord et al. 2017,
    appendix A.1; Razavi et al. 2019, section 2.1 and its code).  N and m start from 0, so the first
    entries are means of the first batch.

    An entry that is chosen less than ``dead`` times as often as the average is reset to a random
    output of the encoder (Dhariwal et al. 2020, section 3.1), with the average count: so it has
    log(dead)/log(decay) steps until it can be dead again.  One never chosen keeps its value.

    Args:
        entries, width, beta, weight, dead: as for ``vq``; dead = 0 resets none.
        decay: decay of N and m, applied once for each micro-batch of a step.
        smoothing: smoothing of the counts, > 0.
    """
    if not 0 <= dead < 1 or not 0 <= decay < 1 or not smoothing > 0:
        raise ValueError(
            f"vq_ema(decay={decay}, dead={dead}, smoothing={smoothing}) needs decay and dead in "
            "[0, 1) and smoothing > 0"
        )

    def apply(params, encoded, values, carry, key):
        before = jax.lax.stop_gradient(encoded.before)
        commitment = jnp.square(encoded.before - jax.lax.stop_gradient(encoded.entries)).mean()
        new = _batch_sums(before, encoded.indices, entries)
        sums = jax.tree.map(lambda old, now: decay * old + (1 - decay) * now, carry, new)
        mean = sums.count.mean()
        is_dead = sums.count < dead * mean
        fresh = mean * _random_outputs(key, before, entries)
        metrics = {
            "commitment": commitment,
            "perplexity": perplexity(new.count / encoded.indices.size),
            "dead_entries": is_dead.sum().astype(jnp.float32),
        }
        revived = Sums(
            jnp.where(is_dead, mean, sums.count),
            jnp.where(is_dead[:, None], fresh, sums.total),
        )
        return BottleneckOutput(encoded.z, weight * beta * commitment, metrics, revived)

    def settle(params, carry):
        total_count = carry.count.sum()
        smoothed = total_count * (carry.count + smoothing) / (total_count + entries * smoothing)
        chosen = (carry.count > 0)[:, None]
        mean = carry.total / jnp.where(chosen, smoothed[:, None], 1.0)
        return {**params, "codebook": jnp.where(chosen, mean, params["codebook"])}

    return Bottleneck(apply, lambda: Sums(jnp.zeros(entries), jnp.zeros((entries, width))), settle)


def shares(indices: Int[Array, "..."], entries: int) -> Float[Array, " k"]:
    """The share of positions that each entry is chosen for; they sum to 1."""
    return jnp.zeros(entries).at[indices.reshape(-1)].add(1.0) / indices.size


def perplexity(share: Float[Array, " k"]) -> Float[Array, ""]:
    """e^entropy: the number of equally used entries with the same entropy."""
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-20))))


def _batch_sums(
    before: Float[Array, "b h w d"], indices: Int[Array, "b h w"], entries: int
) -> Sums:
    flat, rows = indices.reshape(-1), before.reshape(-1, before.shape[-1])
    total = jnp.zeros((entries, rows.shape[-1])).at[flat].add(rows)
    return Sums(jnp.zeros(entries).at[flat].add(1.0), total)


def _random_outputs(key: Array, before: Array, n: int) -> Array:
    outputs = before.reshape(-1, before.shape[-1])
    return outputs[jax.random.randint(key, (n,), 0, len(outputs))]


def _anchors(key: Array, before: Array, old: Array, dead: Array) -> Array:
    place_key, time_key = jax.random.split(key)
    fresh = _random_outputs(place_key, before, len(dead))
    renew = ~dead | jax.random.bernoulli(time_key, 1 / _ANCHOR_STEPS, dead.shape)
    return jnp.where(renew[:, None], fresh, old)


BOTTLENECKS: dict[str, Callable[..., Bottleneck]] = {"kl": kl, "vq": vq, "vq_ema": vq_ema}
