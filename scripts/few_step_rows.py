"""What scripts/few_step_report.py trains: each method, its setting, and what else was tried.

The first setting of a row is the one that the table shows; the others are what ``--search``
compares it with.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Fields = Mapping[str, Any]
"""Field of a config, as "optimizer.learning_rate" -> value."""

_NONE: Fields = MappingProxyType({})


class Setting(NamedTuple):
    """One way to train a method.

    Attributes:
        distill: what ``config.distill`` says, a string of each stage; each stage's student is the
            next one's teacher.
        fields: other fields of the config.
    """

    distill: tuple[str, ...]
    fields: Fields = _NONE


class Row(NamedTuple):
    """A method.

    Attributes:
        config: of configs/distill_*.py.
        settings: by name, the chosen one first.
        stage: calls of the student -> which stage made it; None for the last.
        sampler: fields of config.sampler.
    """

    config: str
    settings: dict[str, Setting]
    stage: dict[int, int] | None = None
    sampler: Fields = _NONE


def _one(distill: str, rate: float = 1e-3, **more: Any) -> Setting:
    fields = {"learning_rate": rate, "warmup": 20, "schedule": "cosine()", **more}
    return Setting((distill,), {f"optimizer.{k}": v for k, v in fields.items()})


def _halved(*steps: int, rate: float = 1e-3) -> Setting:
    """Progressive stages, the first of a guided teacher."""
    scales = [2.0, *(1.0 for _ in steps[1:])]
    stages = [f"progressive(steps={n}, scale={s})" for n, s in zip(steps, scales, strict=True)]
    fields = {"learning_rate": rate, "warmup": 10, "schedule": "cosine()"}
    return Setting(tuple(stages), {f"optimizer.{k}": v for k, v in fields.items()})


ROWS: dict[str, Row] = {
    "progressive": Row(
        "progressive",
        {
            "16 to 1": _halved(16, 8, 4, 2, 1),
            "4 to 1": _halved(4, 2, 1),
            "16 to 1, rate 3e-4": _halved(16, 8, 4, 2, 1, rate=3e-4),
        },
        stage={4: -3, 2: -2, 1: -1},
    ),
    "CD": Row(
        "cd",
        {
            "18 levels, DDIM, pseudo-Huber": _one(
                "consistency_distillation(levels=18, scale=2.0, solver='ddim', "
                "distance='pseudo_huber')"
            ),
            "160 levels": _one(
                "consistency_distillation(levels=160, scale=2.0, solver='ddim', "
                "distance='pseudo_huber')"
            ),
            "18 levels": _one("consistency_distillation(levels=18, scale=2.0)"),
            "18 levels, rate 5e-4": _one("consistency_distillation(levels=18, scale=2.0)", 5e-4),
            "18 levels, rate 5e-4 all along": _one(
                "consistency_distillation(levels=18, scale=2.0)", 5e-4, schedule="constant()"
            ),
            "18 levels, l1": _one(
                "consistency_distillation(levels=18, scale=2.0, distance='absolute')"
            ),
            "8 levels": _one("consistency_distillation(levels=8, scale=2.0)"),
        },
    ),
    "CT": Row(
        "ct",
        {
            "to 80 levels, pseudo-Huber": _one(
                "consistency_training(last=80, distance='pseudo_huber')"
            ),
            "to 20 levels, pseudo-Huber": _one(
                "consistency_training(last=20, distance='pseudo_huber')"
            ),
            "to 20 levels": _one("consistency_training(last=20)"),
            "to 80 levels": _one("consistency_training(last=80)"),
        },
    ),
    "iCT": Row(
        "ict",
        {
            "to 40 levels, mean 0.5": _one("improved_consistency(last=40, mean=0.5)"),
            "to 40 levels, mean -1.1": _one("improved_consistency(last=40)"),
            "to 160 levels, mean 0.5": _one("improved_consistency(last=160, mean=0.5)"),
        },
    ),
    "ECT": Row(
        "ect",
        {
            "3 stages, mean 0": _one("easy(stages=3, mean=0.0)"),
            "4 stages, mean 0.5": _one("easy(stages=4, mean=0.5)"),
            "8 stages, mean 0.5": _one("easy(stages=8, mean=0.5)"),
            "4 stages, mean -1.1": _one("easy(stages=4)"),
        },
    ),
    "LCM": Row(
        "lcm",
        {
            "20 levels, rate 1e-3": _one("latent_consistency(levels=20, low=1.0, high=4.0)"),
            "20 levels": _one("latent_consistency(levels=20, low=1.0, high=4.0)", 5e-4),
            "50 levels": _one("latent_consistency(levels=50, low=1.0, high=4.0)"),
        },
        sampler={"guidance_scale": 2.0},
    ),
    "sCD": Row(
        "scd",
        {
            "mean 0, sigma_data 1, rate 1e-4": _one(
                "continuous_distillation(scale=2.0, mean=0.0, sigma_data=1.0)", 1e-4
            ),
            "mean 0, rate 1e-4": _one("continuous_distillation(scale=2.0, mean=0.0)", 1e-4),
            "mean 0": _one("continuous_distillation(scale=2.0, mean=0.0)", 5e-4),
            "mean 0, rate 1e-3": _one("continuous_distillation(scale=2.0, mean=0.0)"),
            "mean -0.8": _one("continuous_distillation(scale=2.0)"),
        },
    ),
    "sCT": Row(
        "sct",
        {
            "mean 0, sigma_data 1, rate 1e-4": _one(
                "continuous_training(mean=0.0, sigma_data=1.0)", 1e-4
            ),
            "mean 0": _one("continuous_training(mean=0.0)", 5e-4),
            "mean 0, rate 1e-3": _one("continuous_training(mean=0.0)"),
            "mean -1": _one("continuous_training()"),
        },
    ),
    "MeanFlow": Row(
        "mean_flow",
        {
            "of the teacher, mean 0.5, std 1.2": _one(
                "mean_flow(scale=2.0, mean=0.5, std=1.2, same=0.5, to_clean=0.25, "
                "follow='teacher', distance='pseudo_huber')",
                3e-4,
            ),
            "of the teacher, a quarter to clean": _one(
                "mean_flow(scale=2.0, mean=0.0, std=2.0, same=0.25, to_clean=0.25, "
                "follow='teacher', distance='pseudo_huber')"
            ),
            "of the teacher, a quarter to clean, rate 2e-4": _one(
                "mean_flow(scale=2.0, mean=0.0, std=2.0, same=0.25, to_clean=0.25, "
                "follow='teacher', distance='pseudo_huber')",
                2e-4,
            ),
            "of the teacher, std 1.2, same 0.25": _one(
                "mean_flow(scale=2.0, mean=0.5, std=1.2, same=0.25, to_clean=0.25, "
                "follow='teacher', distance='pseudo_huber')",
                3e-4,
            ),
            "of the teacher, half to clean, same 0.1": _one(
                "mean_flow(scale=2.0, mean=0.3, std=1.6, same=0.1, to_clean=0.5, "
                "follow='teacher', distance='pseudo_huber')",
                3e-4,
            ),
            "mean 0, std 2, same 0.5": _one(
                "mean_flow(scale=2.0, mean=0.0, std=2.0, same=0.5)", 5e-4
            ),
            "mean -0.4, same 0.75": _one("mean_flow(scale=2.0)"),
        },
        sampler={"solver": "jump(gamma=1.0)"},
    ),
    "improved MeanFlow": Row(
        "improved_mean_flow",
        {
            "of the teacher, mean 0.5, std 1.2": _one(
                "improved_mean_flow(scale=2.0, mean=0.5, std=1.2, same=0.5, to_clean=0.25, "
                "follow='teacher', distance='pseudo_huber')",
                3e-4,
            ),
            "mean 0, std 2": _one("improved_mean_flow(scale=2.0, mean=0.0, std=2.0)", 5e-4),
            "mean -0.4": _one("improved_mean_flow(scale=2.0)"),
        },
        sampler={"solver": "jump(gamma=1.0)"},
    ),
    "shortcut": Row(
        "shortcut",
        {
            "finest 16, of the teacher": _one(
                "shortcut(finest=16, bootstrap=0.5, follow='teacher', scale=2.0)"
            ),
            "finest 16": _one("shortcut(finest=16, bootstrap=0.5)", 5e-4),
            "finest 128": _one("shortcut(finest=128)"),
        },
    ),
    "IMM": Row(
        "imm",
        {
            "gap 0.1, a quarter to clean, of the teacher": _one(
                "moment_matching(particles=4, gap=0.1, to_clean=0.25, follow='teacher', scale=2.0)"
            ),
            "gap 0.1, a quarter to clean": _one(
                "moment_matching(particles=4, gap=0.1, to_clean=0.25)"
            ),
            "gap 0.1": _one("moment_matching(particles=4, gap=0.1)", 5e-4),
            "gap 0.02": _one("moment_matching(particles=4)"),
            "gap 0.1, 8 particles": _one("moment_matching(particles=8, gap=0.1)"),
        },
        sampler={"solver": "jump(gamma=1.0)"},
    ),
    "CTM": Row(
        "ctm",
        {
            "4 steps, pseudo-Huber": _one(
                "trajectory(steps=4, scale=2.0, distance='pseudo_huber')", 5e-4
            ),
            "4 steps": _one("trajectory(steps=4, scale=2.0)", 5e-4),
            "4 steps, rate 1e-3": _one("trajectory(steps=4, scale=2.0)"),
        },
    ),
    "reflow": Row(
        "reflow",
        {
            "8 steps": _one("reflow(steps=8, scale=2.0)", 5e-4),
            "8 steps, rate 1e-3": _one("reflow(steps=8, scale=2.0)"),
        },
    ),
    "DMD": Row(
        "dmd",
        {
            "its score 3 times as fast": _one(
                "distribution_matching(ratio=1, scale=2.0, fake=3.0)", 3e-4
            ),
            "ratio 5": _one("distribution_matching(ratio=5, scale=2.0)", 5e-4),
        },
    ),
    "DMD2": Row(
        "dmd2",
        {
            "its score 3 times as fast": _one(
                "improved_distribution_matching(ratio=1, scale=2.0, fake=3.0)", 3e-4
            ),
            "its score twice as fast": _one(
                "improved_distribution_matching(ratio=1, scale=2.0, fake=2.0)", 3e-4
            ),
            "rate 1e-3": _one("improved_distribution_matching(ratio=1, scale=2.0)"),
            "ratio 5": _one("improved_distribution_matching(ratio=5, scale=2.0)", 5e-4),
        },
    ),
    "DMD2 of 4": Row(
        "dmd2",
        {
            "its score 3 times as fast": _one(
                "improved_distribution_matching(ratio=1, steps=4, scale=2.0, fake=3.0)", 3e-4
            )
        },
    ),
    "SiD": Row(
        "sid",
        {
            "its score 3 times as fast": _one("score_identity(ratio=1, scale=2.0, fake=3.0)", 3e-4),
            "ratio 5": _one("score_identity(ratio=5, scale=2.0)", 5e-4),
        },
    ),
    "ADD": Row(
        "add",
        {
            "of 4, weight 0.05": _one(
                "adversarial(ratio=1, steps=4, scale=2.0, weight=0.05)", 3e-4
            ),
            "of 4, distillation 0.3, unguided": _one(
                "adversarial(ratio=1, steps=4, distillation=0.3)", 1e-4
            ),
            "distillation 1": _one("adversarial(ratio=1, scale=2.0, distillation=1.0)", 3e-4),
        },
    ),
    "LADD": Row(
        "ladd",
        {
            "of 4, distillation 0.3, unguided": _one(
                "latent_adversarial(ratio=1, steps=4, distillation=0.3)", 1e-4
            ),
            "distillation 1": _one(
                "latent_adversarial(ratio=1, scale=2.0, distillation=1.0)", 3e-4
            ),
        },
    ),
}
"""Methods by name, in the order they are trained."""
