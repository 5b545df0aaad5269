"""DDPM ancestral sampling: draw x_s from p(x_s | x_t), the learned reverse of one noising step.

p has the mean of q(x_s | x_t, x0) with the predicted x0 (``process.posterior``); what differs
between papers is its variance.  A ``LogVariance`` is (now, nxt, prediction) -> log variance, [],
[b] or [b, ...].
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.noise import Noise, white
from diffusion_jax.core.process import posterior, transition
from diffusion_jax.core.types import NoiseLevel, Prediction, Solver, like

LogVariance = Callable[[NoiseLevel, NoiseLevel, Prediction], Array]

_TINY = 1e-30  # log(0) between equal levels would be -inf, and 0·inf NaN later


def fixed_small(now: NoiseLevel, nxt: NoiseLevel, prediction: Prediction) -> Array:
    """log β̃_t, the variance of q(x_s | x_t, x0): right for x0 a single point (Ho et al. 2020).

    On the step to the clean level β̃ is 0.  Nichol & Dhariwal 2021 put the next step's β̃ there,
    which is half of β to first order; half of β is used here, as it needs no third level.
    """
    del prediction
    c = transition(now, nxt)
    variance = jnp.where(nxt.sigma > 0, c.variance, c.forward_variance / 2)
    return jnp.log(jnp.maximum(variance, _TINY))


def fixed_large(now: NoiseLevel, nxt: NoiseLevel, prediction: Prediction) -> Array:
    """log β_t, the variance of q(x_t | x_s): right when x0 ~ N(0, I) (Ho et al. 2020)."""
    del prediction
    return jnp.log(jnp.maximum(transition(now, nxt).forward_variance, _TINY))


def learned_range(now: NoiseLevel, nxt: NoiseLevel, prediction: Prediction) -> Array:
    """exp(f log β_t + (1 - f) log β̃_t), f = (aux + 1)/2 (Nichol & Dhariwal 2021, eq. 15).

    Raises:
        ValueError: if the network has no extra output channels for it.
    """
    if prediction.aux is None or prediction.aux.shape != prediction.x0.shape:
        found = None if prediction.aux is None else prediction.aux.shape
        raise ValueError(
            f"variance learned_range needs a network with twice the channels of its input, extra "
            f"channels found: {found}; set config.model.learned_variance=True or use fixed_small"
        )
    x = prediction.aux
    f = (x + 1) / 2
    small = fixed_small(now, nxt, prediction)
    return f * like(fixed_large(now, nxt, prediction), x) + (1 - f) * like(small, x)


def ancestral(variance: LogVariance = fixed_small, noise: Noise = white) -> Solver:
    """x_s ~ N(posterior mean at the predicted x0, exp(variance)) (Ho et al. 2020, algorithm 2).

    The last step, to the clean level, is taken by ``sampling.sample`` and adds no noise.

    Args:
        variance: one of ``VARIANCES``, or your own.
        noise: source of fresh noise.
    """

    def step(key, denoise, x, now, nxt, state):
        prediction = denoise(x, now)
        mean, _ = posterior(x, prediction.x0, now, nxt)
        std = jnp.exp(0.5 * variance(now, nxt, prediction))
        return mean + like(std, x) * noise(key, x, now, nxt), state

    return Solver(lambda x: (), step)


VARIANCES: dict[str, LogVariance] = {
    "fixed_small": fixed_small,
    "fixed_large": fixed_large,
    "learned_range": learned_range,
}


def ddpm(variance: str = "fixed_small", noise: Noise = white) -> Solver:
    """``ancestral`` with a variance chosen by name.

    Raises:
        ValueError: if the name is not in ``VARIANCES``.
    """
    if variance not in VARIANCES:
        raise ValueError(f"ddpm(variance={variance!r}): known are {', '.join(VARIANCES)}")
    return ancestral(VARIANCES[variance], noise)
