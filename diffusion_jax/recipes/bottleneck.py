"""What holds a code in shape while an autoencoder is trained: a KL term, or a codebook.

Each is (code, ...) -> the z that is decoded, a summand of the loss, and the recipe's carry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.core.types import Params

_HOLD = 200  # steps, on average, that a dead entry goes to one place before it gets another


class Held(NamedTuple):
    """A code as it is decoded: z [b, h, w, d], a loss [], metrics, and the next carry."""

    z: Array
    loss: Array
    metrics: dict[str, Array]
    carry: Any


class Bottleneck(NamedTuple):
    """What holds codes in shape.

    Attributes:
        apply: (autoencoder's params, its code, values of an example, carry, key) -> Held.
        carry: () -> the carry before the first step.
    """

    apply: Callable[[Params, Any, int, Any, Array], Held]
    carry: Callable[[], Any] = lambda: ()


class Usage(NamedTuple):
    """Of a codebook's entries.

    Attributes:
        share: [k], moving average of the share of positions that an entry is chosen for.
        anchor: [k, d], an encoder's output for each entry: where it goes when it is dead.
    """

    share: Array
    anchor: Array


def kl(weight: float = 1e-6) -> Bottleneck:
    """A draw from the posterior, and weight·KL to N(0, I) in nats per value of the image.

    So the weight is that of Rombach et al. 2022, whose reconstruction and KL are both sums.
    """

    def apply(params, code, values, carry, key):
        nats = code.kl().mean()
        metrics = {"kl_nats": nats, "code_std": code.mean.std()}
        return Held(code.sample(key), weight * nats / values, metrics, carry)

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
    change by gradients alone, it is not moved but drawn, by a squared distance, to one output of
    the encoder, which stays the same until the entry lives, or for 200 steps on average.  That is
    in the spirit of Zheng & Vedaldi 2023, section 3.2.

    Args:
        entries, width: shape of the codebook, ``params["codebook"]``.
        beta: commitment.
        weight: of all of it.
        revive: weight of what draws dead entries, 0 for none.
        decay: of the moving average of the shares.
        dead: see above, in [0, 1).
    """
    if not 0 <= dead < 1 or not 0 <= decay < 1:
        raise ValueError(f"vq(decay={decay}, dead={dead}) needs both in [0, 1)")

    def apply(params, code, values, carry, key):
        fixed = jax.lax.stop_gradient
        codebook = jnp.square(code.entries - fixed(code.before)).mean()
        commitment = jnp.square(code.before - fixed(code.entries)).mean()
        share = shares(code.indices, entries)
        usage = decay * carry.share + (1 - decay) * share
        is_dead = usage < dead / entries
        anchor = _anchors(key, fixed(code.before), carry.anchor, is_dead)
        apart = jnp.square(params["codebook"] - anchor).mean(-1)
        revival = jnp.mean(jnp.where(is_dead, apart, 0.0))
        metrics = {
            "codebook": codebook,
            "perplexity": perplexity(share),
            "dead_entries": is_dead.sum().astype(jnp.float32),
        }
        loss = weight * (codebook + beta * commitment) + revive * revival
        return Held(code.z, loss, metrics, Usage(usage, anchor))

    start = lambda: Usage(jnp.full(entries, 1 / entries), jnp.zeros((entries, width)))
    return Bottleneck(apply, start)


def shares(indices: Int[Array, "..."], entries: int) -> Float[Array, " k"]:
    """The share of positions that each entry is chosen for; they sum to 1."""
    return jnp.zeros(entries).at[indices.reshape(-1)].add(1.0) / indices.size


def perplexity(share: Float[Array, " k"]) -> Float[Array, ""]:
    """e^entropy: how many entries, chosen equally often, would be as varied."""
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-20))))


def _anchors(key: Array, before: Array, old: Array, dead: Array) -> Array:
    of_place, of_time = jax.random.split(key)
    outputs = before.reshape(-1, before.shape[-1])
    fresh = outputs[jax.random.randint(of_place, dead.shape, 0, len(outputs))]
    renew = ~dead | jax.random.bernoulli(of_time, 1 / _HOLD, dead.shape)
    return jnp.where(renew[:, None], fresh, old)


BOTTLENECKS: dict[str, Callable[..., Bottleneck]] = {"kl": kl, "vq": vq}
