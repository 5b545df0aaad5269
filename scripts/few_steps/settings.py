"""How a row of few_step_rows.py is written: a method, its settings, and the stages of each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Fields = Mapping[str, Any]
"""Field of a config, as "optimizer.learning_rate" -> value."""

NONE: Fields = MappingProxyType({})


class Stage(NamedTuple):
    """A run: ``config`` of configs/distill/*.py, what its ``distill`` says, and other fields."""

    config: str
    distill: str
    fields: Fields = NONE


class Setting(NamedTuple):
    """One way to train a method: stages of equal length, each the teacher of the next."""

    stages: tuple[Stage, ...]


class Row(NamedTuple):
    """A method.

    Attributes:
        settings: by name, the chosen one first.
        stage: calls of the student -> which stage made it; None for the last.
        sampler: fields of config.sampler.
    """

    settings: dict[str, Setting]
    stage: dict[int, int] | None = None
    sampler: Fields = NONE


def one(config: str, distill: str, rate: float = 1e-3, **more: Any) -> Setting:
    """A single stage, of an optimiser's rate and fields."""
    fields = {"learning_rate": rate, "warmup": 20, "schedule": "cosine()", **more}
    return Setting((Stage(config, distill, {f"optimizer.{k}": v for k, v in fields.items()}),))


def then(first: Setting, second: Setting) -> Setting:
    """The student of one is the teacher of the other."""
    return Setting(first.stages + second.stages)


def halved(*steps: int, rate: float = 1e-3) -> Setting:
    """Progressive stages, the first of a guided teacher."""
    scales = [2.0, *(1.0 for _ in steps[1:])]
    texts = [f"progressive(steps={n}, scale={s})" for n, s in zip(steps, scales, strict=True)]
    stages = [one("progressive", text, rate, warmup=10).stages for text in texts]
    return Setting(sum(stages, ()))


CD = one(
    "cd",
    "consistency_distillation(levels=18, scale=2.0, solver='ddim', distance='pseudo_huber')",
)
"""A row's own, and the first stage of others."""
