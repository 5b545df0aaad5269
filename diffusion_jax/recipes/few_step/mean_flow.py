"""MeanFlow: a network that predicts the mean velocity between two times, without a teacher.

On the rectified path z = (1 - t)·x0 + t·eps, with v = dz/dt and u the mean of v from r to t,
(t - r)·u = ∫ v.  Its derivative along a trajectory is the MeanFlow identity,

    u = v - (t - r)·du/dt,        du/dt = w·∂_z u + ∂_t u,   w = v,                          (1)

(Geng et al. 2025a, equations 6 and 8), which is learned by regression,

    L = d(u_θ + (t - r)·stopgrad(du_θ/dt), v_g).                                             (2)

    MeanFlow            w = v_g, of the drawn data and noise: (2) is u_θ - stopgrad(u_tgt) of
                        their equations 9 to 11
    improved MeanFlow   w = u_θ(z, t, t), the network's own estimate of v, so that the left of (2)
                        is a function of z alone (Geng et al. 2025b, "Improved Mean Flows")

The guided v_g = ω·v + κ·u_θ(z, t, t | c) + (1 - ω - κ)·u_θ(z, t, t | null) has its fixed point in
guidance by the scale ω/(1 - κ) (2025a, equation 21): guided samples in one evaluation.

u is eps - x0 of the two-time Prediction (``core.flow_maps``), so any prediction target
and any path will do: x is scaled by 1/(alpha + sigma), t is sigma/(alpha + sigma).  The derivative
is taken along λ, dλ/dt = -2/(t·(1 - t)), so the λ of levels must be finite.
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
from diffusion_jax.recipes.few_step.continuous_consistency import Velocity, data_velocity
from diffusion_jax.recipes.few_step.teachers import SCALE, ExtraCond, no_extra_cond, stop_gradient
from diffusion_jax.recipes.few_step.two_times import Times, diagonal, initialiser, ordered
from diffusion_jax.recipes.inputs import drop_condition, encode

TargetGuidance = Callable[[Cond], tuple[Array, Array]]
"""cond -> (ω, κ), [] or [b] each."""

Tangent = Callable[[Callable[[], Array], Array], Array]
"""(() -> u_θ(z, t, t), v_g) -> w of (1)."""


def constant_guidance(omega: float, kappa: float = 0.0) -> TargetGuidance:
    """The same guidance for all examples, of scale ω/(1 - κ) (Geng et al. 2025a, table 4)."""
    return lambda cond: (jnp.asarray(omega), jnp.asarray(kappa))


def guidance_from_cond() -> TargetGuidance:
    """ω = 1, κ = 1 - 1/w: the scale w of each example is ``cond["guidance_scale"]``."""
    return lambda cond: (jnp.ones(()), 1 - 1 / cond[SCALE])


def target_tangent(own: Callable[[], Array], goal: Array) -> Array:
    """w = v_g: MeanFlow."""
    del own
    return goal


def network_tangent(own: Callable[[], Array], goal: Array) -> Array:
    """w = u_θ(z, t, t): improved MeanFlow, by its boundary condition in place of a second head."""
    del goal
    return own()


def mean_flow(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    velocity: Velocity | None = None,
    times: Times | None = None,
    tangent: Tangent = target_tangent,
    guidance: TargetGuidance | None = None,
    distance: Distance | None = None,
    extra_cond: ExtraCond = no_extra_cond,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equation (2).

    Args:
        model: the student's, conditioned on ``end``.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        velocity: v; None for ``data_velocity()``, the papers'; ``teacher_velocity(teacher)``
            distils.
        times: how (t, r) are drawn; None for logit-normal(-0.4, 1) pairs, r = t for 3 of 4
            examples (2025a); for improved MeanFlow ``ordered(logit_normal(-0.4, 1.0), 0.5)``.
        tangent: w: ``target_tangent`` or ``network_tangent``.
        guidance: guidance in the target; None for none.
        distance: d; None for ``losses.adaptive()`` with p = 1.
        extra_cond: what the student is conditioned on beside the batch's condition, such as
            ``teachers.guidance_scales(1.0, 8.0)``.
        condition_dropout: share of examples that get the null condition; their target is v,
            not v_g.

    Returns:
        A Recipe over params {"net": ...}; as the adaptive loss hardly falls, it reports the mean
        squared "error" too.
    """
    velocity, distance = velocity or data_velocity(), distance or adaptive()
    times = times or ordered(logit_normal(-0.4, 1.0), 0.75)

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, extra_key, times_key, noise_key, net_key = jax.random.split(key, 6)
        x0, batch_cond = encode(model, context.frozen, batch, codec_key)
        drop = jax.random.bernoulli(drop_key, condition_dropout, x0.shape[:1])
        extra = extra_cond(extra_key, x0.shape[0])
        null = {**model.null(context.frozen, batch_cond), **extra}
        cond = drop_condition(drop, {**batch_cond, **extra}, null)
        now, end = times(times_key, x0.shape[0], model.process)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        x = corrupt(x0, eps, now)

        fixed_denoiser = diagonal(jumper(model, stop_gradient(params)))
        goal = _difference(velocity(context.frozen, cond, Prediction(x0, eps), x, now))
        if guidance is not None:
            guided = _guided(fixed_denoiser, guidance, goal, x, now, cond, null)
            goal = jnp.where(like(drop, x), goal, guided)
        w = tangent(lambda: _difference(fixed_denoiser(x, now, cond)), goal)
        u, du_dt = derivative(jumper(model, params, net_key), model.process, x, now, end, cond, w)
        compound = u + like(_time(now) - _time(end), x) * stop_gradient(du_dt)
        error = jnp.mean(mean_per_example((compound - goal) ** 2))
        return jnp.mean(distance(compound, goal)), Report({"error": error})

    return Recipe(initialiser(model, init_net, extra_cond), loss)


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
    fixed_denoiser: Denoiser,
    guidance: TargetGuidance,
    v: Array,
    x: Array,
    now: NoiseLevel,
    cond: Cond,
    null: Cond,
) -> Array:
    """v_g; both conditions are evaluated in one batch."""
    null_v, cond_v = (
        _difference(each) for each in predictions(fixed_denoiser, (null, cond))(x, now)
    )
    omega, kappa = (like(c, x) for c in guidance(cond))
    return omega * v + kappa * cond_v + (1 - omega - kappa) * null_v
