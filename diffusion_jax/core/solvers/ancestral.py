"""DDPM ancestral sampling: draw x_s from p(x_s | x_t), the learned reverse of one noising step.

p has the mean of q(x_s | x_t, x0) with the predicted x0 (``process.posterior``); what differs
between papers is its variance.  A ``LogVariance`` gives its logarithm, [], [b] or [b, ...].

On the step to the clean level, which only a likelihood looks at, β̃ is 0 and β would be too wide:
the published codes put β̃ of the step before, from ``before`` to ``now``, for both (Ho et al.
2020's "fixed large" too; Nichol & Dhariwal 2021).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.noise import Noise, white
from diffusion_jax.core.process import posterior, transition
from diffusion_jax.core.types import NoiseLevel, Prediction, Solver, like


@runtime_checkable
class LogVariance(Protocol):
    """The log variance of p(x_s | x_t).

    Args:
        now, nxt: the levels of t and s, [] or [b].
        prediction: the model's, at ``now``.
        before: the level before ``now`` on the grid, a noisier one, for a step to the clean level;
            None where the grid has none: then β itself if "fixed large", else half of it.
    """

    def __call__(
        self,
        now: NoiseLevel,
        nxt: NoiseLevel,
        prediction: Prediction,
        before: NoiseLevel | None = None,
    ) -> Array: ...


_TINY = 1e-30  # log(0) between equal levels would be -inf, and 0·inf NaN later


def fixed_small(
    now: NoiseLevel, nxt: NoiseLevel, prediction: Prediction, before: NoiseLevel | None = None
) -> Array:
    """log β̃_t, the variance of q(x_s | x_t, x0): right for x0 a single point (Ho et al. 2020)."""
    del prediction
    c = transition(now, nxt)
    last = c.forward_variance / 2 if before is None else transition(before, now).variance
    return jnp.log(jnp.maximum(jnp.where(nxt.sigma > 0, c.variance, last), _TINY))


def fixed_large(
    now: NoiseLevel, nxt: NoiseLevel, prediction: Prediction, before: NoiseLevel | None = None
) -> Array:
    """log β_t, the variance of q(x_t | x_s): right when x0 ~ N(0, I) (Ho et al. 2020)."""
    large = jnp.log(jnp.maximum(transition(now, nxt).forward_variance, _TINY))
    if before is None:
        return large
    return jnp.where(nxt.sigma > 0, large, fixed_small(now, nxt, prediction, before))


def learned_range(
    now: NoiseLevel, nxt: NoiseLevel, prediction: Prediction, before: NoiseLevel | None = None
) -> Array:
    """exp(f log β_t + (1 - f) log β̃_t), f = (aux + 1)/2 (Nichol & Dhariwal 2021, eq. 15).

    Here β_t is itself on the step to the clean level.

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
    small = fixed_small(now, nxt, prediction, before)
    large = jnp.log(jnp.maximum(transition(now, nxt).forward_variance, _TINY))
    return f * like(large, x) + (1 - f) * like(small, x)


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
