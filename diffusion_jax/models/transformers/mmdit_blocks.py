"""The layer of MMDiT: two streams, each with its own weights, and one attention over both.

Esser et al. 2024, section 4 and figure 2; the second attention is that of SD3.5-medium (MMDiT-X).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_jax.models import primitives
from diffusion_jax.models.attention import Attend
from diffusion_jax.models.layers import Dense
from diffusion_jax.models.text.blocks import MLP, RMSNorm
from diffusion_jax.models.transformers.dit import modulated
from diffusion_jax.models.unet.blocks import OPEN, Gates

_ZEROS = nn.initializers.zeros_init()
_EPS = 1e-6


class QueryKeyValue(nn.Module):
    """The three projections of a stream, as heads.

    Attributes:
        heads: how many; they must divide the channels.
        qk_norm: name in ``QK_NORMS``.
        dtype: dtype of the computation.
    """

    heads: int
    qk_norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> tuple[Array, Array, Array]:
        """Query, key and value, each [b, n, heads, c / heads]."""
        shape = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        query, key, value = (
            Dense(x.shape[-1], self.dtype, name=name)(x).reshape(shape)
            for name in ("query", "key", "value")
        )
        norm = QK_NORMS[self.qk_norm]
        return norm("query_norm")(query), norm("key_norm")(key), value


class JointLayer(nn.Module):
    """One step of both streams: x + gate·attention(mod(x)), then x + gate·mlp(mod(x)).

    All gates are zero at initialisation.

    Attributes:
        heads: number of heads of each attention.
        last: the text is read, but not updated.
        second: the image's tokens have a second self-attention.
        qk_norm: name in ``QK_NORMS``.
        dtype: dtype of the computation.
        kind: name in ``attention_memory.ATTENTIONS``.
    """

    heads: int
    last: bool = False
    second: bool = False
    qk_norm: str = "none"
    dtype: Any = jnp.float32
    kind: str = "full"

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b m c"],
        text: Float[Array, "b n c"],
        emb: Float[Array, "b 1 d"],
        mask: Bool[Array, "b k"] | None = None,
        gates: Gates = OPEN,
    ) -> tuple[Array, Array]:
        """Apply.

        Args:
            image: [b, m, c].
            text: [b, n, c].
            emb: the activated embedding, of all tokens.
            mask: [b, m + n], False for tokens to ignore; None keeps all.
            gates: of the hooks.

        Returns:
            Both streams; in the last layer the text unchanged.
        """
        of_image = self._modulation("image_modulation", 9 if self.second else 6, image, emb)
        of_text = self._modulation("context_modulation", 2 if self.last else 6, text, emb)
        shift, scale, gate, *of_mlp = of_image[:6]
        seen = self._qkv("image_qkv", modulated(image, shift, scale, _EPS))
        read = self._qkv("context_qkv", modulated(text, of_text[0], of_text[1], _EPS))
        from_image, from_text = self._joint(seen, read, mask, gates.identity)
        h = _added(image, gate, self._out("image_out", from_image))
        if self.second:
            shift, scale, gate = of_image[6:]
            again = self._qkv("second_qkv", modulated(image, shift, scale, _EPS))
            again = Attend(self.kind, name="second_attend")(*again, None, gates.identity)
            h = _added(h, gate, self._out("second_out", again))
        h = _kept(gates, self._mlp("image_mlp", h, of_mlp), image)
        if self.last:
            return h, text
        _, _, gate, *of_mlp = of_text
        t = _added(text, gate, self._out("context_out", from_text))
        return h, _kept(gates, self._mlp("context_mlp", t, of_mlp), text)

    def _joint(self, image, text, mask, identity) -> tuple[Array, Array]:
        """Each stream's attention to all tokens, [b, m, c] and [b, n, c]."""
        m = image[0].shape[1]
        query, key, value = (
            primitives.by_batch(jnp.concatenate(pair, axis=1))
            for pair in zip(image, text, strict=True)
        )
        # The text output of the last layer is not used.
        query = image[0] if self.last else query
        h = Attend(self.kind, name="joint_attend")(query, key, value, mask)
        from_image = h[:, :m]
        if identity is not None:
            own = image[2].reshape(from_image.shape)
            from_image = primitives.gated(identity, from_image, own)
        return from_image, h[:, m:]

    def _modulation(self, name: str, parts: int, x: Array, emb: Array) -> list[Array]:
        """``parts`` vectors [b, 1, c], float32."""
        dense = Dense(parts * x.shape[-1], kernel_init=_ZEROS, name=name)
        return jnp.split(dense(emb), parts, axis=-1)

    def _qkv(self, name: str, x: Array) -> tuple[Array, Array, Array]:
        return QueryKeyValue(self.heads, self.qk_norm, self.dtype, name=name)(x)

    def _out(self, name: str, x: Array) -> Array:
        return Dense(x.shape[-1], self.dtype, name=name)(x)

    def _mlp(self, name: str, x: Array, parts: Sequence[Array]) -> Array:
        shift, scale, gate = parts
        mlp = MLP(4 * x.shape[-1], "gelu_tanh", self.dtype, name=name)
        return _added(x, gate, mlp(modulated(x, shift, scale, _EPS)))


def _added(x: Array, gate: Array, h: Array) -> Array:
    return x + (gate * h).astype(x.dtype)


def _kept(gates: Gates, new: Array, old: Array) -> Array:
    return new if gates.skip is None else primitives.gated(gates.skip, new, old)


def _as_it_is(name: str) -> Callable[[Array], Array]:
    return lambda x: x


def _rms(name: str) -> Callable[[Array], Array]:
    return RMSNorm(_EPS, name=name)


# Each: name of the module -> normalisation of the queries or keys of each head.
QK_NORMS: dict[str, Callable[[str], Callable[[Array], Array]]] = {"none": _as_it_is, "rms": _rms}
