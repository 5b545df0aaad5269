"""CLIP's text transformer (Radford et al. 2021, section 2.4), of OpenAI and of OpenCLIP.

Stable Diffusion 1 reads the normed last states of ViT-L/14's; SD 2 the normed second to last ones
of OpenCLIP's ViT-H/14; SDXL the second to last ones, before the norm, of ViT-L/14's and of
OpenCLIP's ViT-bigG/14, and the latter's pooled projection (Podell et al. 2023, section 2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.models.layers import LayerNorm
from diffusion_jax.models.text.blocks import (
    Embedding,
    Linear,
    PreNormLayer,
    check_length,
)


class TextStates(NamedTuple):
    """The states of each token after each layer.

    Under jit only the states that are used are computed.

    Attributes:
        hidden: layers + 1 arrays [b, n, d]: the embeddings, then the output of each layer.
        normed: the final norm of each array of ``hidden``.
        pooled: [b, p], the last normed state at the end of the text, projected where the network
            has a projection.
    """

    hidden: tuple[Array, ...]
    normed: tuple[Array, ...]
    pooled: Array

    @property
    def last(self) -> Array:
        """[b, n, d] after the last layer and the final norm."""
        return self.normed[-1]


class ClipText(nn.Module):
    """Tokens -> states; each token attends to itself and earlier ones.

    Attributes:
        vocab: rows of the token table.
        width: width of the states.
        layers: number of layers.
        heads: number of heads of each attention.
        mlp_width: width of the middle of each MLP.
        positions: largest number of tokens.
        activation: name in ``blocks.ACTIVATIONS``: quick_gelu for OpenAI's, gelu for OpenCLIP's.
        eps: epsilon of the norms.
        projection: width of the pooled output; 0 for no projection.
        eos: end-of-text token, whose first position is pooled; None for the position of the largest
            id, which is the same unless tokens were added to the vocabulary.
        dtype: dtype of the computation and the states.
    """

    vocab: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    positions: int = 77
    activation: str = "quick_gelu"
    eps: float = 1e-5
    projection: int = 0
    eos: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b n"]) -> TextStates:
        """Encode.

        Args:
            ids: [b, n] integers, n at most ``positions``, padded as in training; padding
                is not masked.

        Returns:
            The states, in ``dtype``.

        Raises:
            ValueError: if n is above ``positions``.
        """
        n = ids.shape[1]
        check_length(n, self.positions)
        x = Embedding(self.vocab, self.width, self.dtype, name="token")(ids)
        x = x + Embedding(self.positions, self.width, self.dtype, name="position")(jnp.arange(n))
        causal = jnp.tril(jnp.ones((n, n), bool))
        hidden = [x]
        for i in range(self.layers):
            layer = PreNormLayer(
                self.heads,
                self.mlp_width,
                self.activation,
                self.eps,
                self.dtype,
                name=f"layer_{i}",
            )
            hidden.append(layer(hidden[-1], causal))
        norm = LayerNorm(self.eps, name="norm")
        normed = tuple(norm(x) for x in hidden)
        pooled = jnp.take_along_axis(normed[-1], end_of_text(ids, self.eos)[:, None, None], axis=1)
        pooled = pooled[:, 0]
        if self.projection:
            pooled = Linear(self.projection, self.dtype, name="projection")(pooled)
        return TextStates(tuple(hidden), normed, pooled)


def end_of_text(ids: Int[Array, "b n"], eos: int | None) -> Int[Array, " b"]:
    """The end of each text: the first position of eos, or of the largest id if eos is None.

    A text without eos counts as ending at its first token.
    """
    return jnp.argmax(ids if eos is None else ids == eos, axis=-1)


def last(states: TextStates, skip: int = 0) -> Float[Array, "b n d"]:
    """The normed states, ``skip`` layers before the last: SD 1."""
    return states.normed[-1 - skip]


def penultimate(states: TextStates, skip: int = 0) -> Float[Array, "b n d"]:
    """The states before the norm, ``skip`` layers before the second to last: SDXL."""
    return states.hidden[-2 - skip]


def penultimate_normed(states: TextStates, skip: int = 0) -> Float[Array, "b n d"]:
    """The normed states, ``skip`` layers before the second to last: SD 2, of all 24 layers."""
    return states.normed[-2 - skip]


READS: dict[str, Callable[..., Array]] = {
    "last": last,
    "penultimate": penultimate,
    "penultimate_normed": penultimate_normed,
}
"""The states that a diffusion model uses: (states, skip=0) -> [b, n, d]."""
