"""Consistency models: a function of x and its level that is constant along a trajectory.

All of them minimise one loss,

    L = w(now, nxt)·d(f_θ(x_now, now), stopgrad f_target(x_nxt, nxt)),   f(x, clean) = x,     (1)

and differ in the two levels, the step from x_now to x_nxt, the target's parameters, the distance
and the weight: the fields of a ``Setting``.

    distillation  a solver's step with a teacher, EMA target (Song et al. 2023, algorithm 2)
    training      the same x0 and noise at both levels, EMA target (their algorithm 3)
    improved      online parameters as target, pseudo-Huber, weight 1/gap (Song & Dhariwal 2024)
    easy          from a diffusion model, nxt moves from clean to now (Geng et al. 2024)

f is the model's x0 at one level, so a student can starts from a diffusion model's parameters.
Students sample with ``consistency()``, with ``jump(gamma=1)``, or in one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.bounds import Clip, no_clip
from diffusion_jax.core.ema import Ema, Rate, averaged
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
from diffusion_jax.recipes.few_step import level_pairs
from diffusion_jax.recipes.few_step.level_pairs import LevelPairs
from diffusion_jax.recipes.few_step.teachers import (
    ExtraCond,
    Teacher,
    initialiser,
    no_extra_cond,
    stop_gradient,
)
from diffusion_jax.recipes.inputs import encode_and_drop


class Noised(NamedTuple):
    """A point of a trajectory: x = alpha·x0 + sigma·eps at level ``now``, leaves [b, ...]."""

    x0: Array
    eps: Array
    x: Array
    now: NoiseLevel


Transition = Callable[[Array, Params, Cond, Noised, NoiseLevel], Array]
"""(key, ``Context.frozen``, cond, noised, nxt) -> x at nxt."""

TargetParams = Callable[[Params, Context], Params]
"""(params, context) -> the parameters of the target in (1)."""


class Setting(NamedTuple):
    """What (1) leaves open, one field for each choice.

    Attributes:
        levels: how the two levels are drawn.
        transition: the step from x_now to x_nxt.
        target: the parameters of the target f.
        distance: d.
        weight: (now, nxt) -> w, [b].
    """

    levels: LevelPairs
    transition: Transition
    target: TargetParams
    distance: Distance
    weight: Callable[[NoiseLevel, NoiseLevel], Array]


def consistency(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    setting: Setting,
    boundary: Boundary | None = None,
    extra_cond: ExtraCond = no_extra_cond,
    condition_dropout: float = 0.0,
    clip: Clip = no_clip,
) -> Recipe:
    """Equation (1).

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        setting: such as those of ``CONSISTENCY``.
        boundary: how f(x, clean) = x is kept; None for ``flow_maps.free()``.  A sampler of this
            student has to wrap its denoiser with it (``flow_maps.bounded``).
        extra_cond: what the student is conditioned on beside the batch's condition.
        condition_dropout: share of examples that get the null condition.
        clip: clipping of both f before the comparison, such as ``bounds.clip_to()``.

    Returns:
        A Recipe over params {"net": ...}.
    """
    boundary = boundary or free()

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, extra_key, levels_key, noise_key, transition_key, net_key = (
            jax.random.split(key, 7)
        )
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, codec_key, drop_key
        )
        cond = {**cond, **extra_cond(extra_key, x0.shape[0])}
        now, nxt = setting.levels(levels_key, x0.shape[0], model.process, context.step)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        noised = Noised(x0, eps, corrupt(x0, eps, now), now)
        x_nxt = stop_gradient(setting.transition(transition_key, context.frozen, cond, noised, nxt))

        def f(params: Params, x: Array, level: NoiseLevel) -> Array:
            # One dropout key: both sides of (1) are the same function.
            return clip(bounded(denoiser(model, params, net_key), boundary)(x, level, cond).x0)

        goal = stop_gradient(f(stop_gradient(setting.target(params, context)), x_nxt, nxt))
        per_example = setting.distance(f(params, noised.x, now), goal)
        return jnp.mean(setting.weight(now, nxt) * per_example), Report({})

    return Recipe(initialiser(model, init_net, extra_cond), loss)


def same_noise() -> Transition:
    """x_nxt from the same x0 and eps, without a teacher (Song et al. 2023, theorem 2)."""
    return lambda key, frozen, cond, noised, nxt: corrupt(noised.x0, noised.eps, nxt)


def teacher_step(teacher: Teacher, solver: Solver) -> Transition:
    """One step of a solver along the teacher's flow; the solver must need no history."""

    def transition(
        key: Array, frozen: Params, cond: Cond, noised: Noised, nxt: NoiseLevel
    ) -> Array:
        state = solver.init(noised.x)
        return solver.step(key, teacher(frozen, cond), noised.x, noised.now, nxt, state)[0]

    return transition


def ema_target(params: Params, context: Context) -> Params:
    """The target's parameters are the moving average of params."""
    del params
    return context.ema


def online_target(params: Params, context: Context) -> Params:
    """The target's parameters are the student's own, without gradient."""
    del context
    return params


def uniform_weight(now: NoiseLevel, nxt: NoiseLevel) -> Array:
    """w = 1."""
    del nxt
    return jnp.ones_like(now.alpha)


def inverse_gap(now: NoiseLevel, nxt: NoiseLevel) -> Array:
    """w = 1/(s_now - s_nxt), s = sigma/alpha (Song & Dhariwal 2024, section 3.4)."""
    return 1 / (now.sigma / now.alpha - nxt.sigma / nxt.alpha)


def distillation(teacher: Teacher, solver: str = "heun", levels: int = 18) -> Setting:
    """Consistency distillation (Song et al. 2023, algorithm 2; their distance is LPIPS).

    Args:
        teacher: see ``teachers.Teacher``.
        solver: a name of ``SOLVERS`` that needs no history or process, as "ddim" or "heun".
        levels: N.
    """
    transition = teacher_step(teacher, SOLVERS[solver]())
    return Setting(
        level_pairs.uniform(level_pairs.constant(levels)),
        transition,
        ema_target,
        squared(),
        uniform_weight,
    )


def training(total: int, first: int = 2, last: int = 150) -> Setting:
    """Consistency training (Song et al. 2023, algorithm 3), with the EMA of ``ema_rate``.

    Args:
        total: training steps.
        first, last: s0 and s1, the first and last number of levels.
    """
    levels = level_pairs.uniform(level_pairs.square_root(total, first, last))
    return Setting(levels, same_noise(), ema_target, squared(), uniform_weight)


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
        first, last: s0 and s1, the first and last number of levels, doubled in stages.
        c: constant of the pseudo-Huber distance; None for the paper's.
        mean, std: of the proposal of log(sigma/alpha).
    """
    levels = level_pairs.log_normal(level_pairs.doubling(total, first, last), mean, std)
    return Setting(levels, same_noise(), online_target, pseudo_huber(c), inverse_gap)


def easy(
    stage: int,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    mean: float = -1.1,
    std: float = 2.0,
    c: float = 0.0,
) -> Setting:
    """Easy consistency tuning, ECT (Geng et al. 2024): starts from a diffusion model's parameters.

    Args:
        stage: training steps between two reductions of the gap between now and nxt.
        q, k, b, mean, std: see ``level_pairs.easing``.
        c: constant of the pseudo-Huber distance; 0 is the plain norm.
    """
    levels = level_pairs.easing(stage, q, k, b, mean, std)
    return Setting(levels, same_noise(), online_target, pseudo_huber(c), inverse_gap)


def ema_rate(count: level_pairs.LevelCount, first: int = 2, decay: float = 0.9) -> Rate:
    """1 - μ(k), μ(k) = exp(s0·log μ0/N(k)): for ``ema.averaged`` (Song et al. 2023, appendix C).

    Args:
        count: N(k), such as ``level_pairs.square_root``.
        first: s0, N(0).
        decay: μ0 = μ(0).
    """
    return lambda k: -jnp.expm1(first * math.log(decay) / count(k)).astype(jnp.float32)


def ema_rate_of_intervals(
    count: level_pairs.LevelCount, first: int = 2, decay: float = 0.9
) -> Rate:
    """``ema_rate`` with the N(k) - 1 intervals in place of N(k), as the authors' code has it.

    With s0 = 2 it starts at μ0² = 0.81, where the paper starts at μ0; the ratio of the two rates
    tends to 1.
    """
    return ema_rate(lambda k: count(k) - 1, first, decay)


def consistency_ema(total: int, first: int = 2, last: int = 150, decay: float = 0.9) -> Ema:
    """The average that is consistency training's target, with the rate ``ema_rate``.

    Args:
        total: training steps.
        first, last: s0 and s1 of ``training``.
        decay: μ0.
    """
    return averaged(ema_rate(level_pairs.square_root(total, first, last), first, decay))


def consistency_ema_of_intervals(
    total: int, first: int = 2, last: int = 150, decay: float = 0.9
) -> Ema:
    """As ``consistency_ema``, with ``ema_rate_of_intervals``."""
    count = level_pairs.square_root(total, first, last)
    return averaged(ema_rate_of_intervals(count, first, decay))


EMAS: dict[str, Callable[..., Ema]] = {
    "consistency": consistency_ema,
    "consistency_of_intervals": consistency_ema_of_intervals,
}

CONSISTENCY: dict[str, Callable[..., Setting]] = {
    "distillation": distillation,
    "training": training,
    "improved": improved,
    "easy": easy,
}
