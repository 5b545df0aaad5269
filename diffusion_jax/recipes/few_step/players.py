"""What recipes that train several networks share: turns, student outputs, the fake score.

A step takes one gradient of one scalar, which is the sum of the players' losses,

    L = [its turn]·L_net(net; sg fake, sg D) + L_fake(fake; sg y) + L_D(discriminator D; sg y),

y the student's output: no player's gradient contains another's loss.  The student is a denoiser at
a few levels, whose x0 is its output; the fake score is a network of the same architecture that is
trained on these outputs, and so estimates the score of the student's distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import losses
from diffusion_jax.core.bounds import Clip
from diffusion_jax.core.control_flow import when
from diffusion_jax.core.process import Process, corrupt
from diffusion_jax.core.targets import denoiser, network_output
from diffusion_jax.core.turns import is_turn
from diffusion_jax.core.types import Cond, Denoise, Model, NoiseLevel, Params, like
from diffusion_jax.recipes.few_step import teachers
from diffusion_jax.recipes.few_step.teachers import stop_gradient

NET, FAKE, DISCRIMINATOR = "net", "fake", "discriminator"
"""The keys of params."""

DrawLevels = Callable[[Array, int, Process], NoiseLevel]
"""(key, b, process) -> levels [b]."""

Loss = Callable[[Params], tuple[Array, dict[str, Array]]]
"""One player's parameters -> (scalar to minimise, metrics)."""

StudentInput = Callable[[Array, Params, Cond, Array], tuple[Array, NoiseLevel]]
"""(key, the student's parameters, cond, x0 of the batch) -> (x, level [b]): the noisy input that
the student denoises; without gradient."""


def student_output(
    model: Model, net: Params, x: Array, level: NoiseLevel, cond: Cond, key: Array,
    clip: Clip,
) -> Array:  # fmt: skip
    """y, the student's x0 at (x, level, cond), clipped."""
    return clip(denoiser(model, {NET: net}, key)(x, level, cond).x0)


def uniform_levels(low: float = 0.02, high: float = 0.98) -> DrawLevels:
    """t ~ U(low, high), on a table rounded up to its next level.

    Raises:
        ValueError: if these are not 0 <= low < high <= 1.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"times from {low} to {high}: give 0 <= low < high <= 1")

    def draw_levels(key: Array, b: int, process: Process) -> NoiseLevel:
        t = jax.random.uniform(key, (b,), jnp.result_type(float), minval=low, maxval=high)
        return process.at(process.quantise(t))

    return draw_levels


def backward_simulation(model: Model, levels: NoiseLevel) -> StudentInput:
    """Inputs from the student's own sampler: from pure noise to x0, noised to the next level, ...

    "Backward simulation" (Yin et al. 2024b, section 4.5): the student is trained on the inputs that
    it gets when it samples.  One of the levels is drawn for the whole batch, as in their code.

    Args:
        model: the student's.
        levels: [n] of the sampler's grid, noisiest first; n = 1 is pure noise alone.
    """
    n = levels.t.shape[0]
    at = lambda k: jax.tree.map(lambda leaf: leaf[k], levels)

    def student_input(key: Array, params: Params, cond: Cond, x0: Array):
        x_key, k_key, noise_key = jax.random.split(key, 3)
        student = denoiser(model, stop_gradient(params))

        def next_x(k: Array, x: Array) -> Array:
            eps = jax.random.normal(jax.random.fold_in(noise_key, k), x.shape, x.dtype)
            return corrupt(student(x, at(k), cond).x0, eps, at(k + 1)).astype(x.dtype)

        x = jnp.hypot(levels.alpha[0], levels.sigma[0]) * jax.random.normal(x_key, x0.shape)
        k = jax.random.randint(k_key, (), 0, n) if n > 1 else 0
        x = jax.lax.fori_loop(0, k, next_x, x.astype(x0.dtype)) if n > 1 else x.astype(x0.dtype)
        return stop_gradient(x), jax.tree.map(lambda c: jnp.broadcast_to(c, x.shape[:1]), at(k))

    return student_input


def noised_data(levels: NoiseLevel) -> StudentInput:
    """Data of the batch, each example noised to a random one of the levels (Sauer et al. 2023).

    Args:
        levels: [n] of the sampler's grid, the first so noisy that nothing is left of the data.
    """

    def student_input(key: Array, params: Params, cond: Cond, x0: Array):
        k_key, noise_key = jax.random.split(key)
        k = jax.random.randint(k_key, x0.shape[:1], 0, levels.t.shape[0])
        level = jax.tree.map(lambda leaf: leaf[k], levels)
        return corrupt(x0, jax.random.normal(noise_key, x0.shape, x0.dtype), level), level

    return student_input


def add_noise(
    key: Array, draw_levels: DrawLevels, x0: Array, process: Process
) -> tuple[Array, Array, NoiseLevel]:
    """(x, eps, level [b]): clean data, real or generated, noised to random levels."""
    level_key, noise_key = jax.random.split(key)
    level = draw_levels(level_key, x0.shape[0], process)
    eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
    return corrupt(x0, eps, level), eps, level


def frozen_denoiser(model: Model, net: Params, cond: Cond) -> Denoise:
    """A player's network as a Denoise; no gradient flows into its parameters."""
    return lambda x, level: denoiser(model, {NET: stop_gradient(net)})(x, level, cond)


def denoising_loss(
    model: Model, net: Params, key: Array, generated: Array, cond: Cond, draw_levels: DrawLevels
) -> Array:
    """The loss of the fake score: the error of its output F on the student's outputs, [].

    Args:
        model: the student's, whose network and target it shares.
        net: the fake score's parameters.
        key: for levels, noise and dropout.
        generated: the student's output, [b, ...]; no gradient flows into it.
        cond: the condition that it was generated for.
        draw_levels: how levels are drawn.
    """
    noise_key, net_key = jax.random.split(key)
    x, eps, level = add_noise(noise_key, draw_levels, stop_gradient(generated), model.process)
    out = network_output(model, {NET: net}, x, level, cond, net_key)
    return losses.regression(model.target, out, stop_gradient(generated), eps, level).mean()


def on_turn(loss: Loss, params: Params, step: Array, every: int) -> tuple[Array, dict[str, Array]]:
    """One player's loss and metrics in the last of ``every`` steps; otherwise 0, without gradient.

    The gradient is taken inside the branch (``control_flow.when``), so that on backends with
    branches other steps neither compute it nor keep its activations; it is the gradient in
    ``params`` alone, whatever else the loss reads.

    Args:
        loss: params -> (scalar, metrics).
        params: the player's parameters.
        step: ``Context.step``.
        every: as for the player's optimiser (``core.turns``).
    """
    work = lambda: jax.value_and_grad(loss, has_aux=True)(stop_gradient(params))
    if every == 1:
        (value, metrics), grads = work()
    else:
        (value, metrics), grads = when(is_turn(step, every), work)
    slopes = jax.tree.map(
        lambda p, g: jnp.sum(stop_gradient(g) * (p - stop_gradient(p))), params, grads
    )
    return stop_gradient(value) + sum(jax.tree.leaves(slopes)), stop_gradient(metrics)


def loss_with_gradient(x: Array, gradient: Array) -> Array:
    """½·mean‖x - sg(x - gradient)‖², []: a loss whose gradient in x is ``gradient``/size.

    For recipes that are given by a gradient in place of a loss.
    """
    return 0.5 * jnp.mean((x - stop_gradient(x - gradient)) ** 2)


def normaliser(generated: Array, x0: Array, minimum: float = 1e-5) -> Array:
    """mean|generated - x0| of each example, the weight's denominator in distribution matching.

    Args:
        generated: the student's output.
        x0: the teacher's x0 at the noised output.
        minimum: lower bound of the result.

    Returns:
        [b, 1 ...].
    """
    return stop_gradient(
        like(jnp.maximum(losses.mean_per_example(jnp.abs(generated - x0)), minimum), generated)
    )


def spread(x: Array) -> Array:
    """The standard deviation over the batch, averaged over dimensions, []: 0 if all are equal."""
    return jnp.mean(jnp.std(x, axis=0))


def initialiser(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    fake: bool = True,
    heads: Callable[[Array, Params, Array, Cond], Params] | None = None,
) -> Callable[[Array, dict[str, Array]], Params]:
    """``Recipe.init`` for several players.

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> a network's parameters.
        fake: whether there is a fake score.
        heads: (key, a network's parameters, x, cond) -> the discriminator's; None for none.
    """
    init_student = teachers.initialiser(model, init_net)

    def init(key: Array, batch: dict[str, Array]) -> Params:
        net_key, heads_key, codec_key = jax.random.split(key, 3)
        params = init_student(net_key, batch)
        if fake:
            params[FAKE] = jax.tree.map(jnp.array, params[NET])
        if heads is not None:
            x0, cond = teachers.encode(model, {}, batch, codec_key)
            params[DISCRIMINATOR] = heads(heads_key, params[NET], x0, cond)
        return params

    return init
