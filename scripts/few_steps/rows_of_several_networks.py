"""Rows of methods that train several networks in one step."""

from __future__ import annotations

from scripts.few_steps.settings import CD, Row, Setting, single_stage, two_stages


def _dmd(more: str, rate: float = 3e-4) -> Setting:
    return single_stage("dmd", f"distribution_matching(ratio=1, scale=2.0, {more})", rate)


def _dmd2(more: str, rate: float = 3e-4) -> Setting:
    return single_stage("dmd2", f"improved_distribution_matching(scale=2.0, {more})", rate)


def _sid(more: str, rate: float = 3e-4) -> Setting:
    return single_stage("sid", f"score_identity(ratio=1, scale=2.0, {more})", rate)


def _add(more: str, rate: float = 1e-4) -> Setting:
    return single_stage("add", f"adversarial(ratio=1, {more})", rate)


def _ladd(more: str, rate: float = 1e-4) -> Setting:
    return single_stage("ladd", f"latent_adversarial(ratio=1, {more})", rate)


SEVERAL_NETWORKS: dict[str, Row] = {
    "DMD": Row(
        {
            "pairs by pseudo-Huber": _dmd("fake=3.0, regression=0.02, distance='pseudo_huber'"),
            "pairs by squares": _dmd("fake=3.0"),
            "its score 6 times as fast": _dmd("fake=6.0"),
            "rate 1e-4": _dmd("fake=3.0", 1e-4),
            "ratio 5": single_stage("dmd", "distribution_matching(ratio=5, scale=2.0)", 5e-4),
        },
    ),
    "DMD2": Row(
        {
            "its score 3 times as fast": _dmd2("ratio=1, fake=3.0"),
            "its score twice as fast": _dmd2("ratio=1, fake=2.0"),
            "rate 1e-3": _dmd2("ratio=1", 1e-3),
            "ratio 5": _dmd2("ratio=5", 5e-4),
        },
    ),
    "DMD2 of 4": Row({"its score 3 times as fast": _dmd2("ratio=1, steps=4, fake=3.0")}),
    "SiD": Row(
        {
            "a = 1": _sid("fake=3.0, a=1.0"),
            "a = 1.2": _sid("fake=3.0"),
            "its score 6 times as fast": _sid("fake=6.0"),
            "rate 1e-4": _sid("fake=3.0", 1e-4),
            "of 4": _sid("steps=4, fake=3.0"),
            "ratio 5": single_stage("sid", "score_identity(ratio=5, scale=2.0)", 5e-4),
        },
    ),
    "ADD": Row(
        {
            "of 4, after CD, noise 0.3": two_stages(
                CD, _add("steps=4, distillation=1.0, weight=0.3, high=0.3, noise=0.3")
            ),
            "of 4, after CD, noise 0.3, weight 1": two_stages(
                CD, _add("steps=4, distillation=1.0, discriminator=10.0, high=0.3, noise=0.3")
            ),
            "of 4, after CD": two_stages(
                CD, _add("steps=4, distillation=2.5, weight=0.05, high=0.3")
            ),
            "of 4, noise 0.3": _add(
                "steps=4, distillation=0.3, discriminator=10.0, high=0.5, noise=0.3"
            ),
            "of 4, weight 0.05": _add("steps=4, scale=2.0, weight=0.05", 3e-4),
            "of 4, distillation 0.3": _add("steps=4, distillation=0.3"),
            "of 4, weight 0.2": _add("steps=4, weight=0.2, high=0.5"),
            "of 4, r1 30": _add("steps=4, scale=2.0, distillation=0.3, r1=30.0", 3e-4),
            "distillation 1": _add("scale=2.0, distillation=1.0", 3e-4),
        },
    ),
    "LADD": Row(
        {
            "of 4, after CD, little noise": two_stages(
                CD, _ladd("steps=4, distillation=1.0, discriminator=10.0, mean=-2.0, high=0.3")
            ),
            "of 4, little noise": _ladd(
                "steps=4, distillation=0.3, discriminator=10.0, mean=-2.0, high=0.5"
            ),
            "of 4, after CD": two_stages(CD, _ladd("steps=4, distillation=0.3")),
            "of 4": _ladd("steps=4, distillation=0.3"),
            "of 4, discriminator 20": _ladd("steps=4, distillation=0.3, discriminator=20.0"),
            "distillation 1": _ladd("scale=2.0, distillation=1.0", 3e-4),
        },
    ),
}
