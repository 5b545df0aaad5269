"""Sampling: one ``lax.scan`` of a solver's step over a grid of levels.

A grid's leaves are [n], or [n, b, f...] where examples, frames or pixels have levels of their own:
what then stays at its level over a step stays as it is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.core.process import clean
from diffusion_jax.core.solvers.steps import follow
from diffusion_jax.core.types import Denoise, NoiseLevel, Prediction, Solver, like


def prior(key: Key[Array, ""], shape: tuple[int, ...], levels: NoiseLevel) -> Float[Array, "b ..."]:
    """x_T at the first level of a grid: N(0, alpha² + sigma²), as unit-variance data would give.

    On the variance preserving path this is N(0, I); the data's own mean is taken as 0.
    """
    first = jax.tree.map(lambda leaf: leaf[0], levels)
    noise = jax.random.normal(key, shape)
    return like(STARTS["prior"](first), noise) * noise


STARTS: dict[str, Callable[[NoiseLevel], Array]] = {
    "prior": lambda first: jnp.sqrt(first.alpha**2 + first.sigma**2),
    "noise": lambda first: first.sigma,
}
"""First level of a grid -> deviation of x there: of unit-variance data too, or the noise's alone.

The second is that of k-diffusion, y = x/alpha ~ N(0, s²), and in few steps it shows.
"""


def walk(
    key: Key[Array, ""],
    solver: Solver,
    denoise: Denoise,
    x: Float[Array, "b ..."],
    levels: NoiseLevel,
    state: Any = None,
) -> tuple[Float[Array, "b ..."], Any]:
    """Take x from levels[0] to levels[-1], through any list of levels, up or down.

    Args:
        key: randomness of stochastic solvers.
        solver: see ``core.solvers``.
        denoise: the (guided) model.
        x: [b, ...] at levels[0].
        levels: [n] or [n, b, f...], n >= 1; traced, so another grid of this length compiles
            nothing.
        state: of the solver, to go on from an earlier walk; None starts anew.

    Returns:
        (x at levels[-1], [b, ...] of x's dtype; the solver's state).
    """
    now, nxt, _ = pairs(levels)
    keys = jax.random.split(key, now.t.shape[0])

    def body(carry, inputs):
        (x, state), (key, now, nxt) = carry, inputs
        moved, state = solver.step(key, denoise, x, now, nxt, state)
        return (_stay(x, moved.astype(x.dtype), now, nxt), state), None

    start = (x, _first_state(solver, denoise, x, levels) if state is None else state)
    return jax.lax.scan(body, start, (keys, now, nxt))[0]


def sample(
    key: Key[Array, ""],
    solver: Solver,
    denoise: Denoise,
    x: Float[Array, "b ..."],
    levels: NoiseLevel,
    end: NoiseLevel | None = None,
    stepped: bool = False,
) -> Float[Array, "b ..."]:
    """Walk x from levels[0] to the clean level.

    n levels are n - 1 steps of the solver and then the step to sigma = 0, which is the x0 that
    ``Solver.finish`` predicts: n network evaluations for a solver of one evaluation a step.

    Args:
        key, solver, denoise, x, levels: see ``walk``; x such as ``prior`` gives.
        end: a level to end at along the last prediction, in place of the clean one; diffusers ends
            at the table's first (its ``set_alpha_to_one=False``).
        stepped: whether the last step too is the solver's, with all that it remembers.

    Returns:
        The sample, [b, ...] of x's dtype.
    """
    if stepped:
        ends = clean(pairs(levels)[2]) if end is None else end
        whole = jax.tree.map(lambda leaf, one: jnp.append(leaf, one[None], 0), levels, ends)
        return walk(key, solver, denoise, x, whole)[0]
    x, _ = walk(key, solver, denoise, x, levels)
    last = pairs(levels)[2]
    prediction = solver.finish(_last_key(key), denoise, x, last)
    if end is None:
        return _cleaned(x, prediction, last)
    return _stay(x, follow(prediction, end).astype(x.dtype), last, end)


def trajectory(
    key: Key[Array, ""],
    solver: Solver,
    denoise: Denoise,
    x: Float[Array, "b ..."],
    levels: NoiseLevel,
    points: Int[Array, "m"] | Sequence[int] | None = None,
) -> tuple[Float[Array, "m b ..."], Float[Array, "m b ..."]]:
    """As ``sample``, and keep the trajectory: the same key gives the same sample.

    x0 is predicted once more at each level; where the solver's first evaluation is the same, the
    compiler merges them.

    Args:
        key, solver, denoise, x, levels: see ``walk``.
        points: which of the n levels to keep, increasing; None for all.  Memory is that of m.

    Returns:
        (x_t, predicted x0), each [m, b, ...] of x's dtype; at the last level the predicted x0 is
        the sample.
    """
    now, nxt, last = pairs(levels)
    n = levels.t.shape[0]
    points = jnp.arange(n) if points is None else jnp.asarray(points)
    keys = jax.random.split(key, n - 1)

    def keep(kept, i, x, prediction, level):
        slot = jnp.where(points == i, jnp.arange(points.shape[0]), points.shape[0])
        put = lambda buffer, value: buffer.at[slot].set(value, mode="drop")
        return put(kept[0], x), put(kept[1], _cleaned(x, prediction, level))

    def body(carry, inputs):
        (x, state, kept), (i, key, now, nxt) = carry, inputs
        kept = keep(kept, i, x, denoise(x, now), now)
        moved, state = solver.step(key, denoise, x, now, nxt, state)
        return (_stay(x, moved.astype(x.dtype), now, nxt), state, kept), None

    room = jnp.zeros((points.shape[0], *x.shape), x.dtype)
    start = (x, _first_state(solver, denoise, x, levels), (room, room))
    (x, _, kept), _ = jax.lax.scan(body, start, (jnp.arange(n - 1), keys, now, nxt))
    return keep(kept, n - 1, x, solver.finish(_last_key(key), denoise, x, last), last)


def pairs(levels: NoiseLevel) -> tuple[NoiseLevel, NoiseLevel, NoiseLevel]:
    """(levels[:-1], levels[1:], levels[-1]) of a grid."""
    take = lambda index: jax.tree.map(lambda leaf: leaf[index], levels)
    return take(slice(None, -1)), take(slice(1, None)), take(-1)


def _stay(x: Array, moved: Array, now: NoiseLevel, nxt: NoiseLevel) -> Array:
    """``moved``, but x where a level of its own does not change."""
    if now.log_snr.ndim == 0:
        return moved
    return jnp.where(like(now.log_snr == nxt.log_snr, x), x, moved)


def _cleaned(x: Array, prediction: Prediction, level: NoiseLevel) -> Array:
    """The predicted x0; data that are clean by a level of their own are left as they are."""
    return _stay(x, prediction.x0.astype(x.dtype), level, clean(level))


def _last_key(key: Array) -> Array:
    """Of the step to the clean level: no step's own, and the same for grids of any length."""
    return jax.random.fold_in(key, np.uint32(2**32 - 1))


def _first_state(solver: Solver, denoise: Denoise, x: Array, levels: NoiseLevel) -> Any:
    """The solver's state, with room for levels of the grid's shape where it remembers levels."""
    state = solver.init(x)
    if levels.log_snr.ndim == 1:
        return state
    first = jax.tree.map(lambda leaf: leaf[0], levels)
    key = jax.random.key(0)
    after = jax.eval_shape(lambda: solver.step(key, denoise, x, first, first, state))[1]

    def widen(leaf: Array, target: jax.ShapeDtypeStruct) -> Array:
        more = (1,) * (len(target.shape) - leaf.ndim)
        return jnp.broadcast_to(leaf.reshape(leaf.shape + more), target.shape)

    return jax.tree.map(widen, state, after)


__all__ = ["STARTS", "pairs", "prior", "sample", "trajectory", "walk"]
