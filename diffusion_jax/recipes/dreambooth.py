"""DreamBooth (Ruiz et al. 2023, section 3.2): a few pictures of an instance, and of its class.

    loss = loss(instance pictures) + weight·loss(class pictures)                              (1)

The second term, prior preservation (their equation 2), keeps "a cat" any cat while "a sks cat"
becomes this one.  The class pictures are samples of the model, generated before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from diffusion_jax.core.types import Recipe, Report

PRIOR = "prior_"
"""Prefix under which a batch has each of its arrays a second time, for the class pictures."""


def dreambooth(recipe: Recipe, weight: float = 1.0) -> Recipe:
    """Equation (1) for any recipe: over all weights, or a ``lora.adapted`` one.

    Its batches have "prior_image", and the recipe's other arrays with this prefix, beside "image";
    both of any number of examples.  It reports both losses.

    Args:
        recipe: see ``core.types.Recipe``.
        weight: weight of prior preservation; 0 trains on the instance alone.

    Raises:
        ValueError: for a negative weight, and from the loss for a batch without class pictures.
    """
    if weight < 0:
        raise ValueError(f"config.prior.weight = {weight!r} must be 0 or more")

    def loss(params, context, batch, key):
        instance, prior = split_batch(batch)
        instance_key, prior_key = jax.random.split(key)
        first, report = recipe.loss(params, context, instance, instance_key)
        after = context._replace(carry=report.carry)
        second, last = recipe.loss(params, after, prior, prior_key)
        metrics = {**report.metrics, "instance_loss": first, "prior_loss": second}
        return first + weight * second, Report(metrics, last.carry)

    init = lambda key, batch: recipe.init(key, split_batch(batch)[0])
    return recipe._replace(init=init, loss=loss)


def split_batch(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch as (instance batch, class batch), both without the prefix."""
    instance = {name: x for name, x in batch.items() if not name.startswith(PRIOR)}
    prior = {name.removeprefix(PRIOR): x for name, x in batch.items() if name.startswith(PRIOR)}
    if set(instance) != set(prior):
        raise ValueError(
            f"the batch has {sorted(instance)} of the instance and {sorted(prior)} of its class; "
            "DreamBooth needs the same arrays of both"
        )
    return instance, prior
