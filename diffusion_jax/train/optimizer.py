"""AdamW with a learning rate that warms up and decays, as optax transformations.

    rate(step) = peak · min((step + 1)/warmup, 1) · decay(step)                           (1)

with step counted from 0: the first rate is above 0, and the peak is reached at step warmup - 1.
The rate is a separate function, so it can be plotted and logged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion_jax.core.turns import is_turn

Rate = Callable[[Any], Array]
"""Steps done, int32 [] -> a factor or a learning rate, float32 []."""

# Parameters with these names shift or scale channels; decaying them to 0 only hurts.
_UNDECAYED = ("bias", "scale")


def constant() -> Rate:
    """1."""
    return lambda step: jnp.float32(1)


def cosine(steps: int, final: float = 0.0) -> Rate:
    """From 1 to ``final`` along half a cosine over ``steps`` (Loshchilov & Hutter 2017, eq. 5)."""
    _check_final("cosine", steps, final)
    falling = lambda step: 0.5 * (1 + jnp.cos(jnp.pi * _share(step, steps)))
    return lambda step: final + (1 - final) * falling(step)


def linear(steps: int, final: float = 0.0) -> Rate:
    """From 1 to ``final`` along a line over ``steps``."""
    _check_final("linear", steps, final)
    return lambda step: 1 + (final - 1) * _share(step, steps)


def inverse_sqrt(reference: int) -> Rate:
    """1/sqrt(max(step/reference, 1)) (as EDM2, Karras et al. 2024): it needs no end.

    Args:
        reference: steps after which it decays, > 0.
    """
    if not reference > 0:
        raise ValueError(
            f"config.optimizer.schedule: inverse_sqrt(reference={reference!r}) must be > 0"
        )
    return lambda step: jax.lax.rsqrt(jnp.maximum(jnp.float32(step) / reference, 1.0))


def learning_rate(peak: float, decay: Rate, warmup: int = 0) -> Rate:
    """Equation (1).

    Args:
        peak: the largest rate, > 0.
        decay: one of ``SCHEDULES``.
        warmup: steps, 0 for none.

    Raises:
        ValueError: for a peak that is not positive or a negative warm-up.
    """
    if not peak > 0:
        raise ValueError(f"config.optimizer.learning_rate = {peak!r} must be positive")
    if warmup < 0:
        raise ValueError(f"config.optimizer.warmup = {warmup!r} must be 0 or more steps")
    rising = lambda step: jnp.minimum((jnp.float32(step) + 1) / max(warmup, 1), 1.0)
    return lambda step: jnp.float32(peak) * rising(step) * decay(step)


def adamw(
    rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) after clipping the gradient's global norm.

    Args:
        rate: steps done -> learning rate.
        b1, b2: decays of the first and second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: per unit of learning rate; not on biases, norms' scales and vectors.
        clip: largest global norm; 0 for no clip.

    Raises:
        ValueError: for a value out of range, naming its config field.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"config.optimizer.{name} = {value!r} must be in [0, 1)")
    for name, value in (("eps", eps), ("weight_decay", weight_decay), ("clip", clip)):
        if not value >= 0:
            raise ValueError(f"config.optimizer.{name} = {value!r} must be 0 or more")
    adam = optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(clip), adam) if clip else adam


def grouped(
    make: Callable[[float, int], optax.GradientTransformation], groups: Sequence[Sequence[Any]]
) -> optax.GradientTransformationExtraArgs:
    """One optimiser for each top-level group of parameters, independent of each other.

    Args:
        make: (factor of the learning rate, every) -> optimiser, which counts the group's updates.
        groups: (key of params, factor), or (key, factor, every) for a group that is updated only in
            the last of ``every`` steps; all keys of params must be there.

    Returns:
        An optimiser whose update receives the ``step``, if a group has ``every``.

    Raises:
        ValueError: for an ``every`` below 1; when it is initialised, for params with other keys.
    """
    made: dict[Any, optax.GradientTransformation] = {
        str(name): _of_group(make, name, *rest) for name, *rest in groups
    }

    def labels(params):
        for name in params:
            if name not in made:
                raise ValueError(
                    f"config.optimizer.groups lacks {name!r}, which is trained; add ({name!r}, 1.0)"
                )
        return {name: jax.tree.map(lambda _, name=name: name, params[name]) for name in params}

    return optax.partition(made, labels)


def _of_group(make, name: str, factor: float, every: int = 1) -> optax.GradientTransformation:
    if every < 1 or every != int(every):
        raise ValueError(
            f"config.optimizer.groups: ({name!r}, {factor}, {every}) is updated in the last of so "
            "many steps; give 1 or more"
        )
    return in_turn(make(float(factor), int(every)), int(every))


def in_turn(inner: optax.GradientTransformation, every: int) -> optax.GradientTransformation:
    """An optimiser that updates in the last of ``every`` steps, and otherwise changes nothing.

    The step is the run's (``step`` of an update), not a count of updates, so that losses that are
    computed in these steps alone (``core.turns``) cannot get out of phase with it.
    """
    if every == 1:
        return inner
    of_step = optax.with_extra_args_support(inner)

    def update(updates, state, params=None, **more) -> Any:
        step = more["step"]
        work = lambda: of_step.update(updates, state, params, **more)
        rest = lambda: (optax.tree.zeros_like(updates), state)
        return jax.lax.cond(is_turn(step, every), work, rest)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def decayed(params: Any) -> Any:
    """True for each leaf of params that weight decay applies to."""

    def one(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf.ndim > 1 and not name.endswith(_UNDECAYED)

    return jax.tree_util.tree_map_with_path(one, params)


def _share(step: Any, steps: int) -> Array:
    return jnp.minimum(jnp.float32(step) / steps, 1.0)


def _check_final(name: str, steps: int, final: float) -> None:
    if steps < 1 or not 0 <= final <= 1:
        raise ValueError(
            f"config.optimizer.schedule: {name}(steps={steps!r}, final={final!r}) "
            "needs steps >= 1 and final in [0, 1]"
        )


SCHEDULES: dict[str, Callable[..., Rate]] = {
    "constant": constant,
    "cosine": cosine,
    "inverse_sqrt": inverse_sqrt,
    "linear": linear,
}
