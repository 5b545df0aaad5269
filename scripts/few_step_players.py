"""The rows of few_step_rows.py of methods that train several networks in one step."""

from __future__ import annotations

from scripts.few_step_settings import Row, one

PLAYERS: dict[str, Row] = {
    "DMD": Row(
        {
            "its score 3 times as fast": one(
                "dmd", "distribution_matching(ratio=1, scale=2.0, fake=3.0)", 3e-4
            ),
            "ratio 5": one("dmd", "distribution_matching(ratio=5, scale=2.0)", 5e-4),
        },
    ),
    "DMD2": Row(
        {
            "its score 3 times as fast": one(
                "dmd2", "improved_distribution_matching(ratio=1, scale=2.0, fake=3.0)", 3e-4
            ),
            "its score twice as fast": one(
                "dmd2", "improved_distribution_matching(ratio=1, scale=2.0, fake=2.0)", 3e-4
            ),
            "rate 1e-3": one("dmd2", "improved_distribution_matching(ratio=1, scale=2.0)"),
            "ratio 5": one("dmd2", "improved_distribution_matching(ratio=5, scale=2.0)", 5e-4),
        },
    ),
    "DMD2 of 4": Row(
        {
            "its score 3 times as fast": one(
                "dmd2",
                "improved_distribution_matching(ratio=1, steps=4, scale=2.0, fake=3.0)",
                3e-4,
            )
        },
    ),
    "SiD": Row(
        {
            "its score 3 times as fast": one(
                "sid", "score_identity(ratio=1, scale=2.0, fake=3.0)", 3e-4
            ),
            "ratio 5": one("sid", "score_identity(ratio=5, scale=2.0)", 5e-4),
        },
    ),
    "ADD": Row(
        {
            "of 4, weight 0.05": one(
                "add", "adversarial(ratio=1, steps=4, scale=2.0, weight=0.05)", 3e-4
            ),
            "of 4, distillation 0.3, unguided": one(
                "add", "adversarial(ratio=1, steps=4, distillation=0.3)", 1e-4
            ),
            "distillation 1": one("add", "adversarial(ratio=1, scale=2.0, distillation=1.0)", 3e-4),
        },
    ),
    "LADD": Row(
        {
            "of 4, distillation 0.3, unguided": one(
                "ladd", "latent_adversarial(ratio=1, steps=4, distillation=0.3)", 1e-4
            ),
            "distillation 1": one(
                "ladd", "latent_adversarial(ratio=1, scale=2.0, distillation=1.0)", 3e-4
            ),
        },
    ),
}
