"""Training the first stage of latent diffusion: an autoencoder against a discriminator.

    L_G = pixel + perceptual + bottleneck + w·λ·generator(D(x̂)),   x̂ = decode(encode(x))   (1)
    L_D = ½·discriminator(D(x), D(x̂))                                                      (2)

Rombach et al. 2022, eq. 25; Esser et al. 2021, eqs. 5 to 7.  A step takes one gradient of one
scalar: L_G without gradient in D's parameters, plus L_D without gradient in x̂, so that neither
network's gradient contains the other's loss.
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

_MAX_WEIGHT = 1e4  # largest adaptive weight, as in Esser et al.'s code
_stop_gradient = jax.lax.stop_gradient

PixelLoss = Callable[[Array, Array], Array]
"""(reconstruction, pixels), [b, h, w, c] each -> [b]."""


class Coder(NamedTuple):
    """An autoencoder as functions.

    Attributes:
        init: (key, pixels) -> params.
        encode: (params, pixels) -> the bottleneck's input, such as a posterior.
        decode: (params, z) -> pixels.
        last: path, in params, of the decoder's last kernel.
    """

    init: Callable[[Array, Array], Params]
    encode: Callable[[Params, Array], Any]
    decode: Callable[[Params, Array], Array]
    last: tuple[str, ...] = ("decoder", "conv_out", "kernel")


class Perceptual(NamedTuple):
    """A distance between the features of a frozen network.

    Attributes:
        features: (``frozen["perceptual"]``, pixels in [-1, 1]) -> arrays [b, h, w, c].
        heads: (``frozen["perceptual"]``) -> a weight [c] for the channels of each array, or [].
        weight: the distance's weight in the loss.
    """

    features: Callable[[Params, Array], Sequence[Array]]
    heads: Callable[[Params], Sequence[Array]]
    weight: float = 1.0


class AdversarialLosses(NamedTuple):
    """The losses of discriminator and generator, given logits of real and generated patches."""

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[[Array], Array]


class Adversary(NamedTuple):
    """A discriminator and its losses.

    Attributes:
        init: (key, pixels) -> params.
        logits: (params, pixels) -> [b, h, w, 1], large where pixels look real.
        game: one of ``GAMES``.
        weight: w of (1).
        start: first step in which it is trained and its loss used.
    """

    init: Callable[[Array, Array], Params]
    logits: Callable[[Params, Array], Array]
    game: AdversarialLosses
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
        coder: the autoencoder.
        pixel: one of ``PIXEL_LOSSES``.
        bottleneck: one of ``bottleneck.BOTTLENECKS``.
        perceptual: None for none; its parameters are ``frozen["perceptual"]``.
        adversary: None for none.

    Returns:
        A Recipe over params {"autoencoder": ..., "discriminator": ... if there is an adversary}.
    """

    def init(key, batch):
        coder_key, other_key = jax.random.split(key)
        params = {"autoencoder": coder.init(coder_key, batch["image"])}
        if adversary is not None:
            params["discriminator"] = adversary.init(other_key, batch["image"])
        return params

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        x, coder_params = batch["image"], params["autoencoder"]
        encoded = coder.encode(coder_params, x)
        latent = bottleneck.apply(coder_params, encoded, x[0].size, context.carry, key)
        reconstruction = coder.decode(coder_params, latent.z)
        reconstruction_loss = _reconstruction(pixel, perceptual, context.frozen, x)
        gradient = jax.value_and_grad(reconstruction_loss, has_aux=True)
        (value, metrics), grad = gradient(_stop_gradient(reconstruction))
        metrics = {**metrics, **latent.metrics}
        if adversary is None:
            loss = _with_gradient(reconstruction, value, grad) + latent.loss
            return loss, Report(metrics, latent.carry)
        kernel_gradient = _last_kernel_gradient(coder, coder_params, latent.z)
        adversarial = _adversarial_terms(
            adversary, params["discriminator"], x, reconstruction, grad, kernel_gradient,
            context.step,
        )  # fmt: skip
        metrics |= adversarial.metrics
        loss = _with_gradient(reconstruction, value + adversarial.value, grad + adversarial.grad)
        return loss + latent.loss + adversarial.discriminator, Report(metrics, latent.carry)

    def settle(params: Params, carry: Any) -> Params:
        return {**params, "autoencoder": bottleneck.settle(params["autoencoder"], carry)}

    return Recipe(init, loss, bottleneck.carry, settle)


class _AdversarialTerms(NamedTuple):
    value: Array  # the generator's part of (1)
    grad: Array  # of it with respect to x̂
    discriminator: Array  # (2)
    metrics: dict[str, Array]


def _adversarial_terms(
    adversary, params, x, reconstruction, grad, kernel_gradient, step
) -> _AdversarialTerms:
    """The adversarial terms of both losses; 0 before the start."""

    def compute():
        generator_loss = lambda y: adversary.game.generator(
            adversary.logits(_stop_gradient(params), y)
        )
        generator, generator_grad = jax.value_and_grad(generator_loss)(
            _stop_gradient(reconstruction)
        )
        ratio = adaptive_weight(kernel_gradient(grad), kernel_gradient(generator_grad))
        weight = adversary.weight * ratio
        real_logits, reconstruction_logits = (
            adversary.logits(params, y) for y in (x, _stop_gradient(reconstruction))
        )
        discriminator = 0.5 * adversary.game.discriminator(real_logits, reconstruction_logits)
        metrics = {"adaptive_weight": ratio, "generator": generator, "discriminator": discriminator}
        metrics |= {"logit_real": real_logits.mean(), "logit_made": reconstruction_logits.mean()}
        return _AdversarialTerms(
            weight * generator, weight * generator_grad, discriminator, metrics
        )

    return when(step >= adversary.start, compute)


def adaptive_weight(reconstruction: Array, generator: Array) -> Float[Array, ""]:
    """λ = ‖∇reconstruction‖/(‖∇generator‖ + 1e-6) at the last kernel, clipped to [0, 1e4].

    Esser et al. 2021, eq. 7.
    """
    norm = lambda g: jnp.sqrt(jnp.sum(jnp.square(g)))
    return jnp.clip(norm(reconstruction) / (norm(generator) + 1e-6), 0.0, _MAX_WEIGHT)


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

        def pixel_only(reconstruction):
            value = pixel(reconstruction, x).mean()
            return value, {"pixel": value}

        return pixel_only
    params = frozen["perceptual"]
    target_features, heads = (
        _stop_gradient(perceptual.features(params, x)),
        perceptual.heads(params),
    )

    def with_perceptual(reconstruction):
        pixel_loss = pixel(reconstruction, x).mean()
        perceptual_loss = feature_distance(
            perceptual.features(params, reconstruction), target_features, heads
        ).mean()
        return pixel_loss + perceptual.weight * perceptual_loss, {
            "pixel": pixel_loss,
            "perceptual": perceptual_loss,
        }

    return with_perceptual


def _last_kernel_gradient(coder: Coder, params: Params, z: Array) -> Callable[[Array], Array]:
    """Gradient with respect to the reconstruction -> that with respect to the last kernel."""
    params, z = _stop_gradient(params), _stop_gradient(z)
    kernel = params
    for name in coder.last:
        kernel = kernel[name]
    # The compiler merges this forward pass with the loss's.
    pull = jax.vjp(lambda kernel: coder.decode(_replaced(params, coder.last, kernel), z), kernel)[1]
    return lambda grad: pull(grad)[0]


def _replaced(params: Params, path: Sequence[str], leaf: Array) -> Params:
    first, *rest = path
    return {**params, first: _replaced(params[first], rest, leaf) if rest else leaf}


def _with_gradient(x: Array, value: Array, grad: Array) -> Array:
    """``value``, with the first derivative ``grad`` in x, and nothing else to differentiate.

    The adaptive weight needs the gradients of the losses; so the step need not take them again.
    """
    inner = jnp.sum(_stop_gradient(grad) * x)
    return _stop_gradient(value) + inner - _stop_gradient(inner)


def _l1(made: Array, x: Array) -> Array:
    return mean_per_example(jnp.abs(made - x))


def _l2(made: Array, x: Array) -> Array:
    return mean_per_example(jnp.square(made - x))


PIXEL_LOSSES: dict[str, Callable[[], PixelLoss]] = {"l1": lambda: _l1, "l2": lambda: _l2}

GAMES: dict[str, AdversarialLosses] = {
    # Lim & Ye 2017, eqs. 3 and 4.
    "hinge": AdversarialLosses(
        lambda real, made: jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + made).mean(),
        lambda made: -made.mean(),
    ),
    # Goodfellow et al. 2014, section 3: the generator maximises log D.
    "non_saturating": AdversarialLosses(
        lambda real, made: jax.nn.softplus(-real).mean() + jax.nn.softplus(made).mean(),
        lambda made: jax.nn.softplus(-made).mean(),
    ),
}
