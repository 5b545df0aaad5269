"""From a flax module to the rest of the house, where a network is a function of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.types import Cond, Net, Params


def net_from_module(module: nn.Module) -> Net:
    """The module as a pure function (params, x, time, cond, *, key=None) -> float32 array.

    Args:
        module: called as module(x, time, cond, train=bool), with an rng named "dropout" if train.

    Returns:
        A Net: a key means training (dropout on), no key means a deterministic pass.
    """

    def net(params: Params, x, time, cond: Cond, *, key=None):
        rngs = None if key is None else {"dropout": key}
        out = module.apply({"params": params}, x, time, cond, train=key is not None, rngs=rngs)
        return jnp.asarray(out, jnp.float32)

    return net


def init_params(
    module: nn.Module, key: jax.Array, x_shape: Sequence[int], cond: Cond | None = None
) -> Params:
    """Fresh parameters, all float32, drawn inside one jit (the forward pass is not run).

    Inside another jit with out_shardings the parameters are made in place on their devices; under
    ``jax.eval_shape`` only their shapes are made.

    Args:
        module: as for ``net_from_module``.
        key: PRNG key.
        x_shape: [b, ...] of the input; b and, for a U-Net, the size do not matter to the result.
        cond: an example of the conditioning; None or {} for none.

    Returns:
        A nested dict of arrays.
    """

    @jax.jit
    def init(key, cond):
        x = jnp.zeros(tuple(x_shape), jnp.float32)
        time = jnp.zeros(x.shape[:1], jnp.float32)
        return module.init(key, x, time, cond, train=False)["params"]

    return init(key, {} if cond is None else cond)


def features_from_module(module: nn.Module, names: Sequence[str]) -> Callable[..., list[Array]]:
    """What some of a network's submodules say, as a function with the arguments of its ``Net``.

    Of a network that is only asked for these, a compiler leaves out all that comes after them.

    Args:
        module: as for ``net_from_module``.
        names: of submodules, such as ``LAYERS`` gives; of one that returns several arrays the first
            counts.

    Returns:
        (params, x, time, cond, *, key=None) -> a float32 array [b, ..., c] for each name.
    """
    wanted = {(name,) for name in names}

    def features(params: Params, x, time, cond: Cond, *, key=None):
        rngs = None if key is None else {"dropout": key}
        _, held = module.apply(
            {"params": params}, x, time, cond, train=key is not None, rngs=rngs,
            capture_intermediates=lambda part, method: method == "__call__" and part.path in wanted,
            mutable=["intermediates"],
        )  # fmt: skip
        kept = [held["intermediates"][name]["__call__"][0] for name in names]
        return [jnp.asarray(jax.tree.leaves(one)[0], jnp.float32) for one in kept]

    return features


class Layers(NamedTuple):
    """Submodules of a network whose outputs say what it sees, in the order that they run.

    Attributes:
        middle: of its deepest state.
        all: of several depths.
    """

    middle: tuple[str, ...]
    all: tuple[str, ...]


def _of_unet(net: Any) -> Layers:
    ways = tuple(f"down_{i}" for i in range(len(net.channel_mults)))
    return Layers(("mid",), (*ways, "mid"))


def _of_transformer(net: Any) -> Layers:
    quarters = sorted({max(net.depth * k // 4 - 1, 0) for k in (1, 2, 3)})
    return Layers((net.blocks[net.depth // 2],), tuple(net.blocks[i] for i in quarters))


def _of_mlp(net: Any) -> Layers:
    norms = tuple(f"norm_{i}" for i in range(net.depth))
    return Layers(norms[-1:], norms)


LAYERS: dict[str, Callable[[Any], Layers]] = {
    "unet": _of_unet,
    "text_unet": _of_unet,
    "dit": _of_transformer,
    "mmdit": _of_transformer,
    "mlp": _of_mlp,
}
"""Network of ``MODELS`` -> its ``Layers``."""
