"""DreamBooth (Ruiz et al. 2023, section 3.2): a few pictures of one thing, beside its kind's own.

    loss = loss(pictures of the thing) + weight·loss(pictures of its kind)                    (1)

The second summand, prior preservation (their equation 2), keeps "a cat" any cat while "a sks cat"
becomes this one.  The pictures of the kind are the model's own samples, made before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from diffusion_jax.core.types import Recipe, Report

PRIOR = "prior_"
"""A batch has each of its arrays a second time under this prefix: the pictures of the kind."""


def dreambooth(recipe: Recipe, weight: float = 1.0) -> Recipe:
    """Equation (1) for any recipe: of all weights, or of ``lora.adapted`` ones.

    Its batches have "prior_image", and what else the recipe reads, beside "image"; of either any
    number of examples.  It reports both losses.

    Args:
        recipe: see ``core.types.Recipe``.
        weight: of the kind's loss; 0 trains on the thing alone.

    Raises:
        ValueError: for a negative weight, and from the loss for a batch without the kind.
    """
    if weight < 0:
        raise ValueError(f"config.prior.weight = {weight!r} must be 0 or more")

    def loss(params, context, batch, key):
        thing, kind = parted(batch)
        of_thing, of_kind = jax.random.split(key)
        first, report = recipe.loss(params, context, thing, of_thing)
        after = context._replace(carry=report.carry)
        second, last = recipe.loss(params, after, kind, of_kind)
        metrics = {**report.metrics, "instance_loss": first, "prior_loss": second}
        return first + weight * second, Report(metrics, last.carry)

    init = lambda key, batch: recipe.init(key, parted(batch)[0])
    return recipe._replace(init=init, loss=loss)


def parted(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch as (the thing's, its kind's), both with the plain names."""
    thing = {name: x for name, x in batch.items() if not name.startswith(PRIOR)}
    kind = {name.removeprefix(PRIOR): x for name, x in batch.items() if name.startswith(PRIOR)}
    if set(thing) != set(kind):
        raise ValueError(
            f"the batch has {sorted(thing)} of the thing and {sorted(kind)} of its kind; "
            "DreamBooth needs the same arrays of both"
        )
    return thing, kind
