"""What recipes of networks of two times share: how (now, end) are drawn, and what is told.

The student is ``flow_maps.jumper``: it is told where to go in ``cond["end"]``, so a network needs
"end" among its ``scalars``.  It samples with the solver ``jump``.
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
from diffusion_jax.recipes.few_step.teachers import Tell, nothing

Times = Callable[[Array, int, Process], tuple[NoiseLevel, NoiseLevel]]
"""(key, b, process) -> (now, end), [b] each, ``now`` never the cleaner one."""


def ordered(proposal: Proposal, same: float = 0.0, to_clean: float = 0.0) -> Times:
    """Two draws of a proposal, the noisier one first (Geng et al. 2025, section 4.3).

    Args:
        proposal: of each level, one without importance weights.
        same: share of examples whose end is now, where the map is the denoiser.
        to_clean: share of the others whose end is the clean level, where samplers end: a proposal
            in log(sigma/alpha) or logit t draws none, and its time input can be far from all drawn.

    Raises:
        ValueError: if same or to_clean is not in [0, 1].
    """
    _check(same=same, to_clean=to_clean)

    def draw(key: Array, b: int, process: Process) -> tuple[NoiseLevel, NoiseLevel]:
        of_one, of_other, of_same = jax.random.split(key, 3)
        one, other = (proposal.draw(k, b, process, ())[0] for k in (of_one, of_other))
        now = choose(one.log_snr < other.log_snr, one, other)
        end = choose(one.log_snr < other.log_snr, other, one)
        end = choose(_chosen(jax.random.fold_in(of_same, 1), to_clean, b), clean(now), end)
        return now, choose(_chosen(of_same, same, b), now, end)

    return draw


def below(proposal: Proposal, to_clean: float = 0.0) -> Times:
    """``now`` by a proposal, ``end`` uniform in time between it and 0.

    Args:
        proposal: of ``now``, one without importance weights.
        to_clean: share of examples whose end is the clean level, where samplers end.

    Raises:
        ValueError: if to_clean is not in [0, 1].
    """
    _check(to_clean=to_clean)

    def draw(key: Array, b: int, process: Process) -> tuple[NoiseLevel, NoiseLevel]:
        of_now, of_end, of_clean = jax.random.split(key, 3)
        now = proposal.draw(of_now, b, process, ())[0]
        end = process.at(process.quantise(now.t * jax.random.uniform(of_end, (b,), now.t.dtype)))
        return now, choose(_chosen(of_clean, to_clean, b), clean(now), end)

    return draw


def _chosen(key: Array, share: float, b: int) -> Array:
    return jax.random.bernoulli(key, share, (b,))


def _check(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share} is a share of the batch: give a number from 0 to 1")


def choose(where: Array, one: NoiseLevel, other: NoiseLevel) -> NoiseLevel:
    """For each example the level of ``one`` where ``where``, bool [b], else that of ``other``."""
    return jax.tree.map(lambda a, c: jnp.where(where, a, c), one, other)


def diagonal(jumper: Jumper) -> Denoiser:
    """The map to where it starts: the denoiser that a network of two times has in it."""
    return lambda x, level, cond: jumper(x, level, level, cond)


def initialiser(
    model: Model, init_net: Callable[[Array, Array, Any], Params], tell: Tell = nothing
) -> Callable[[Array, dict[str, Array]], Params]:
    """``teachers.initialiser`` of a network that is told ``end`` too."""

    def told(key: Array, b: int) -> dict[str, Array]:
        return {**tell(key, b), END: jnp.zeros((b,))}

    return teachers.initialiser(model, init_net, told)
