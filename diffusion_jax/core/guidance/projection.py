"""What is known of x0, put in its place in every prediction: editing without a gradient.

Replacing the known part of x0 and noising again is how consistency models fill in, colour and
enlarge pictures without being trained to (Song et al. 2023, algorithm 4), and works for every Jump
to clean data and every Denoise.  The result agrees with the measurement exactly; the rest is near
its posterior, not equal to it (``inverse`` estimates that, at the cost of a gradient).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Array

from diffusion_jax.core.guidance.inverse import Forward
from diffusion_jax.core.guidance.moves import move_x0
from diffusion_jax.core.types import Jump, NoiseLevel, Prediction

Project = Callable[[Array], Array]
"""x0 [b, ...] -> the nearest x0 that agrees with what is known."""


def projected(jump: Jump, project: Project) -> Jump:
    """The same map with ``project(x0)`` for its x0, and eps so that x stays what it is.

    Args:
        jump: a student, or ``flow_maps.to_clean`` of a denoiser; a student of two levels is sampled
            with ``jump(gamma=1)``, which jumps to clean data: a shorter jump's x0 is no picture.
        project: ``known`` or ``agreeing``.
    """

    def moved(x: Array, now: NoiseLevel, end: NoiseLevel | None = None) -> Prediction:
        prediction = jump(x, now, end)
        return move_x0(prediction, project(prediction.x0) - prediction.x0, now)

    return moved


def known(mask: Array, x0: Array) -> Project:
    """x0 where the mask is 0, and the prediction where it is 1: inpainting.

    Args:
        mask: 1 = repaint, in [0, 1], broadcastable to x0.
        x0: clean data, [b, ...], finite; it has no effect where the mask is 1.
    """
    return lambda predicted: (1 - mask) * x0 + mask * predicted


def agreeing(forward: Forward, inverse: Forward, measurement: Array) -> Project:
    """x0 + A⁺(y - A(x0)): super-resolution, colouring, any A with A(A⁺(y)) = y.

    Args:
        forward: A, linear.
        inverse: A⁺, from measurements to x0's shape.
        measurement: y.
    """
    return lambda predicted: predicted + inverse(measurement - forward(predicted))
