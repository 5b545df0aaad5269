"""What recipes of several networks in one step share: turns, what a student makes, its own score.

A step takes one gradient of one scalar, which is the sum of what each player minimises,

    L = [its turn]·L_net(net; sg fake, sg D) + L_fake(fake; sg y) + L_D(discriminator D; sg y),

y what the student makes: no player's gradient has anything of another's loss.  The student is a
denoiser at a few levels, whose x0 is what it makes; the fake score is a network of the same kind
that is trained on what the student makes, and so knows the score of the student's distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core import losses
from diffusion_jax.core.bounds import Shown
from diffusion_jax.core.control_flow import when
from diffusion_jax.core.process import Process, corrupt
from diffusion_jax.core.targets import denoiser, network_output
from diffusion_jax.core.turns import is_turn
from diffusion_jax.core.types import Cond, Denoise, Model, NoiseLevel, Params, like
from diffusion_jax.recipes.few_step import teachers
from diffusion_jax.recipes.few_step.teachers import still

NET, FAKE, DISCRIMINATOR = "net", "fake", "discriminator"
"""The keys of params."""

Draw = Callable[[Array, int, Process], NoiseLevel]
"""(key, b, process) -> levels [b]."""

Loss = Callable[[Params], tuple[Array, dict[str, Array]]]
"""One player's parameters -> (scalar to minimise, metrics)."""

Start = Callable[[Array, Params, Cond, Array], tuple[Array, NoiseLevel]]
"""(key, the student's parameters, cond, x0 of the batch) -> (x, level [b]): what the student is
asked for the clean data of; without gradient."""


def made_by(
    model: Model, net: Params, x: Array, level: NoiseLevel, cond: Cond, key: Array,
    shown: Shown,
) -> Array:  # fmt: skip
    """y, what the student makes of (x, level, cond), as it is shown."""
    return shown(denoiser(model, {NET: net}, key)(x, level, cond).x0)


def between(low: float = 0.02, high: float = 0.98) -> Draw:
    """t ~ U(low, high), or the table's next level.

    Raises:
        ValueError: if these are not 0 <= low < high <= 1.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"times from {low} to {high}: give 0 <= low < high <= 1")

    def draw(key: Array, b: int, process: Process) -> NoiseLevel:
        t = jax.random.uniform(key, (b,), jnp.result_type(float), minval=low, maxval=high)
        return process.at(process.quantise(t))

    return draw


def simulated(model: Model, levels: NoiseLevel) -> Start:
    """The student's own way from pure noise, as it is sampled: to x0, noised to the next level.

    "Backward simulation" (Yin et al. 2024b, section 4.5): what the student is trained on is what it
    sees when it samples.  One of the levels is drawn for the whole batch, as in their code.

    Args:
        model: the student's.
        levels: [n] of the sampler's grid, noisiest first; for n = 1 it is pure noise.
    """
    n = levels.t.shape[0]
    at = lambda k: jax.tree.map(lambda leaf: leaf[k], levels)

    def start(key: Array, params: Params, cond: Cond, x0: Array):
        of_x, of_k, of_noise = jax.random.split(key, 3)
        student = denoiser(model, still(params))

        def on(k: Array, x: Array) -> Array:
            eps = jax.random.normal(jax.random.fold_in(of_noise, k), x.shape, x.dtype)
            return corrupt(student(x, at(k), cond).x0, eps, at(k + 1)).astype(x.dtype)

        x = jnp.hypot(levels.alpha[0], levels.sigma[0]) * jax.random.normal(of_x, x0.shape)
        k = jax.random.randint(of_k, (), 0, n) if n > 1 else 0
        x = jax.lax.fori_loop(0, k, on, x.astype(x0.dtype)) if n > 1 else x.astype(x0.dtype)
        return still(x), jax.tree.map(lambda c: jnp.broadcast_to(c, x.shape[:1]), at(k))

    return start


def noised_data(levels: NoiseLevel) -> Start:
    """Data of the batch, noised to one of the levels for each example (Sauer et al. 2023).

    Args:
        levels: [n] of the sampler's grid, the first so noisy that nothing is left of the data.
    """

    def start(key: Array, params: Params, cond: Cond, x0: Array):
        of_k, of_noise = jax.random.split(key)
        k = jax.random.randint(of_k, x0.shape[:1], 0, levels.t.shape[0])
        level = jax.tree.map(lambda leaf: leaf[k], levels)
        return corrupt(x0, jax.random.normal(of_noise, x0.shape, x0.dtype), level), level

    return start


def noised(key: Array, draw: Draw, x0: Array, process: Process) -> tuple[Array, Array, NoiseLevel]:
    """(x, eps, level [b]) of clean data, real or made, at levels that are drawn."""
    of_level, of_noise = jax.random.split(key)
    level = draw(of_level, x0.shape[0], process)
    eps = jax.random.normal(of_noise, x0.shape, x0.dtype)
    return corrupt(x0, eps, level), eps, level


def denoiser_of(model: Model, net: Params, cond: Cond) -> Denoise:
    """A player's network as a Denoise that stands still."""
    return lambda x, level: denoiser(model, {NET: still(net)})(x, level, cond)


def denoising(model: Model, net: Params, key: Array, made: Array, cond: Cond, draw: Draw) -> Array:
    """The loss of the fake score: the error of its own F on what the student makes, [].

    Args:
        model: the student's, whose network and target it shares.
        net: the fake score's parameters.
        key: of levels, noise and dropout.
        made: by the student, [b, ...]; stands still.
        cond: what it was made of.
        draw: the levels.
    """
    of_noise, of_net = jax.random.split(key)
    x, eps, level = noised(of_noise, draw, still(made), model.process)
    out = network_output(model, {NET: net}, x, level, cond, of_net)
    return losses.regression(model.target, out, still(made), eps, level).mean()


def on_turn(loss: Loss, params: Params, step: Array, every: int) -> tuple[Array, dict[str, Array]]:
    """One player's loss and metrics in the last of ``every`` steps; else 0, without gradient.

    The gradient is taken inside of the branch (``control_flow.when``), so that other steps neither
    compute, where there are branches, nor keep what it is made of; and it is that of ``params``
    alone, whatever else the loss reads.

    Args:
        loss: params -> (scalar, metrics).
        params: of the player whose loss it is.
        step: of ``Context``.
        every: of the player's optimiser (``core.turns``).
    """
    work = lambda: jax.value_and_grad(loss, has_aux=True)(still(params))
    if every == 1:
        (value, metrics), grads = work()
    else:
        (value, metrics), grads = when(is_turn(step, every), work)
    slopes = jax.tree.map(lambda p, g: jnp.sum(still(g) * (p - still(p))), params, grads)
    return still(value) + sum(jax.tree.leaves(slopes)), still(metrics)


def pulled(made: Array, towards: Array) -> Array:
    """½·mean‖made - sg(made - towards)‖²: its gradient in ``made`` is ``towards``/size, [].

    How a recipe states a gradient in place of a loss.
    """
    return 0.5 * jnp.mean((made - still(made - towards)) ** 2)


def normaliser(made: Array, x0: Array, least: float = 1e-5) -> Array:
    """mean|made - x0| of each example, by which distribution matching weighs levels: [b, 1 ...].

    Args:
        made: by the student.
        x0: what the teacher takes it for, once it is noised.
        least: of it.
    """
    return still(like(jnp.maximum(losses.mean_per_example(jnp.abs(made - x0)), least), made))


def spread(x: Array) -> Array:
    """The standard deviation over the batch, mean of all dimensions, []: 0 of one picture alone."""
    return jnp.mean(jnp.std(x, axis=0))


def initialiser(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    fake: bool = True,
    heads: Callable[[Array, Params, Array, Cond], Params] | None = None,
) -> Callable[[Array, dict[str, Array]], Params]:
    """``Recipe.init`` of several players.

    Args:
        model: the student's.
        init_net: (key, x [b, ...], cond) -> a network's parameters.
        fake: whether there is a fake score.
        heads: (key, a network's parameters, x, cond) -> the discriminator's; None for none.
    """
    own = teachers.initialiser(model, init_net)

    def init(key: Array, batch: dict[str, Array]) -> Params:
        of_net, of_heads, of_codec = jax.random.split(key, 3)
        params = own(of_net, batch)
        if fake:
            params[FAKE] = jax.tree.map(jnp.array, params[NET])
        if heads is not None:
            x0, cond = teachers.encode(model, {}, batch, of_codec)
            params[DISCRIMINATOR] = heads(of_heads, params[NET], x0, cond)
        return params

    return init
