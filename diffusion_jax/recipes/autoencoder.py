"""Training the first stage of latent diffusion: an autoencoder, and a player who tells its work.

    L_G = pixel + perceptual + bottleneck + w·λ·generator(D(x̂)),   x̂ = decode(encode(x))   (1)
    L_D = ½·discriminator(D(x), D(x̂))                                                      (2)

Rombach et al. 2022, eq. 25; Esser et al. 2021, eqs. 5 to 7.  A step takes one gradient of one
scalar, so that is L_G with D's parameters held fast, plus L_D with x̂ held fast: neither player's
gradient has anything of the other's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.control_flow import when
from diffusion_jax.core.losses import mean_per_example
from diffusion_jax.core.types import Context, Params, Recipe, Report
from diffusion_jax.recipes.bottleneck import Bottleneck

_MOST = 1e4  # of the adaptive weight, as Esser et al.'s code clips it
_fixed = jax.lax.stop_gradient

PixelLoss = Callable[[Array, Array], Array]
"""(reconstruction, pixels), [b, h, w, c] each -> [b]."""


class Coder(NamedTuple):
    """The autoencoder as functions.

    Attributes:
        init: (key, pixels) -> params.
        encode: (params, pixels) -> what the bottleneck takes.
        decode: (params, z) -> pixels.
        last: path, in params, of the decoder's last kernel.
    """

    init: Callable[[Array, Array], Params]
    encode: Callable[[Params, Array], Any]
    decode: Callable[[Params, Array], Array]
    last: tuple[str, ...] = ("decoder", "conv_out", "kernel")


class Perceptual(NamedTuple):
    """A distance through a network that is not trained.

    Attributes:
        features: (``frozen["perceptual"]``, pixels in [-1, 1]) -> arrays [b, h, w, c].
        heads: (``frozen["perceptual"]``) -> a weight [c] for the channels of each array, or [].
        weight: of the distance in the loss.
    """

    features: Callable[[Params, Array], Sequence[Array]]
    heads: Callable[[Params], Sequence[Array]]
    weight: float = 1.0


class Game(NamedTuple):
    """The two losses of a discriminator's logits of real and reconstructed patches, [...] -> []."""

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[[Array], Array]


class Adversary(NamedTuple):
    """The second player.

    Attributes:
        init: (key, pixels) -> params.
        logits: (params, pixels) -> [b, h, w, 1], large for what looks real.
        game: of ``GAMES``.
        weight: w of (1).
        start: step from which on it plays.
    """

    init: Callable[[Array, Array], Params]
    logits: Callable[[Params, Array], Array]
    game: Game
    weight: float = 1.0
    start: int = 0


def autoencoder(
    coder: Coder,
    pixel: PixelLoss,
    bottleneck: Bottleneck,
    perceptual: Perceptual | None = None,
    adversary: Adversary | None = None,
) -> Recipe:
    """The recipe of KL and VQ autoencoders.

    Args:
        coder: what is trained.
        pixel: of ``PIXEL_LOSSES``.
        bottleneck: of ``bottleneck.BOTTLENECKS``.
        perceptual: None for none; its parameters are ``frozen["perceptual"]``.
        adversary: None for none.

    Returns:
        A Recipe over params {"autoencoder": ..., "discriminator": ... if there is an adversary}.
    """

    def init(key, batch):
        of_coder, of_other = jax.random.split(key)
        params = {"autoencoder": coder.init(of_coder, batch["image"])}
        if adversary is not None:
            params["discriminator"] = adversary.init(of_other, batch["image"])
        return params

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        x, own = batch["image"], params["autoencoder"]
        code = coder.encode(own, x)
        held = bottleneck.apply(own, code, x[0].size, context.carry, key)
        made = coder.decode(own, held.z)
        compare = _reconstruction(pixel, perceptual, context.frozen, x)
        (value, metrics), grad = jax.value_and_grad(compare, has_aux=True)(_fixed(made))
        metrics = {**metrics, **held.metrics}
        if adversary is None:
            return _linear(made, value, grad) + held.loss, Report(metrics, held.carry)
        of_kernel = _last_pullback(coder, own, held.z)
        played = _play(adversary, params["discriminator"], x, made, grad, of_kernel, context.step)
        metrics |= played.metrics
        whole = _linear(made, value + played.value, grad + played.grad)
        return whole + held.loss + played.own, Report(metrics, held.carry)

    def settle(params: Params, carry: Any) -> Params:
        return {**params, "autoencoder": bottleneck.settle(params["autoencoder"], carry)}

    return Recipe(init, loss, bottleneck.carry, settle)


class _Played(NamedTuple):
    value: Array  # the generator's part of (1)
    grad: Array  # of it with respect to x̂
    own: Array  # (2)
    metrics: dict[str, Array]


def _play(adversary, params, x, made, grad, of_kernel, step) -> _Played:
    """Both players' parts; before the start all is 0."""

    def game():
        fool = lambda y: adversary.game.generator(adversary.logits(_fixed(params), y))
        fooled, towards = jax.value_and_grad(fool)(_fixed(made))
        ratio = adaptive_weight(of_kernel(grad), of_kernel(towards))
        weight = adversary.weight * ratio
        of_real, of_made = (adversary.logits(params, y) for y in (x, _fixed(made)))
        own = 0.5 * adversary.game.discriminator(of_real, of_made)
        metrics = {"adaptive_weight": ratio, "generator": fooled, "discriminator": own}
        metrics |= {"logit_real": of_real.mean(), "logit_made": of_made.mean()}
        return _Played(weight * fooled, weight * towards, own, metrics)

    return when(step >= adversary.start, game)


def adaptive_weight(reconstruction: Array, generator: Array) -> Float[Array, ""]:
    """λ = ‖∇reconstruction‖/(‖∇generator‖ + 1e-6) at the last kernel, clipped to [0, 1e4].

    Esser et al. 2021, eq. 7.
    """
    norm = lambda g: jnp.sqrt(jnp.sum(jnp.square(g)))
    return jnp.clip(norm(reconstruction) / (norm(generator) + 1e-6), 0.0, _MOST)


def feature_distance(
    a: Sequence[Array], b: Sequence[Array], heads: Sequence[Array] = ()
) -> Float[Array, " b"]:
    """Σ over layers of the mean over space of Σ_c head_c·(â_c - b̂_c)², â of unit length over c.

    Zhang et al. 2018, eq. 1; without heads each is 1.
    """
    unit = lambda f: f * jax.lax.rsqrt(jnp.sum(f * f, -1, keepdims=True) + 1e-10)
    squares = [jnp.square(unit(p) - unit(q)) for p, q in zip(a, b, strict=True)]
    weights = heads or [jnp.ones(())] * len(squares)
    return sum(
        ((s * h).sum(-1).mean((1, 2)) for s, h in zip(squares, weights, strict=True)),
        jnp.zeros(len(squares[0])),
    )


def _reconstruction(pixel: PixelLoss, perceptual: Perceptual | None, frozen: Params, x: Array):
    """reconstruction -> (pixel + perceptual loss, metrics)."""
    if perceptual is None:

        def plain(made):
            value = pixel(made, x).mean()
            return value, {"pixel": value}

        return plain
    params = frozen["perceptual"]
    wanted, heads = _fixed(perceptual.features(params, x)), perceptual.heads(params)

    def both(made):
        near = pixel(made, x).mean()
        far = feature_distance(perceptual.features(params, made), wanted, heads).mean()
        return near + perceptual.weight * far, {"pixel": near, "perceptual": far}

    return both


def _last_pullback(coder: Coder, params: Params, z: Array) -> Callable[[Array], Array]:
    """Gradient with respect to the reconstruction -> that with respect to the last kernel."""
    params, z = _fixed(params), _fixed(z)
    kernel = params
    for name in coder.last:
        kernel = kernel[name]
    # The same forward pass as the loss's, which the compiler makes one of.
    pull = jax.vjp(lambda kernel: coder.decode(_replaced(params, coder.last, kernel), z), kernel)[1]
    return lambda grad: pull(grad)[0]


def _replaced(params: Params, path: Sequence[str], leaf: Array) -> Params:
    first, *rest = path
    return {**params, first: _replaced(params[first], rest, leaf) if rest else leaf}


def _linear(x: Array, value: Array, grad: Array) -> Array:
    """``value``, with the first derivative ``grad`` in x: what it is made of is passed only once.

    The adaptive weight needs the gradients of its losses; so the step need not take them again.
    """
    inner = jnp.sum(_fixed(grad) * x)
    return _fixed(value) + inner - _fixed(inner)


def _l1(made: Array, x: Array) -> Array:
    return mean_per_example(jnp.abs(made - x))


def _l2(made: Array, x: Array) -> Array:
    return mean_per_example(jnp.square(made - x))


PIXEL_LOSSES: dict[str, Callable[[], PixelLoss]] = {"l1": lambda: _l1, "l2": lambda: _l2}

GAMES: dict[str, Game] = {
    # Lim & Ye 2017, eqs. 3 and 4.
    "hinge": Game(
        lambda real, made: jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + made).mean(),
        lambda made: -made.mean(),
    ),
    # Goodfellow et al. 2014, section 3: the generator maximises log D.
    "non_saturating": Game(
        lambda real, made: jax.nn.softplus(-real).mean() + jax.nn.softplus(made).mean(),
        lambda made: jax.nn.softplus(-made).mean(),
    ),
}
