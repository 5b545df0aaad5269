"""Pictures as prompts: decoupled cross-attention to image tokens (IP-Adapter).

Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion
Models", section 3.2:

    out = Attention(q, k, v) + scale·Attention(q, k', v'),   k' = c·W_k', v' = c·W_v',           (1)

with the network's own queries q and, of each attention, new W_k' and W_v' for the image's tokens c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.types import Cond, Net, Params, like
from diffusion_jax.models.attention import attend
from diffusion_jax.models.attention_seam import AttentionCall, Change, with_attention
from diffusion_jax.models.primitives import by_batch, dense

CROSS_ATTENTION = r"cross_attention/"
"""Attention to a text, in networks that have one for it."""

TOKENS, SCALE = "image_tokens", "image_scale"
"""The keys of cond."""


def with_image_tokens(net: Net, select: str = CROSS_ATTENTION) -> Net:
    """A network and its image-prompt adapter as one Net; of scale 0 it is the network, bit for bit.

    Beside a ControlNet, wrap the U-Net first: ``with_control(with_image_tokens(net), controls)``.

    Args:
        net: the network; not jitted by itself.
        select: regex of the attentions that read the image: in SDXL's U-Net, where style and
            layout are told to different blocks, perhaps those of one block alone.  The parameters
            may have more than these.  In MMDiT's joint attention the text's tokens ask as well.

    Returns:
        A Net with params {"net": ..., "image_tokens": see ``init_image_tokens``}, whose cond also
        has "image_tokens" [b, n, d], and may have "image_scale", [] or [b] (1 without).

    Raises:
        ValueError: from a call whose cond has no tokens, or tokens of another shape; if an
            attention has no parameters; or if ``select`` matches none.
    """
    change = lambda params, cond: _decoupled(params[TOKENS], cond)
    bare = lambda params, x, time, cond, *, key=None: net(
        params["net"], x, time, {k: v for k, v in cond.items() if k not in (TOKENS, SCALE)}, key=key
    )
    return with_attention(bare, select, change)


def init_image_tokens(key: Array, calls: Mapping[str, AttentionCall], width: int) -> Params:
    """Fresh parameters, float32: {path: {"key": {"kernel": [d, heads·dim]}, "value": the same}}.

    Args:
        key: PRNG key.
        calls: the attentions that read the image, see ``attention_calls``.
        width: d, of a token.

    Raises:
        ValueError: for blocks that are scanned, whose attentions have one path together.
    """
    if scanned := sorted(path for path in calls if re.search(r"(^|/)blocks_\d+_\d+/", path)):
        raise ValueError(
            f"{scanned[0]} is the attention of several scanned blocks, each of which needs its own "
            "parameters: build the network with scan_blocks=False."
        )
    draw = nn.initializers.lecun_normal()
    keys = iter(jax.random.split(key, 2 * len(calls)))
    kernel = lambda call: {
        "kernel": draw(next(keys), (width, call.query.shape[-2] * call.query.shape[-1]))
    }
    return {path: {"key": kernel(c), "value": kernel(c)} for path, c in calls.items()}


def copy_text_kernels(net_params: Params, image_params: Params) -> Params:
    """``image_params`` with the network's own kernels of keys and values wherever the shape is one.

    As the authors start: an image token is at first read as a token of the text.  Attentions whose
    text is of another width than the tokens keep what they have.
    """

    def copied(path: str, own: dict[str, Any]) -> dict[str, Any]:
        part: Any = net_params
        for name in path.split("/")[:-1]:
            part = part[name]
        fits = lambda name: jnp.shape(part[name]["kernel"]) == jnp.shape(own[name]["kernel"])
        kernels = {k: {"kernel": part[k]["kernel"]} for k in own if k in part and fits(k)}
        return {**own, **kernels}

    return {path: copied(path, own) for path, own in image_params.items()}


def _decoupled(params: Params, cond: Cond) -> Change:
    tokens, scale = _tokens(cond), cond.get(SCALE, 1.0)

    def change(call: AttentionCall, rest) -> Array:
        if call.path not in params:
            raise ValueError(
                f"The adapter has no parameters for {call.path}: it has {len(params)}, such as "
                f"{next(iter(params), 'none')}; select only attentions that it was made for."
            )
        own = params[call.path]
        b, _, heads, dim = call.query.shape
        if tokens.shape[0] != b:
            raise ValueError(
                f"cond['{TOKENS}'] is of {tokens.shape[0]} examples, x of {b}: give as many."
            )
        key, value = (_projected(tokens, own[name]["kernel"], call) for name in ("key", "value"))
        heads_of = lambda z: z.reshape(b, -1, heads, dim)
        added = attend(call.query, heads_of(key), heads_of(value), call.attention)
        out = rest(call)
        return out + like(jnp.asarray(scale, out.dtype), out) * added

    return change


def _tokens(cond: Cond) -> Array:
    if TOKENS not in cond:
        raise ValueError(
            f"cond lacks '{TOKENS}' [b, n, d], which this adapter reads: add them, of any values "
            f"with '{SCALE}' 0 for no picture, or take the network without the adapter."
        )
    tokens = jnp.asarray(cond[TOKENS])
    if tokens.ndim != 3:
        raise ValueError(f"cond['{TOKENS}'] has shape {tokens.shape}: give [b, n, d].")
    return tokens


def _projected(tokens: Array, kernel: Array, call: AttentionCall) -> Array:
    """In the dtype of the network's own keys."""
    if tokens.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"cond['{TOKENS}'] has {tokens.shape[-1]} channels, the adapter at {call.path} reads "
            f"{kernel.shape[0]}: give the tokens that it was trained with."
        )
    dtype = call.key.dtype
    return by_batch(dense(tokens.astype(dtype), jnp.asarray(kernel).astype(dtype)))
