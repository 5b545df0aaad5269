"""What recipes of networks of two times share: how (now, end) are drawn and conditioned on.

The student is ``flow_maps.jumper``: it is conditioned on its destination, ``cond["end"]``, so a
network needs "end" among its ``scalars``.  It samples with the solver ``jump``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.flow_maps import END
from diffusion_jax.core.process import Process, clean
from diffusion_jax.core.proposals import Proposal
from diffusion_jax.core.types import Denoiser, Jumper, Model, NoiseLevel, Params
from diffusion_jax.recipes.few_step import teachers
from diffusion_jax.recipes.few_step.teachers import ExtraCond, no_extra_cond

Times = Callable[[Array, int, Process], tuple[NoiseLevel, NoiseLevel]]
"""(key, b, process) -> (now, end), [b] each, ``now`` never cleaner than ``end``."""


def ordered(proposal: Proposal, same: float = 0.0, to_clean: float = 0.0) -> Times:
    """Two draws of a proposal, the noisier one first (Geng et al. 2025, section 4.3).

    Args:
        proposal: how each level is drawn; one without importance weights.
        same: share of examples with end = now, where the map is the denoiser.
        to_clean: share of the others that end at the clean level, as samplers do: a proposal in
            log(sigma/alpha) or logit t never draws it, and its time input can be far from all
            that are drawn.

    Raises:
        ValueError: if same or to_clean is not in [0, 1].
    """
    _check_shares(same=same, to_clean=to_clean)

    def draw(key: Array, b: int, process: Process) -> tuple[NoiseLevel, NoiseLevel]:
        one_key, other_key, same_key = jax.random.split(key, 3)
        one, other = (proposal.draw(k, b, process, ())[0] for k in (one_key, other_key))
        now = select(one.log_snr < other.log_snr, one, other)
        end = select(one.log_snr < other.log_snr, other, one)
        end = select(_draw_mask(jax.random.fold_in(same_key, 1), to_clean, b), clean(now), end)
        return now, select(_draw_mask(same_key, same, b), now, end)

    return draw


def uniform_end(proposal: Proposal, to_clean: float = 0.0) -> Times:
    """``now`` from a proposal, ``end`` uniform in time between it and 0.

    Args:
        proposal: how ``now`` is drawn; one without importance weights.
        to_clean: share of examples that end at the clean level, as samplers do.

    Raises:
        ValueError: if to_clean is not in [0, 1].
    """
    _check_shares(to_clean=to_clean)

    def draw(key: Array, b: int, process: Process) -> tuple[NoiseLevel, NoiseLevel]:
        now_key, end_key, clean_key = jax.random.split(key, 3)
        now = proposal.draw(now_key, b, process, ())[0]
        end = process.at(process.quantise(now.t * jax.random.uniform(end_key, (b,), now.t.dtype)))
        return now, select(_draw_mask(clean_key, to_clean, b), clean(now), end)

    return draw


def _draw_mask(key: Array, share: float, b: int) -> Array:
    return jax.random.bernoulli(key, share, (b,))


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share} is a share of the batch: give a number from 0 to 1")


def select(where: Array, one: NoiseLevel, other: NoiseLevel) -> NoiseLevel:
    """For each example the level of ``one`` where ``where``, bool [b], else that of ``other``."""
    return jax.tree.map(lambda a, c: jnp.where(where, a, c), one, other)


def diagonal(jumper: Jumper) -> Denoiser:
    """The jump with end = now: the denoiser that a network of two times contains."""
    return lambda x, level, cond: jumper(x, level, level, cond)


def initialiser(
    model: Model,
    init_net: Callable[[Array, Array, Any], Params],
    extra_cond: ExtraCond = no_extra_cond,
) -> Callable[[Array, dict[str, Array]], Params]:
    """``teachers.initialiser`` for a network that is conditioned on ``end`` too."""

    def extra_cond_and_end(key: Array, b: int) -> dict[str, Array]:
        return {**extra_cond(key, b), END: jnp.zeros((b,))}

    return teachers.initialiser(model, init_net, extra_cond_and_end)
