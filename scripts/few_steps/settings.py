"""What a row of scripts/few_steps/rows.py is made of: a method, its settings and their stages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

ConfigFields = Mapping[str, Any]
"""Field of a config, as "optimizer.learning_rate" -> value."""

NO_FIELDS: ConfigFields = MappingProxyType({})


class Stage(NamedTuple):
    """A run: a ``config`` of configs/distill/*.py, its ``distill``, and other fields of it."""

    config: str
    distill: str
    fields: ConfigFields = NO_FIELDS


class Setting(NamedTuple):
    """One way to train a method: stages of equal length, each student the next one's teacher."""

    stages: tuple[Stage, ...]


class Row(NamedTuple):
    """A method.

    Attributes:
        settings: by name, the chosen one first.
        stage: sampling steps -> index of the stage whose student is sampled; None for the last.
        sampler: fields of config.sampler.
    """

    settings: dict[str, Setting]
    stage: dict[int, int] | None = None
    sampler: ConfigFields = NO_FIELDS


def single_stage(config: str, distill: str, rate: float = 1e-3, **more: Any) -> Setting:
    """A single stage with this learning rate and further fields of the optimiser."""
    fields = {"learning_rate": rate, "warmup": 20, "schedule": "cosine()", **more}
    return Setting((Stage(config, distill, {f"optimizer.{k}": v for k, v in fields.items()}),))


def two_stages(first: Setting, second: Setting) -> Setting:
    """``second`` after ``first``, whose student is its teacher."""
    return Setting(first.stages + second.stages)


def progressive_stages(*steps: int, rate: float = 1e-3) -> Setting:
    """Stages of progressive distillation, the first from a guided teacher."""
    scales = [2.0, *(1.0 for _ in steps[1:])]
    texts = [f"progressive(steps={n}, scale={s})" for n, s in zip(steps, scales, strict=True)]
    stages = [single_stage("progressive", text, rate, warmup=10).stages for text in texts]
    return Setting(sum(stages, ()))


CD = single_stage(
    "cd",
    "consistency_distillation(levels=18, scale=2.0, solver='ddim', distance='pseudo_huber')",
)
"""Consistency distillation: a row of its own, and the first stage of others."""
