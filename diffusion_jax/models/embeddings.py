"""Features of a scalar time, and the vector that conditions every block.

Time is [b], one for each example; what is written here takes [b, n] too, one for each token, and
then gives a vector for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.models.layers import Dense
from diffusion_jax.models.primitives import silu

GUIDANCE = "guidance_scale"
"""The key of cond with the guidance scale that a network is conditioned on."""


def sinusoidal(
    time: Float[Array, "b *n"],
    dim: int,
    max_period: float = 10000.0,
    cos_first: bool = True,
    shift: float = 0.0,
) -> Float[Array, "b *n dim"]:
    """Cosines and sines of time at geometric frequencies (Vaswani et al. 2017, section 3.5).

    Frequency i of n = dim // 2 is max_period^(-i / (n - shift)): from 1 to about 1 / max_period.

    Args:
        time: [b, ...], any range; computed in float32.
        dim: number of features; an odd dim gets a last feature of 0.
        max_period: 2π times this is the longest period.
        cos_first: cosines, then sines, as in ADM; False for DDPM's order.
        shift: 0 as in ADM; 1 for DDPM's spacing, which ends exactly at 1 / max_period.

    Raises:
        ValueError: if dim is below 2 (below 4 with a shift of 1).
    """
    half = dim // 2
    if half <= shift:
        raise ValueError(f"dim={dim} is too small for sinusoidal features: use at least 4.")
    # Float32 exponents, then a correctly rounded exponential: PyTorch's frequencies to the bit.  A
    # unit in the last place would move an angle by up to 6e-5 at time 1000.
    period = np.float32(-np.log(max_period))
    exponents = period * np.arange(half, dtype=np.float32) / np.float32(half - shift)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = time.astype(jnp.float32)[..., None] * frequencies
    parts = (jnp.cos(angles), jnp.sin(angles)) if cos_first else (jnp.sin(angles), jnp.cos(angles))
    return _padded(jnp.concatenate(parts, axis=-1), dim % 2)


def fourier(
    time: Float[Array, "b *n"], dim: int, bandwidth: float = 16.0
) -> Float[Array, "b *n dim"]:
    """Fourier features with Gaussian frequencies (Tancik et al. 2020), for time inputs of order 1.

    The frequencies are the dim // 2 midpoint quantiles of N(0, bandwidth²) instead of a random
    draw: the same spectrum, reproducible, with nothing to store beside the weights.

    Args:
        time: [b, ...]; computed in float32.
        dim: number of features, at least 2; an odd dim gets a last feature of 0.
        bandwidth: standard deviation of the frequencies, in cycles per unit of time.

    Raises:
        ValueError: if dim is below 2.
    """
    half = dim // 2
    if half < 1:
        raise ValueError(f"dim={dim} is too small for Fourier features: use at least 2.")
    quantiles = (jnp.arange(half, dtype=jnp.float32) + 0.5) / half
    frequencies = 2 * jnp.pi * bandwidth * jax.scipy.special.ndtri(quantiles)
    angles = time.astype(jnp.float32)[..., None] * frequencies
    features = jnp.sqrt(2.0) * jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return _padded(features, dim % 2)


def _padded(features: Array, count: int) -> Array:
    """With so many zeros after the last feature."""
    return jnp.pad(features, ((0, 0),) * (features.ndim - 1) + ((0, count),))


class ConditionEmbedding(nn.Module):
    """Time and labels -> one vector per example, or per token, in float32 throughout.

    Attributes:
        dim: width of the vector.
        feature_dim: number of time features.
        features: (time [b, ...], feature_dim) -> [b, ..., feature_dim].
        num_classes: labels are 0 ... num_classes - 1, and num_classes is the null class; 0 for a
            network without labels.
        scalars: keys of cond with further scalar conditions, such as "end" and "guidance_scale";
            at initialisation they have no effect.
        guidance_features: 0, or the number of features of cond["guidance_scale"] whose linear map
            is added to time's, as in latent consistency models (Luo et al. 2023, section 4.2).
    """

    dim: int
    feature_dim: int
    features: Callable[[Array, int], Array]
    num_classes: int = 0
    scalars: tuple[str, ...] = ()
    guidance_features: int = 0

    @nn.compact
    def __call__(
        self, time: Float[Array, "b *n"], cond: Mapping[str, Any]
    ) -> Float[Array, "b *n dim"]:
        """The embedding; examples without a label get the null class.

        Args:
            time: [b], or [b, n] for a vector of each of n tokens.
            cond: {"label": int [b]} or {}, and float [b] for each of ``scalars``, and for
                "guidance_scale" with ``guidance_features``.

        Raises:
            ValueError: if cond has a key that this network does not use, or lacks a scalar, or for
                labels that are not integers.
        """
        known = ({"label"} if self.num_classes else set()) | set(self.scalars)
        known |= {GUIDANCE} if self.guidance_features else set()
        if unknown := sorted(set(cond) - known):
            raise ValueError(
                f"cond has {unknown}, but this network (num_classes={self.num_classes}) knows "
                f"{sorted(known) or 'no key'}: drop them, or build the network with them."
            )
        h = self.features(time.astype(jnp.float32), self.feature_dim)
        if self.guidance_features:
            # Features of w = scale - 1, in thousandths, sines first, as in the authors' code.
            w = 1000 * (cond[GUIDANCE].astype(jnp.float32) - 1)
            told = sinusoidal(w, self.guidance_features, cos_first=False, shift=1.0)
            h = h + _for_all(Dense(self.feature_dim, use_bias=False, name="guidance")(told), h)
        h = silu(Dense(self.dim, name="time_0")(h))
        h = Dense(self.dim, name="time_1")(h)
        for name in self.scalars:
            if name not in cond:
                raise ValueError(
                    f"cond lacks {name!r}, which this network (scalars={self.scalars}) needs: "
                    "sample it with the recipe's own sampler, or give the number, float [b]."
                )
            h = h + _for_all(ScalarEmbedding(self.dim, self.feature_dim, name=name)(cond[name]), h)
        if not self.num_classes:
            return h
        label = cond.get("label", jnp.full(time.shape[:1], self.num_classes))
        return h + _for_all(LabelEmbedding(self.num_classes, self.dim, name="label")(label), h)


def _for_all(vector: Float[Array, "b dim"], h: Float[Array, "b *n dim"]) -> Array:
    """An example's vector for each of its tokens, in a shape that broadcasts with h."""
    return jnp.reshape(vector, (vector.shape[0], *(1,) * (h.ndim - 2), vector.shape[-1]))


class ScalarEmbedding(nn.Module):
    """A number -> a vector, 0 at initialisation: a trained network can get another input."""

    dim: int
    feature_dim: int

    @nn.compact
    def __call__(self, value: Float[Array, " b"]) -> Float[Array, "b dim"]:
        """[b], of the range of time or of a guidance scale, -> [b, dim] float32."""
        h = silu(Dense(self.dim, name="dense_0")(sinusoidal(value, self.feature_dim)))
        return Dense(self.dim, kernel_init=nn.initializers.zeros_init(), name="dense_1")(h)


class LabelEmbedding(nn.Module):
    """A table of num_classes + 1 vectors, the last of them the null class."""

    num_classes: int
    dim: int

    @nn.compact
    def __call__(self, label: Array) -> Float[Array, "b dim"]:
        """[b] integers -> [b, dim] float32; labels above the null class count as the null class."""
        if not jnp.issubdtype(label.dtype, jnp.integer):
            raise ValueError(
                f"label has dtype {label.dtype}: pass integers, 0 to {self.num_classes}."
            )
        rows = self.num_classes + 1
        table = self.param("embedding", nn.initializers.normal(1.0), (rows, self.dim))
        return jnp.take(table, label, axis=0, mode="clip")


TIME_FEATURES: dict[str, Callable[..., Array]] = {"sinusoidal": sinusoidal, "fourier": fourier}
