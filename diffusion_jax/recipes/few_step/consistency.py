"""Consistency models: one function of x and its level that is the same all along a trajectory.

All of them are one sentence,

    L = w(now, nxt)·d(f_θ(x_now, now), stopgrad f_target(x_nxt, nxt)),   f(x, clean) = x,     (1)

and differ in which two levels, in the way from x_now to x_nxt, and in the parameters, distance and
weight: the fields of a ``Setting``.

    distillation  a solver's step with a teacher, EMA target (Song et al. 2023, algorithm 2)
    training      the same x0 and noise at both levels, EMA target (their algorithm 3)
    improved      own parameters as target, pseudo-Huber, weight 1/gap (Song & Dhariwal 2024)
    easy          from a diffusion model, nxt moves from clean to now (Geng et al. 2024)

f is the model's x0 at one level, so a diffusion model's parameters are a student's.  Students
sample with ``consistency()``, or with ``jump(gamma=1)``, or in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.bounds import Shown, as_is
from diffusion_jax.core.ema import Rate
from diffusion_jax.core.flow_maps import Boundary, bounded, free
from diffusion_jax.core.losses import Distance, pseudo_huber, squared
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import (
    Cond,
    Context,
    Model,
    NoiseLevel,
    Params,
    Recipe,
    Report,
    Solver,
)
from diffusion_jax.recipes.few_step import pairs
from diffusion_jax.recipes.few_step.pairs import Pairs
from diffusion_jax.recipes.few_step.teachers import Teacher, Tell, initialiser, nothing, still
from diffusion_jax.recipes.inputs import encode_and_drop


class Noised(NamedTuple):
    """Where a trajectory is: x = alpha·x0 + sigma·eps at ``now``, leaves [b, ...]."""

    x0: Array
    eps: Array
    x: Array
    now: NoiseLevel


Way = Callable[[Array, Params, Cond, Noised, NoiseLevel], Array]
"""(key, ``Context.frozen``, cond, noised, nxt) -> x at nxt."""

TargetParams = Callable[[Params, Context], Params]
"""(params, context) -> those of the target in (1)."""


class Setting(NamedTuple):
    """What (1) leaves open.

    Attributes:
        pairs: the two levels.
        way: from x_now to x_nxt.
        target: whose f is the target.
        distance: d.
        weight: (now, nxt) -> w, [b].
    """

    pairs: Pairs
    way: Way
    target: TargetParams
    distance: Distance
    weight: Callable[[NoiseLevel, NoiseLevel], Array]


def consistency(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    setting: Setting,
    boundary: Boundary | None = None,
    tell: Tell = nothing,
    condition_dropout: float = 0.0,
    shown: Shown = as_is,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        setting: such as ``CONSISTENCY`` makes.
        boundary: how f(x, clean) = x is kept; None for ``flow_maps.free()``.  A sampler of this
            student has to wrap its denoiser with it (``flow_maps.bounded``).
        tell: what the student is told beside.
        condition_dropout: share of examples whose condition is emptied.
        shown: of both f where they are compared, such as ``bounds.inside()``.

    Returns:
        A Recipe over params {"net": ...}.
    """
    boundary = boundary or free()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_drop, of_tell, of_pair, of_noise, of_way, of_net = jax.random.split(key, 7)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, of_codec, of_drop
        )
        cond = {**cond, **tell(of_tell, x0.shape[0])}
        now, nxt = setting.pairs(of_pair, x0.shape[0], model.process, context.step)
        eps = jax.random.normal(of_noise, x0.shape, x0.dtype)
        noised = Noised(x0, eps, corrupt(x0, eps, now), now)
        x_nxt = still(setting.way(of_way, context.frozen, cond, noised, nxt))

        def f(params: Params, x: Array, level: NoiseLevel) -> Array:
            # One dropout key: both sides of (1) are the same function.
            return shown(bounded(denoiser(model, params, of_net), boundary)(x, level, cond).x0)

        goal = still(f(still(setting.target(params, context)), x_nxt, nxt))
        each = setting.distance(f(params, noised.x, now), goal)
        return jnp.mean(setting.weight(now, nxt) * each), Report({})

    return Recipe(initialiser(model, init_net, tell), loss)


def same_noise() -> Way:
    """x_nxt of the same x0 and eps: no teacher (Song et al. 2023, theorem 2)."""
    return lambda key, frozen, cond, noised, nxt: corrupt(noised.x0, noised.eps, nxt)


def taught(teacher: Teacher, solver: Solver) -> Way:
    """One step of a solver with the teacher; a solver that needs no memory."""

    def way(key: Array, frozen: Params, cond: Cond, noised: Noised, nxt: NoiseLevel) -> Array:
        state = solver.init(noised.x)
        return solver.step(key, teacher(frozen, cond), noised.x, noised.now, nxt, state)[0]

    return way


def averaged(params: Params, context: Context) -> Params:
    """The target is the moving average of params."""
    del params
    return context.ema


def own(params: Params, context: Context) -> Params:
    """The target is the student itself, without gradient."""
    del context
    return params


def even(now: NoiseLevel, nxt: NoiseLevel) -> Array:
    """w = 1."""
    del nxt
    return jnp.ones_like(now.alpha)


def inverse_gap(now: NoiseLevel, nxt: NoiseLevel) -> Array:
    """w = 1/(s_now - s_nxt), s = sigma/alpha (Song & Dhariwal 2024, section 3.4)."""
    return 1 / (now.sigma / now.alpha - nxt.sigma / nxt.alpha)


def distillation(teacher: Teacher, solver: str = "heun", levels: int = 18) -> Setting:
    """Consistency distillation (Song et al. 2023, algorithm 2; their distance is LPIPS).

    Args:
        teacher: see ``recipes.teachers``.
        solver: a name of ``SOLVERS`` without memory or process, as "ddim" or "heun".
        levels: N.
    """
    way = taught(teacher, SOLVERS[solver]())
    return Setting(pairs.uniform(pairs.constant(levels)), way, averaged, squared(), even)


def training(total: int, first: int = 2, last: int = 150) -> Setting:
    """Consistency training (Song et al. 2023, algorithm 3), with the EMA of ``ema_rate``.

    Args:
        total: training steps.
        first, last: s0 and s1 of the number of levels.
    """
    levels = pairs.uniform(pairs.square_root(total, first, last))
    return Setting(levels, same_noise(), averaged, squared(), even)


def improved(
    total: int,
    first: int = 10,
    last: int = 1280,
    c: float | None = None,
    mean: float = -1.1,
    std: float = 2.0,
) -> Setting:
    """Improved consistency training, iCT (Song & Dhariwal 2024, table 1).

    Args:
        total: training steps.
        first, last: s0 and s1 of the number of levels, doubled in stages.
        c: of the pseudo-Huber distance; None for the paper's.
        mean, std: of the proposal of log(sigma/alpha).
    """
    levels = pairs.log_normal(pairs.doubling(total, first, last), mean, std)
    return Setting(levels, same_noise(), own, pseudo_huber(c), inverse_gap)


def easy(
    stage: int,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    mean: float = -1.1,
    std: float = 2.0,
    c: float = 0.0,
) -> Setting:
    """Easy consistency tuning, ECT (Geng et al. 2024): start from a diffusion model's parameters.

    Args:
        stage: training steps after which nxt moves nearer to now.
        q, k, b, mean, std: see ``pairs.easing``.
        c: of the pseudo-Huber distance; 0 is the plain norm.
    """
    levels = pairs.easing(stage, q, k, b, mean, std)
    return Setting(levels, same_noise(), own, pseudo_huber(c), inverse_gap)


def ema_rate(count: pairs.Count, first: int = 2, decay: float = 0.9) -> Rate:
    """1 - μ(k), μ(k) = exp(s0·log μ0/N(k)): for ``ema.averaged`` (Song et al. 2023, appendix C)."""
    return lambda k: -jnp.expm1(first * math.log(decay) / count(k)).astype(jnp.float32)


CONSISTENCY: dict[str, Callable[..., Setting]] = {
    "distillation": distillation,
    "training": training,
    "improved": improved,
    "easy": easy,
}
