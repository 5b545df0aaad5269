"""Flow maps: the probability flow from one level to another in one network evaluation.

In y = x/alpha, s = sigma/alpha the flow of every path is dy/ds = eps.  Between the levels ``now``
and ``end`` of one trajectory, the mean of eps and the x0 that goes with it,

    eps = (y_now - y_end) / (s_now - s_end),        x0 = y_now - s_now·eps,                  (1)

are a ``Prediction``, and one DDIM step with it, ``steps.follow``, is exact over the whole distance:
x_end = alpha_end·x0 + sigma_end·eps.  A network that is conditioned on both levels learns (1) with
any prediction target: MeanFlow's average velocity is its F on the rectified path, CTM's g
its x0, a shortcut its mean over d, and as end -> now it is the denoiser.  A consistency function
is (1) for the clean end, where x0 = x_end.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.process import clean
from diffusion_jax.core.solvers.steps import follow
from diffusion_jax.core.targets import from_x0, network_output, predict
from diffusion_jax.core.types import (
    Cond,
    Denoise,
    Denoiser,
    Jump,
    Jumper,
    Model,
    NoiseLevel,
    Params,
    Prediction,
    like,
)

END = "end"
"""The key of cond with a two-time network's destination, as ``time_in(end)``."""


def transfer(prediction: Prediction, end: NoiseLevel) -> Float[Array, "b ..."]:
    """x at ``end``: the DDIM step, which is the flow map for a Jump's Prediction."""
    return follow(prediction, end)


def secant(
    x: Float[Array, "b ..."], x_end: Float[Array, "b ..."], now: NoiseLevel, end: NoiseLevel
) -> Prediction:
    """Equation (1): the Prediction at (x, now) whose DDIM step leads to x_end at ``end``.

    In a form where alpha and sigma of either level may be 0.  Its x0 is the target of
    progressive distillation (Salimans & Ho 2022, algorithm 2).

    Args:
        x, x_end: two points of one trajectory.
        now, end: their levels, which must differ.
    """
    of = lambda c: like(c, x)
    det = of(now.alpha * end.sigma - end.alpha * now.sigma)
    return Prediction(
        x0=(of(end.sigma) * x - of(now.sigma) * x_end) / det,
        eps=(of(now.alpha) * x_end - of(end.alpha) * x) / det,
    )


def jumper(model: Model, params: Params, key: Array | None = None) -> Jumper:
    """The network of two times as a function (x, now, end, cond) -> Prediction.

    It finds ``time_in(end)``, float32 [b], in ``cond["end"]``.

    Args:
        model: what the parameters mean.
        params: the network's parameters.
        key: dropout key; given exactly while training.
    """

    def jump(x: Array, now: NoiseLevel, end: NoiseLevel, cond: Cond) -> Prediction:
        cond_and_end = {**cond, END: jnp.broadcast_to(model.time_in(end), x.shape[:1])}
        return predict(
            model.target, network_output(model, params, x, now, cond_and_end, key), x, now
        )

    return jump


def condition(jumper: Jumper, cond: Cond) -> Jump:
    """The Jump of one condition."""

    def jump(x: Array, now: NoiseLevel, end: NoiseLevel | None = None) -> Prediction:
        return jumper(x, now, clean(now) if end is None else end, cond)

    return jump


def to_clean(denoise: Denoise) -> Jump:
    """A function of one time as a Jump that ignores ``end``.

    It is correct for a consistency function at the clean end, so with ``jump(gamma=1)``, and for a
    denoiser at ends close to ``now``, where ``jump(gamma=0)`` is DDIM.
    """

    def jump(x: Array, now: NoiseLevel, end: NoiseLevel | None = None) -> Prediction:
        del end
        return denoise(x, now)

    return jump


Boundary = Callable[[NoiseLevel], tuple[Array, Array]]
"""level -> (skip, out), shaped as the level: f = skip·x/alpha + out·(the network's x0)."""


def bounded(denoiser: Denoiser, boundary: Boundary) -> Denoiser:
    """A denoiser whose x0 is x itself at the cleanest level: a consistency function.

    At sigma = 0 it is x for any boundary.  x = alpha·x0 + sigma·eps holds elsewhere.
    """

    def f(x: Array, level: NoiseLevel, cond: Cond) -> Prediction:
        prediction = denoiser(x, level, cond)
        skip, out = (like(c, x) for c in boundary(level))
        alpha = like(level.alpha, x)
        y = x / jnp.where(alpha > 0, alpha, 1.0)
        # x/alpha has no meaning at alpha = 0, and no weight.
        x0 = jnp.where(alpha > 0, skip * y, 0.0) + out * prediction.x0
        x0 = jnp.where(like(level.sigma, x) > 0, x0, y)
        return from_x0(x0, x, level, prediction.aux)

    return f


def free() -> Boundary:
    """(0, 1): only at sigma = 0, which targets such as v, flow and EDM's satisfy by themselves."""
    return lambda level: (jnp.zeros_like(level.alpha), jnp.ones_like(level.alpha))


def consistency_models(s_min: float = 0.002, sigma_data: float = 0.5) -> Boundary:
    """f = c_skip·y + c_out·F with f = y at s = sigma/alpha = s_min (Song et al. 2023, appendix C).

    c_skip = sd²/((s - s_min)² + sd²), c_out = sd·(s - s_min)/sqrt(s² + sd²), for EDM's F.  Since
    EDM's x0 is c_skip(s_min=0)·y + c_out(s_min=0)·F, that is out = 1 - s_min/s, and skip the rest.

    Args:
        s_min: the level of the boundary, whose x counts as data.
        sigma_data: that of EDM's target.
    """

    def row(level: NoiseLevel) -> tuple[Array, Array]:
        alpha, sigma = level.alpha, level.sigma
        share = lambda gap: (alpha * sigma_data) ** 2 / (gap**2 + (alpha * sigma_data) ** 2)
        low = s_min * alpha
        out = jnp.maximum(1 - low / jnp.where(sigma > 0, sigma, 1.0), 0.0)
        return share(jnp.maximum(sigma - low, 0.0)) - out * share(sigma), out

    return row


def latent_consistency(scale: float = 10.0, sigma_data: float = 0.5, steps: int = 1000) -> Boundary:
    """c_skip = sd²/(u² + sd²), c_out = u/sqrt(u² + sd²), u = scale·(index of the table's level).

    Luo et al. 2023, "Latent Consistency Models", section 4.1 and their code: applied to unscaled x
    and the teacher's x0.  u is above 0 except at the first level of the table, where f = x.

    Args:
        scale: timestep scaling.
        sigma_data: the paper's 0.5.
        steps: T of the table; the index is t·T - 1, at least 0.
    """

    def row(level: NoiseLevel) -> tuple[Array, Array]:
        # Half a rounding of t·T is 10·1e-4 of an index: negligible beside 0.5.
        u = scale * jnp.maximum(level.t * steps - 1, 0.0)
        return level.alpha * sigma_data**2 / (u**2 + sigma_data**2), u / jnp.hypot(u, sigma_data)

    return row


BOUNDARIES: dict[str, Callable[..., Boundary]] = {
    "free": free,
    "consistency_models": consistency_models,
    "latent_consistency": latent_consistency,
}
