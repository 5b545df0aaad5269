"""Low-rank adaptation (Hu et al. 2022, section 4.1): train thin factors beside frozen weights.

    W' = W + scale·(alpha/rank)·down·up                                                       (1)

Of a dense kernel [m, n], down is [m, r] and up [r, n].  Of a convolution's [kh, kw, m, n], down is
a convolution to r channels, [kh, kw, m, r], and up a 1x1 convolution, [r, n]: (1) holds as it is
written.  Factors are a pytree {path of the kernel: {"down", "up"}}, paths as in "a/b/kernel".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax.core.types import Params, Recipe

Factors = dict[str, dict[str, Any]]
"""Path of a kernel -> {"down": [..., m, r], "up": [r, n]}."""

Change = Callable[[Any], Any]
"""A weight in float32 -> its difference, float32 of the same shape."""

Alpha = float | Mapping[str, float] | None
"""Of all kernels, or of each by path; None, or an absent path, for the rank: a factor of 1."""

ATTENTION = r"(attention|_qkv)/(query|key|value|out)/kernel$|(image|context|second)_out/kernel$"
"""The projections of attention, which most adapters of Stable Diffusion change; of MMDiT those of
each stream."""


class Adapter(NamedTuple):
    """One adaptation of a network: scale·(alpha/rank)·down·up for each of its kernels."""

    factors: Factors
    scale: Any = 1.0
    alpha: Alpha = None


def init(key: Array, params: Params, rank: int, targets: str = ATTENTION) -> Factors:
    """Factors that change nothing yet: down ~ N(0, 1/m) over its m inputs, up 0; float32.

    Args:
        key: key of down.
        params: the weights, or their shapes.
        rank: r, at least 1; above the smaller side of a kernel it adds nothing.
        targets: regex searched in the paths of params.

    Raises:
        ValueError: for a rank below 1, targets that no path matches, or that match a leaf which
            is neither a dense kernel nor a convolution's.
    """
    if rank < 1:
        raise ValueError(f"config.tuning: lora(rank={rank!r}) must be of rank 1 at least")
    chosen = {p: x.shape for p, x in by_path(params).items() if re.search(targets, p)}
    if not chosen:
        example = next(iter(by_path(params)), "none")
        raise ValueError(
            f"config.tuning: lora(targets={targets!r}) matches no parameter; their paths are such "
            f"as {example!r}"
        )
    if odd := [p for p, shape in chosen.items() if len(shape) not in (2, 4)]:
        raise ValueError(
            f"config.tuning: lora(targets={targets!r}) matches {odd[0]!r}, which is no kernel of a "
            "dense layer or convolution; end the pattern with 'kernel$'"
        )
    keys = jax.random.split(key, len(chosen))
    factors = {}
    for k, (path, (*inputs, n)) in zip(keys, sorted(chosen.items()), strict=True):
        fan_in = math.prod(inputs)
        down = jax.random.normal(k, (*inputs, rank), jnp.float32) / fan_in**0.5
        factors[path] = {"down": down, "up": jnp.zeros((rank, n), jnp.float32)}
    return factors


def merged(params: Params, factors: Factors, scale: Any = 1.0, alpha: Alpha = None) -> Params:
    """Equation (1).

    Args:
        params: the weights; arithmetic is float32, each result in its weight's dtype.
        factors: for some of them.
        scale: [], may be traced.
        alpha: see ``Alpha``.

    Raises:
        ValueError: for factors of a path that params lack, or of another shape.
    """
    return merged_all(params, [Adapter(factors, scale, alpha)])


def unmerged(params: Params, factors: Factors, scale: Any = 1.0, alpha: Alpha = None) -> Params:
    """The inverse of ``merged``, up to rounding in the weights' dtype."""
    return merged_all(params, [Adapter(factors, -scale, alpha)])


def merged_all(params: Params, adapters: Sequence[Adapter]) -> Params:
    """``merged`` for the sum of several adapters, rounded to the weights' dtype once.

    NumPy weights and factors are merged by NumPy, and stay on the host.
    """
    changes: dict[str, list[Change]] = {}
    for adapter in adapters:
        for path, factors in adapter.factors.items():
            factor = adapter.scale * _ratio(adapter.alpha, path, factors)
            change = lambda weight, pair=factors, factor=factor: factor * _product(pair)
            changes.setdefault(path, []).append(change)
    return changed(params, changes)


def changed(params: Params, changes: Mapping[str, Sequence[Change]]) -> Params:
    """Weights W + the sum of their changes of W, so that no order counts; float32, rounded once.

    Args:
        params: the weights.
        changes: by path, for some of them.

    Raises:
        ValueError: for a change of a path that params lack, or of another shape.
    """
    known = by_path(params)
    for path in sorted(changes):
        if path not in known:
            raise ValueError(f"the LoRA adapts {path!r}, which the network has not")

    def change_one(path, weight):
        name = path_name(path)
        if not changes.get(name):
            return weight
        base = total = weight.astype(np.float32)
        for change in changes[name]:
            difference = change(base)
            if difference.shape != weight.shape:
                raise ValueError(
                    f"the LoRA of {name!r} has the shape {difference.shape}, the weight "
                    f"{weight.shape}"
                )
            total = total + difference
        return total.astype(weight.dtype)

    return jax.tree_util.tree_map_with_path(change_one, params)


def adapted(
    recipe: Recipe, rank: int, targets: str = ATTENTION, alpha: float | None = None
) -> Recipe:
    """Any recipe, but only LoRA factors are trained.

    Its params are {"lora": Factors}; the weights that they adapt, which are the params of the given
    recipe, are read from ``Context.frozen["base"]``, and get no gradient.

    Args:
        recipe: over the whole weights.
        rank, targets: as for ``init``.
        alpha: see ``Alpha``.
    """

    def start(key, batch):
        return {"lora": init(key, jax.eval_shape(recipe.init, key, batch), rank, targets)}

    def loss(params, context, batch, key):
        base = jax.lax.stop_gradient(context.frozen["base"])
        base = _widened(base, params["lora"])
        merge_all = lambda own: merged(base, own["lora"], 1.0, alpha)
        ema = context.ema if context.ema is None else merge_all(context.ema)
        return recipe.loss(merge_all(params), context._replace(ema=ema), batch, key)

    return Recipe(start, loss, recipe.carry)


def _widened(params: Params, factors: Factors) -> Params:
    """Adapted kernels as float32: half precision would round small changes of them away."""
    wide = lambda path, x: x.astype(np.float32) if path_name(path) in factors else x
    return jax.tree_util.tree_map_with_path(wide, params)


def by_path(params: Params) -> dict[str, Any]:
    """Path -> leaf of a pytree of dicts and lists, such as "mid/res_0/conv_0/kernel"."""
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}


def path_name(path: Any) -> str:
    """A key path of ``jax.tree_util`` as text."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _product(factors: Mapping[str, Any]) -> Any:
    down, up = (factors[side].astype(np.float32) for side in ("down", "up"))
    if isinstance(down, np.ndarray):  # of a file: its weights wait on the host too
        return np.matmul(down, up)
    return jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)


def _ratio(alpha: Alpha, path: str, factors: Mapping[str, Any]) -> float:
    rank = factors["up"].shape[0]
    kernel_alpha = alpha.get(path) if isinstance(alpha, Mapping) else alpha
    return 1.0 if kernel_alpha is None else kernel_alpha / rank
