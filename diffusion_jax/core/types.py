"""The vocabulary: what every other module passes around.

Shapes: ``b`` is the batch; ``...`` is any rank, an image [h, w, c], a video [f, h, w, c], an
embedding [d].  A data point x0 and noise eps ~ N(0, I) mix into

    x_t = alpha * x0 + sigma * eps                                                       (1)

and everything below is a statement about (1).  Types here are values (NamedTuples, hence pytrees)
or plain callables; none holds a config, a flag or mutable state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

Params = Any
"""A nested dict of arrays."""

Cond = Any
"""A pytree of [b, ...] leaves, such as ``{"label": int32[b]}``; ``{}`` when unconditional."""


class NoiseLevel(NamedTuple):
    """How much noise: one point of a process, or a grid of n of them.

    Attributes:
        t: time, 0 (clean) to 1 (noise).
        log_snr: λ = log(alpha² / sigma²), the stored quantity from which the rest derives.
        alpha: factor of the data in (1), in [0, 1].
        sigma: factor of the noise in (1), >= 0.

    Each is float32 of shape [], or [n] for a grid, noisiest first.  Examples, frames or pixels have
    levels of their own in shapes that multiply x once axes are appended on the right (``like``):
    [b], [b, f] beside x of [b, f, h, w, c], [b, h, w, 1] beside x of [b, h, w, c]; a first axis of
    1 is for all examples, and a grid of them has n before it (``level_maps``).
    """

    t: Float[Array, "*n"]
    log_snr: Float[Array, "*n"]
    alpha: Float[Array, "*n"]
    sigma: Float[Array, "*n"]


class Prediction(NamedTuple):
    """What a network's output means at (x, level): both unknowns of (1), in x's shape.

    Attributes:
        x0: the predicted clean data, [b, ...].
        eps: the predicted noise, [b, ...].
        aux: output channels beyond those of x, such as learned-variance coefficients; else None.
    """

    x0: Array
    eps: Array
    aux: Any = None


Target = Callable[[NoiseLevel], tuple[Array, Array]]
"""A prediction target as a row: level -> (p, q), meaning F = p * x0 + q * eps."""

Denoise = Callable[[Array, NoiseLevel], Prediction]
"""(x [b, ...], level) -> Prediction.  What guidance returns and solvers evaluate."""

Denoiser = Callable[[Array, NoiseLevel, Cond], Prediction]
"""(x [b, ...], level, cond) -> Prediction.  A Denoise before its condition is chosen."""


@runtime_checkable
class Jump(Protocol):
    """A map between two levels: what a few-step model is, and the solver ``jump`` takes.

    Args:
        x: [b, ...] at level ``now``.
        now: the level of x, [] or [b].
        end: the level to go to, shaped as ``now``; None for the clean one, so a Jump is a Denoise.

    Returns the Prediction whose straight path (x0 and eps constant) from x leads to ``end``, see
    ``flow_maps``; where end = now, that of a Denoise.
    """

    def __call__(self, x: Array, now: NoiseLevel, end: NoiseLevel | None = None) -> Prediction: ...


Jumper = Callable[[Array, NoiseLevel, NoiseLevel, Cond], Prediction]
"""(x [b, ...], now, end, cond) -> Prediction.  A Jump before its condition is chosen."""


class Net(Protocol):
    """A network as a pure function.

    Args:
        params: its parameters.
        x: [b, ...] noisy input, already scaled.
        time: [b] time features input (what ``Model.time_in`` returns), float32; [b, f...] where
            frames or pixels have levels of their own, for networks that take it.
        cond: conditioning pytree.
        key: dropout key; given exactly while training.

    Returns [b, ...] of x's shape, or with more channels last (see ``Prediction.aux``).
    """

    def __call__(
        self, params: Params, x: Array, time: Array, cond: Cond, *, key: Array | None = None
    ) -> Array: ...


class Codec(NamedTuple):
    """Between pixels in [-1, 1] and the space that diffusion runs in: identity, or a VAE.

    A *raw* latent is the autoencoder's own; x0 is that, scaled.  A network
    may want a picture of its condition encoded differently from x0: see ``core.encodings``.

    Attributes:
        encode: (frozen params, pixels [b, h, w, c], key) -> x0, as the model is trained on it.
        decode: (frozen params, x0, key) -> pixels; the key is for decoders that draw, and every
            other decoder ignores it.
        posterior: (frozen params, pixels) -> (mean, standard deviation) of the raw latent, in its
            shape; a deviation of 0 where there is nothing to draw.
        scale: raw latent -> x0.
        unscale: x0 -> raw latent.
    """

    encode: Callable[[Params, Array, Array], Array]
    decode: Callable[[Params, Array, Array], Array]
    posterior: Callable[[Params, Array], tuple[Array, Array]]
    scale: Callable[[Array], Array]
    unscale: Callable[[Array], Array]


class Model(NamedTuple):
    """What a checkpoint means: everything but the arrays.

    Attributes:
        net: the network.
        process: the diffusion process it was trained on (``core.process.Process``).
        target: what its output is a prediction of.
        scale_in: level -> factor on the network's input (1, or EDM's c_in), shaped as the level.
        time_in: level -> what the time embedding receives, shaped as the level, float32.
        codec: pixels <-> x0.
        condition: (frozen params, batch) -> cond, of a training batch or a request with its keys.
        null: (frozen params, cond) -> the empty condition in cond's shapes, for guidance.
        student: of a distilled network, (model, params, cond, guidance scale or None) -> the Jump
            that it is; None for a denoiser, which is guided where it is sampled.
    """

    net: Net
    process: Any
    target: Target
    scale_in: Callable[[NoiseLevel], Array]
    time_in: Callable[[NoiseLevel], Array]
    codec: Codec
    condition: Callable[[Params, dict[str, Array]], Cond]
    null: Callable[[Params, Cond], Cond]
    student: Callable[[Any, Params, Cond, Any], Jump] | None = None


class Solver(NamedTuple):
    """A method that goes from a level to a cleaner one.

    Attributes:
        init: x -> S, the state it carries (past predictions, ...), a pytree, () if none.
        step: (key, denoise, x, now, nxt, S) -> (x at nxt, S).  Gets the *function* denoise, so a
            method with several evaluations is straight-line code.  ``jump`` wants a ``Jump``.
        finish: (key, denoise, x, last level) -> Prediction, whose straight way is the step to the
            clean level.  A function Solver -> Solver keeps that of the solver inside
            (``solver._replace(step=...)``), or does there what it does before each step.
    """

    init: Callable[[Array], Any]
    step: Callable[[Array, Denoise, Array, NoiseLevel, NoiseLevel, Any], tuple[Array, Any]]
    finish: Callable[[Array, Denoise, Array, NoiseLevel], Prediction] = (
        lambda key, denoise, x, level: denoise(x, level)
    )


class Context(NamedTuple):
    """What a loss may read and never differentiates.

    Attributes:
        step: int32 [], optimiser steps done.
        ema: the moving average of params.
        frozen: parameters that training leaves alone (VAE, text encoder, teacher), or {}.
        carry: the recipe's own state from the step before (loss history, codebook, ...), or ().
    """

    step: Array
    ema: Params
    frozen: Params
    carry: Any


class Report(NamedTuple):
    """What a loss returns beside the scalar.

    Attributes:
        metrics: name -> float32 [] to log.
        carry: the recipe's state for the next step; same structure as ``Context.carry``.
    """

    metrics: dict[str, Array]
    carry: Any = ()


class Recipe(NamedTuple):
    """A training method: the whole difference between methods, which share one loop.

    Attributes:
        init: (key, batch) -> params.
        loss: (params, Context, batch, key) -> (scalar to minimise, Report).
        carry: () -> the carry before the first step.
        settle: (params after the optimiser, the new carry) -> params, for those that no gradient
            changes; averages and checkpoints get what it returns.
    """

    init: Callable[[Array, dict[str, Array]], Params]
    loss: Callable[[Params, Context, dict[str, Array], Array], tuple[Array, Report]]
    carry: Callable[[], Any] = lambda: ()
    settle: Callable[[Params, Any], Params] = lambda params, carry: params


def like(c: Array, x: Array) -> Array:
    """Append axes so that a coefficient, [], [b] or [b, f...], multiplies x, [b, f..., ...]."""
    return jax.numpy.reshape(c, jax.numpy.shape(c) + (1,) * (x.ndim - jax.numpy.ndim(c)))


__all__ = [
    "Codec",
    "Cond",
    "Context",
    "Denoise",
    "Denoiser",
    "Jump",
    "Jumper",
    "Model",
    "Net",
    "NoiseLevel",
    "Params",
    "Prediction",
    "Recipe",
    "Report",
    "Solver",
    "Target",
    "like",
]
