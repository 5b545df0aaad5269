"""The seam of attention: change what a network's attentions do, without a flag inside of it.

A Net runs within ``flax.linen.intercept_methods``, which gives each call of ``attention.Attend`` to
a function of ours in place of the module.  That function sees queries, keys and values of every
attention under the path of its module, such as

    down_0/block_0/transformer/layer_0/cross_attention/attend        (``TextUNet``)
    down_1/block_0/attention/attend                                  (``UNet``)
    layer_0/attention/attend                                         (``DiT``)
    layer_0/joint_attend, layer_0/second_attend                      (``MMDiT``)

and may add to the output (image tokens), to keys and values (reference attention) or change the map
(prompt-to-prompt).  Interception happens while a program is traced, so it costs nothing afterwards,
and jit, derivatives and rematerialisation go through it; but a Net that was jitted by itself may be
traced already, so jit from outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.types import Cond, Net, Params
from diffusion_jax.models.attention import Attend


class AttentionCall(NamedTuple):
    """What one attention is asked for.

    Attributes:
        path: of the module, its parts joined by "/".
        attention: name in ``attention_memory.ATTENTIONS``.
        query: [b, m, heads, dim].
        key: [b, n, heads, dim].
        value: [b, n, heads, dim].
        mask: bool [b, n], False for keys that nobody may see; None keeps all.
        identity: [b], the gates of guidance by the identity map; None for none.
    """

    path: str
    attention: str
    query: Any
    key: Any
    value: Any
    mask: Any = None
    identity: Any = None


Attention = Callable[[AttentionCall], Array]
"""An attention: call -> [b, m, heads·dim], before the output projection."""

Change = Callable[[AttentionCall, Attention], Array]
"""(call, the attention as it would be without this change) -> the output, [b, m, heads·dim]."""


def with_attention(net: Net, select: str, change: Callable[[Params, Cond], Change]) -> Net:
    """A Net some of whose attentions are changed.

    Wrappers nest: the one nearest to the network is what the next one gets as "without".

    Args:
        net: the network; not jitted by itself.
        select: regex that is searched in the path of each attention, "" for all of them; those that
            it does not match stay as they are.
        change: (params, cond) -> the Change of this call.

    Returns:
        A Net with params and cond of ``net``'s.

    Raises:
        ValueError: from a call in which no attention matched.
    """

    def changed(params: Params, x, time, cond: Cond, *, key=None):
        own, seen = change(params, cond), set()

        def listen(call: AttentionCall, rest: Attention) -> Array:
            if not re.search(select, call.path):
                return rest(call)
            seen.add(call.path)
            return own(call, rest)

        with _intercepted(listen):
            out = net(params, x, time, cond, key=key)
        if not seen:
            raise ValueError(
                f"No attention of the network was seen whose path has {select!r}: see "
                "attention_calls for the paths, and jit the whole, not the network inside of it."
            )
        return out

    return changed


def attention_calls(
    net: Net, params: Params, x_shape: Sequence[int], cond: Cond, select: str = ""
) -> dict[str, AttentionCall]:
    """The attentions of a network in the order that they run, their arrays as shapes and dtypes.

    The network is traced and not run, so params may be shapes too.

    Args:
        net: the network; not jitted by itself.
        params: its parameters, or ``jax.ShapeDtypeStruct`` of each.
        x_shape: [b, ...] of the input, as the network may be given it.
        cond: an example of the conditioning, arrays or shapes.
        select: regex that is searched in the path, "" for all.

    Returns:
        path -> what it is asked for; of a path that is called several times the last call.
    """
    found: dict[str, AttentionCall] = {}

    def note(call: AttentionCall, rest: Attention) -> Array:
        if re.search(select, call.path):
            shape_of = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            found[call.path] = call._replace(
                **{name: jax.tree.map(shape_of, getattr(call, name)) for name in call._fields[2:]}
            )
        return rest(call)

    x = jax.ShapeDtypeStruct(tuple(x_shape), jnp.float32)
    time = jax.ShapeDtypeStruct(x.shape[:1], jnp.float32)
    with _intercepted(note):
        # A fresh function, as eval_shape remembers those that it has traced.
        jax.eval_shape(lambda *arguments: net(*arguments), params, x, time, cond)
    return found


def _intercepted(listen: Callable[[AttentionCall, Attention], Array]) -> Any:
    """The context within which ``listen`` answers for each ``Attend``."""

    def intercept(next_fun, args, kwargs, context):
        module = context.module
        if not isinstance(module, Attend) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        call = AttentionCall("/".join(module.path), module.attention, *args, **kwargs)
        return listen(call, lambda call: next_fun(*call[2:]))

    return nn.intercept_methods(intercept)
