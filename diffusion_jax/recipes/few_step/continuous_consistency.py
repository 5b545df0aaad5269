"""Continuous-time consistency models, sCM (Lu & Song 2025, "Simplifying, Stabilizing ...").

TrigFlow is x_t = cos t·x0 + sin t·z with z = sd·eps and t = atan2(sigma, alpha·sd), sd the
standard deviation of the data: any path, scaled by sd/n, n = hypot(sigma, sd·alpha).  The
consistency function is

    f(x_t, t) = cos t·x_t - sin t·sd·F(x_t, t),                                              (1)

and the limit of ``few_step.consistency`` for nxt -> now is a regression of F on itself and a
tangent:

    L = e^(-u(t))·‖F_θ - F⁻ - g/(‖g‖ + c)‖²/D + u(t),                                        (2)
    g = cos t·df⁻/dt = -cos² t·(sd·F⁻ - dx_t/dt) - r·cos t·sin t·(x_t + sd·dF⁻/dt),          (3)

F⁻ has no gradient, r goes from 0 to 1 in a warm-up, u is learned (their algorithm 1).  dx_t/dt is
the teacher's sd·F (sCD) or cos t·z - sin t·x0 of the drawn noise (sCT).  cos t·sin t·dF/dt is one
jvp of the network along (cos t·sin t·dx_t/dt, dλ = -2), since dλ/dt = -2/(sin t·cos t) for
λ = -2·log(sd·tan t): nothing diverges at either end of time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.losses import mean_per_example
from diffusion_jax.core.process import Process, corrupt
from diffusion_jax.core.proposals import Proposal
from diffusion_jax.core.targets import convert, express, network_output, trigflow
from diffusion_jax.core.types import (
    Cond,
    Context,
    Model,
    NoiseLevel,
    Params,
    Prediction,
    Recipe,
    Report,
    like,
)
from diffusion_jax.core.weighting import log_uncertainty, with_uncertainty
from diffusion_jax.recipes.few_step.teachers import (
    ExtraCond,
    Teacher,
    initialiser,
    no_extra_cond,
    stop_gradient,
)
from diffusion_jax.recipes.inputs import encode_and_drop

Velocity = Callable[[Params, Cond, Prediction, Array, NoiseLevel], Prediction]
"""(``Context.frozen``, cond, drawn (x0, eps), x, level) -> the (x0, eps) that define dx/dt."""


def data_velocity() -> Velocity:
    """The drawn data and noise: consistency training, sCT."""
    return lambda frozen, cond, drawn, x, level: drawn


def teacher_velocity(teacher: Teacher) -> Velocity:
    """The teacher's prediction: consistency distillation, sCD."""
    return lambda frozen, cond, drawn, x, level: teacher(frozen, cond)(x, level)


def continuous_consistency(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    velocity: Velocity,
    proposal: Proposal,
    sigma_data: float = 0.5,
    warm_up: int = 10_000,
    c: float = 0.1,
    frequencies: int = 32,
    extra_cond: ExtraCond = no_extra_cond,
    condition_dropout: float = 0.0,
) -> Recipe:
    """Equations (1) to (3).

    Args:
        model: the student's, of any target and path; a ``time_in`` of a small range, such as
            ``network_io.edm_noise``, keeps its derivative in time small.
        init_net: (key, x [b, ...], cond) -> the network's parameters.
        velocity: ``data_velocity()`` or ``teacher_velocity(teacher)``.
        proposal: how levels are drawn; the paper's are ``log_normal(-1.0, 1.4)`` (sCT) and
            ``log_normal(-0.8, 1.6)`` (sCD); their λ must be finite.
        sigma_data: sd.
        warm_up: training steps in which r goes from 0 to 1; 0 for none.
        c: constant of the tangent normalisation.
        frequencies: number of Fourier features of u.
        extra_cond: what the student is conditioned on beside the batch's condition.
        condition_dropout: share of examples that get the null condition.

    Returns:
        A Recipe over params {"net": ..., "weight": {"kernel": ...}}; it reports the mean norm of
        g, whose spikes come before a collapse.
    """
    target, init_student = trigflow(sigma_data), initialiser(model, init_net, extra_cond)

    def init(key: Array, batch: dict[str, Array]) -> Params:
        return {**init_student(key, batch), "weight": {"kernel": jnp.zeros((frequencies,))}}

    def loss(params: Params, context: Context, batch: dict[str, Array], key: Array):
        codec_key, drop_key, extra_key, level_key, noise_key, net_key = jax.random.split(key, 6)
        x0, cond = encode_and_drop(
            model, context.frozen, batch, condition_dropout, codec_key, drop_key
        )
        cond = {**cond, **extra_cond(extra_key, x0.shape[0])}
        level, importance = proposal.draw(level_key, x0.shape[0], model.process, context.carry)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        x = corrupt(x0, eps, level)

        def network(params: Params, x: Array, level: NoiseLevel) -> Array:
            out = network_output(model, params, x, level, cond, net_key)
            return convert(model.target, target, out, x, level)

        direction = stop_gradient(velocity(context.frozen, cond, Prediction(x0, eps), x, level))
        dx_dt = sigma_data * express(target, direction.x0, direction.eps, level)
        r = jnp.clip(context.step / warm_up, 0.0, 1.0) if warm_up else 1.0
        # The one place that stops the gradient of (2) through F⁻ and g.
        fixed_network = lambda x, level: network(stop_gradient(params), x, level)
        output, g = tangent(fixed_network, model.process, x, level, dx_dt, sigma_data, r)
        g, norm = normalise(g, c)
        error = mean_per_example((network(params, x, level) - output - g) ** 2)
        per_example = with_uncertainty(
            error, log_uncertainty(params["weight"]["kernel"], level.log_snr)
        )
        carry = proposal.update(context.carry, level, jax.lax.stop_gradient(error))
        return jnp.mean(importance * per_example), Report({"tangent_norm": jnp.mean(norm)}, carry)

    return Recipe(init, loss, proposal.init)


def tangent(
    network: Callable[[Array, NoiseLevel], Array],
    process: Process,
    x: Array,
    level: NoiseLevel,
    dx_dt: Array,
    sigma_data: float,
    r: Array | float = 1.0,
) -> tuple[Array, Array]:
    """F and the tangent g of equation (3) at (x, level).

    Args:
        network: (x, level) -> TrigFlow's F, both on the path of ``process``.
        process: gives the level of a λ.
        x: [b, ...] at ``level``, as the path scales it.
        level: [b], of finite λ.
        dx_dt: dx_t/dt of TrigFlow's x_t.
        sigma_data: sd.
        r: weight of the part that is warmed up.

    Returns:
        (F, g), each [b, ...].
    """

    def scale(level: NoiseLevel) -> Array:
        return jnp.hypot(level.sigma, sigma_data * level.alpha) / sigma_data  # x over x_t

    def trigflow_network(x_t: Array, log_snr: Array) -> Array:
        level = process.at_log_snr(log_snr)
        return network(like(scale(level), x_t) * x_t, level)

    n = scale(level)
    cos, sin = (like(a, x) for a in (level.alpha / n, level.sigma / (sigma_data * n)))
    x_t, log_snr = x / like(n, x), level.log_snr
    tangents = (cos * sin * dx_dt, jnp.full_like(log_snr, -2.0))
    output, output_slope = jax.jvp(trigflow_network, (x_t, log_snr), tangents)
    steady = cos**2 * (sigma_data * output - dx_dt)
    return output, -steady - r * (cos * sin * x_t + sigma_data * output_slope)


def normalise(g: Array, c: float) -> tuple[Array, Array]:
    """g/(‖g‖ + c) and ‖g‖ [b], the norm of each example (section 4.1)."""
    norm = jnp.sqrt(jnp.sum(g**2, axis=tuple(range(1, g.ndim))))
    return g / like(norm + c, g), norm
