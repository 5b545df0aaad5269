"""Autoencoders for latent diffusion: with a Gaussian posterior (KL), and with a codebook (VQ).

Rombach et al. 2022, section 3.1: pixels -> a latent of 1/f of the height and width,
f = 2^(levels - 1) -> pixels.  Parameters are ``encoder``, ``quant``, ``post_quant``, ``decoder``
and, for VQ, ``codebook``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.models.autoencoders.parts import Decoder, Encoder, style_of
from diffusion_jax.models.layers import Dense

_LOG_VAR = (-30.0, 20.0)


class Posterior(NamedTuple):
    """A Gaussian over latents, float32.

    Attributes:
        mean: [b, h, w, z].
        log_var: [b, h, w, z], log of the variance, between -30 and 20.
    """

    mean: Array
    log_var: Array

    def mode(self) -> Array:
        """The mean."""
        return self.mean

    def sample(self, key: Array) -> Array:
        """A sample, [b, h, w, z]."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.log_var) * noise

    def moments(self) -> tuple[Array, Array]:
        """The mean and the standard deviation, [b, h, w, z] each."""
        return self.mean, jnp.exp(0.5 * self.log_var)

    def kl(self) -> Float[Array, " b"]:
        """KL to N(0, I) in nats, summed over the latent (Kingma & Welling 2014, appendix B)."""
        each = jnp.square(self.mean) + jnp.exp(self.log_var) - 1.0 - self.log_var
        return 0.5 * each.sum((1, 2, 3))


class Quantised(NamedTuple):
    """A latent of the nearest entries of a codebook.

    Attributes:
        z: [b, h, w, d], the entries; gradients pass to ``before`` (straight through).
        indices: int32 [b, h, w], indices of the entries.
        before: [b, h, w, d], encoder outputs before quantisation.
        entries: [b, h, w, d], the entries, with gradients to the codebook.
    """

    z: Array
    indices: Array
    before: Array
    entries: Array

    def mode(self) -> Array:
        """The entries, as a posterior's mode."""
        return self.z

    def sample(self, key: Array) -> Array:
        """The entries, as a posterior's sample: there is nothing random."""
        del key
        return self.z

    def moments(self) -> tuple[Array, Array]:
        """The entries, and a deviation of 0."""
        return self.z, jnp.zeros_like(self.z)


class _Autoencoder(nn.Module):
    """The common base: an encoder, a decoder, and 1x1 layers between them and the latent.

    Attributes:
        channels: base width.
        channel_mults: width of each level as a multiple; the size halves between levels.
        blocks: residual blocks of a level, one more on the way up.
        latent_channels: z, channels of a latent.
        out_channels: number of channels of pixels.
        groups: most groups of a norm.
        attention: whether the middle blocks have attention.
        dtype: of the computation; parameters, norm statistics, softmax and results are float32.
    """

    channels: int = 128
    channel_mults: tuple[float, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 4
    out_channels: int = 3
    groups: int = 32
    attention: bool = True
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """The factor by which a latent is smaller than the pixels, in height and width."""
        return 2 ** (len(self.channel_mults) - 1)

    def encode(self, pixels: Float[Array, "b h w c"]) -> Any:
        """Pixels in [-1, 1], h and w multiples of ``factor`` -> their latent.

        Raises:
            ValueError: for another size.
        """
        check_pixels(pixels.shape, self.factor)
        return self.code(self.features(pixels))

    def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The reconstruction from the posterior's mode."""
        return self.decode(self.encode(pixels).mode())


class AutoencoderKL(_Autoencoder):
    """Pixels <-> latents, by a Gaussian posterior: ``encode`` gives a ``Posterior``.

    Further attributes:
        quant: whether there are 1x1 layers after the encoder and before the decoder.
    """

    quant: bool = True

    def setup(self):
        self.encoder, self.decoder = _coders(self, 2 * self.latent_channels)
        if self.quant:
            self.quant_layer = Dense(2 * self.latent_channels, self.dtype, name="quant")
            self.post_quant_layer = Dense(self.latent_channels, self.dtype, name="post_quant")

    def features(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 z2"]:
        """The input of ``code``, float32; tiles of it may be blended."""
        h = self.encoder(pixels)
        return (self.quant_layer(h) if self.quant else h).astype(jnp.float32)

    def code(self, features: Float[Array, "b h w z2"]) -> Posterior:
        """The posterior that ``features`` describes."""
        mean, log_var = jnp.split(features, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_var, *_LOG_VAR))

    def decode(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 c"]:
        """Latents -> pixels, float32, about [-1, 1]."""
        h = self.post_quant_layer(z) if self.quant else z
        return self.decoder(h).astype(jnp.float32)


class AutoencoderVQ(_Autoencoder):
    """Pixels <-> entries of a codebook (van den Oord et al. 2017); a latent is ``Quantised``.

    Further attributes:
        entries: K, size of the codebook.
        entry_channels: d, channels of an entry; 0 for ``latent_channels``.
    """

    entries: int = 1024
    entry_channels: int = 0

    def setup(self):
        self.encoder, self.decoder = _coders(self, self.latent_channels)
        width = self.entry_channels or self.latent_channels
        self.quant_layer = Dense(width, self.dtype, name="quant")
        self.post_quant_layer = Dense(self.latent_channels, self.dtype, name="post_quant")
        bound = 1 / self.entries
        init = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        self.codebook = self.param("codebook", init, (self.entries, width))

    def features(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """The input of ``code``, float32; tiles of it may be blended."""
        return self.quant_layer(self.encoder(pixels)).astype(jnp.float32)

    def code(self, features: Float[Array, "b h w d"]) -> Quantised:
        """The entries nearest to ``features``."""
        return quantise(features, self.codebook)

    def decode(self, z: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 c"]:
        """Latents -> pixels, float32, about [-1, 1]."""
        return self.decoder(self.post_quant_layer(z)).astype(jnp.float32)


def quantise(before: Float[Array, "b h w d"], codebook: Float[Array, "k d"]) -> Quantised:
    """The nearest entry of each position, with the straight-through gradient."""
    square = jnp.square(codebook).sum(-1)
    distance = square - 2 * jnp.einsum("bhwd,kd->bhwk", before, codebook)  # less ‖before‖²
    indices: Int[Array, "b h w"] = jnp.argmin(distance, -1).astype(jnp.int32)
    entries = jnp.asarray(codebook)[indices]  # of weights from a file, NumPy's
    z = before + jax.lax.stop_gradient(entries - before)
    return Quantised(z, indices, before, entries)


def check_pixels(shape: tuple[int, ...], factor: int) -> None:
    """Check that a size can be halved as often as necessary.

    Raises:
        ValueError: if not, naming the size and one that can.
    """
    h, w = shape[1:3]
    if h % factor or w % factor:
        fits = tuple(max(factor, n // factor * factor) for n in (h, w))
        raise ValueError(
            f"image size {(h, w)} is not a multiple of {factor}, as this autoencoder needs; "
            f"resize or crop to {fits}"
        )


def _coders(module: Any, code_channels: int) -> tuple[Encoder, Decoder]:
    widths = tuple(max(1, round(module.channels * m)) for m in module.channel_mults)
    style = style_of(module.groups, module.dtype)
    shared = (style, module.attention)
    return (
        Encoder(widths, module.blocks, code_channels, *shared, name="encoder"),
        Decoder(widths, module.blocks, module.out_channels, *shared, name="decoder"),
    )


AUTOENCODERS: dict[str, type[nn.Module]] = {
    "autoencoder_kl": AutoencoderKL,
    "autoencoder_vq": AutoencoderVQ,
}
