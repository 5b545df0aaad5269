"""Pictures that a network reads beside x: arrays of the condition, appended to its channels."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from diffusion_jax.core.types import Cond, Net, Params


def with_concat(net: Net, keys: Sequence[str]) -> Net:
    """A Net that reads cond[key] as further channels of x, in the order of ``keys``.

    They are appended as they are, after x was scaled for its level: so do the networks for
    inpainting (mask, then the latent of what is kept), for edits by instruction, for larger
    pictures and for videos from a picture.  Beside a ControlNet, which reads x alone, wrap the
    U-Net first: ``with_control(with_concat(net, keys), controls)``.

    Args:
        net: which takes x with that many more channels.
        keys: of cond, each [b, ..., c'] with x's b and ...; the network does not see them
            otherwise.

    Returns:
        A Net with ``net``'s params.

    Raises:
        ValueError: from a call whose cond lacks a key, or has one of another size than x.
    """
    keys = tuple(keys)

    def concatenated(params: Params, x, time, cond: Cond, *, key=None):
        if missing := [name for name in keys if name not in cond]:
            raise ValueError(
                f"cond lacks {missing}, which this network reads as channels beside x: add them."
            )
        parts = [jnp.asarray(cond[name]) for name in keys]
        for name, part in zip(keys, parts, strict=True):
            if part.ndim != x.ndim or part.shape[:-1] != x.shape[:-1]:
                wanted = ", ".join(map(str, (*x.shape[:-1], "channels")))
                raise ValueError(
                    f"cond[{name!r}] has shape {part.shape}: beside x of {x.shape} give ({wanted})."
                )
        wider = jnp.concatenate([x, *(part.astype(x.dtype) for part in parts)], axis=-1)
        rest = {name: value for name, value in cond.items() if name not in keys}
        return net(params, wider, time, rest, key=key)

    return concatenated


def widen_input(params: Params, count: int, layer: str = "conv_in") -> Params:
    """Parameters of a network that reads ``count`` more channels, after its own, and ignores them.

    So a network for inpainting or for edits starts from one that only draws (Brooks et al. 2023,
    section 3.2): its first layer has zeros for the new channels.

    Args:
        params: of the network, without patches folded into channels.
        count: of new channels.
        layer: its first one: "conv_in" of U-Nets, "patches" of transformers.
    """
    kernel = jnp.asarray(params[layer]["kernel"])
    zeros = jnp.zeros((*kernel.shape[:-2], count, kernel.shape[-1]), kernel.dtype)
    wider = jnp.concatenate([kernel, zeros], axis=-2)
    return {**params, layer: {**params[layer], "kernel": wider}}
