"""From a flax module to the rest of the house, where a network is a function of its parameters."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

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
