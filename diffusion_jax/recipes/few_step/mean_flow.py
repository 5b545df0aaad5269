"""MeanFlow: one network call for the mean velocity between two times, with no teacher.

On the rectified path z = (1 - t)·x0 + t·eps, with v = dz/dt and u the mean of v from r to t,
(t - r)·u = ∫ v.  Its derivative along a trajectory is the MeanFlow identity,

    u = v - (t - r)·du/dt,        du/dt = w·∂_z u + ∂_t u,   w = v,                          (1)

(Geng et al. 2025a, equations 6 and 8), which a regression makes hold,

    L = d(u_θ + (t - r)·stopgrad(du_θ/dt), v_g).                                             (2)

    MeanFlow            w = v_g, of the drawn data and noise: (2) is u_θ - stopgrad(u_tgt) of
                        their equations 9 to 11
    improved MeanFlow   w = u_θ(z, t, t), what the network itself takes for v, so that the left of
                        (2) is a function of z alone (Geng et al. 2025b, "Improved Mean Flows")

The guided v_g = ω·v + κ·u_θ(z, t, t | c) + (1 - ω - κ)·u_θ(z, t, t | null) has its fixed point in
guidance by the scale ω/(1 - κ) (2025a, equation 21): a student guided at no cost.

u is eps - x0 of the two-time Prediction (``core.flow_maps``), so the target is any row, and the
path any: x is scaled by 1/(alpha + sigma), t is sigma/(alpha + sigma).  The derivative is taken
along λ, of dλ/dt = -2/(t·(1 - t)), so levels must have a finite one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.flow_maps import jumper
from diffusion_jax.core.guidance import predictions
from diffusion_jax.core.losses import Distance, adaptive, mean_per_example
from diffusion_jax.core.process import Process, corrupt
from diffusion_jax.core.proposals import logit_normal
from diffusion_jax.core.types import (
    Cond,
    Context,
    Denoiser,
    Jumper,
    Model,
    NoiseLevel,
    Params,
    Prediction,
    Recipe,
    Report,
    like,
)
from diffusion_jax.recipes.few_step.continuous_consistency import Velocity, of_data
from diffusion_jax.recipes.few_step.teachers import SCALE, Tell, nothing, still
from diffusion_jax.recipes.few_step.two_times import Times, diagonal, initialiser, ordered
from diffusion_jax.recipes.inputs import emptied, encode

Mix = Callable[[Cond], tuple[Array, Array]]
"""cond -> (ω, κ), [] or [b] each."""

Along = Callable[[Callable[[], Array], Array], Array]
"""(() -> u_θ(z, t, t), v_g) -> w of (1)."""


def mixed(omega: float, kappa: float = 0.0) -> Mix:
    """The same guidance for all: the scale is ω/(1 - κ) (Geng et al. 2025a, table 4)."""
    return lambda cond: (jnp.asarray(omega), jnp.asarray(kappa))


def mixed_as_told() -> Mix:
    """ω = 1, κ = 1 - 1/w: the scale w of each example, told in ``cond["guidance_scale"]``."""
    return lambda cond: (jnp.ones(()), 1 - 1 / cond[SCALE])


def along_target(own: Callable[[], Array], goal: Array) -> Array:
    """w = v_g: MeanFlow."""
    del own
    return goal


def along_own(own: Callable[[], Array], goal: Array) -> Array:
    """w = u_θ(z, t, t): improved MeanFlow, by its boundary condition in place of a second head."""
    del goal
    return own()


def mean_flow(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    velocity: Velocity | None = None,
    times: Times | None = None,
    along: Along = along_target,
    mix: Mix | None = None,
    distance: Distance | None = None,
    tell: Tell = nothing,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (2).

    Args:
        model: the student's, told ``end``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        velocity: of v; None for ``of_data()``, the papers'; ``of_teacher(teacher)`` distils.
        times: of (t, r); None for logit-normal(-0.4, 1) pairs, r = t for 3 of 4 examples (2025a);
            for improved MeanFlow ``ordered(logit_normal(-0.4, 1.0), 0.5)``.
        along: ``along_target`` or ``along_own``.
        mix: guidance in the target; None for none.
        distance: None for ``losses.adaptive()``, of p = 1.
        tell: what the student is told beside, such as ``teachers.scales(1.0, 8.0)``.
        condition_dropout: share of examples whose condition is emptied; theirs is v, not v_g.

    Returns:
        A Recipe over params {"net": ...}; as the adaptive loss hardly falls, it reports the mean
        squared "error" too.
    """
    velocity, distance = velocity or of_data(), distance or adaptive()
    times = times or ordered(logit_normal(-0.4, 1.0), 0.75)

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        of_codec, of_drop, of_tell, of_times, of_noise, of_net = jax.random.split(key, 6)
        x0, given = encode(model, context.frozen, batch, of_codec)
        drop = jax.random.bernoulli(of_drop, condition_dropout, x0.shape[:1])
        told = tell(of_tell, x0.shape[0])
        null = {**model.null(context.frozen, given), **told}
        cond = emptied(drop, {**given, **told}, null)
        now, end = times(of_times, x0.shape[0], model.process)
        eps = jax.random.normal(of_noise, x0.shape, x0.dtype)
        x = corrupt(x0, eps, now)

        fixed = diagonal(jumper(model, still(params)))
        goal = _difference(velocity(context.frozen, cond, Prediction(x0, eps), x, now))
        if mix is not None:
            guided = _guided(fixed, mix, goal, x, now, cond, null)
            goal = jnp.where(like(drop, x), goal, guided)
        w = along(lambda: _difference(fixed(x, now, cond)), goal)
        u, slope = derivative(jumper(model, params, of_net), model.process, x, now, end, cond, w)
        identity = u + like(_time(now) - _time(end), x) * still(slope)
        error = jnp.mean(mean_per_example((identity - goal) ** 2))
        return jnp.mean(distance(identity, goal)), Report({"error": error})

    return Recipe(initialiser(model, init_net, tell), loss)


def derivative(
    jumper: Jumper,
    process: Process,
    x: Array,
    now: NoiseLevel,
    end: NoiseLevel,
    cond: Cond,
    w: Array,
) -> tuple[Array, Array]:
    """u and du/dt of equation (1) at (x, now) for a fixed end, [b, ...] each: one jvp.

    Args:
        jumper: the network of two times.
        process: gives the level of a λ.
        x: [b, ...] at ``now``, as the path scales it.
        now, end: [b]; now of finite λ.
        cond: the condition.
        w: dz/dt.
    """

    def u(z: Array, log_snr: Array) -> Array:
        level = process.at_log_snr(log_snr)
        return _difference(jumper(like(level.alpha + level.sigma, z) * z, level, end, cond))

    n = now.alpha + now.sigma
    rate = -2 * n**2 / (now.alpha * now.sigma)
    return jax.jvp(u, (x / like(n, x), now.log_snr), (w, rate))


def _difference(prediction: Prediction) -> Array:
    """eps - x0: dz/dt on the rectified path."""
    return prediction.eps - prediction.x0


def _time(level: NoiseLevel) -> Array:
    """t of the rectified path at this level."""
    return level.sigma / (level.alpha + level.sigma)


def _guided(
    fixed: Denoiser, mix: Mix, v: Array, x: Array, now: NoiseLevel, cond: Cond, null: Cond
) -> Array:
    """v_g, with both calls of the network in one."""
    weak, strong = (_difference(each) for each in predictions(fixed, (null, cond))(x, now))
    omega, kappa = (like(c, x) for c in mix(cond))
    return omega * v + kappa * strong + (1 - omega - kappa) * weak
