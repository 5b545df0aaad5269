"""What recipes do when nothing is said: the papers' settings, which no other test may state."""

import inspect

import pytest

from diffusion_jax.recipes import bottleneck, diffusion, dreambooth, lora, textual_inversion
from diffusion_jax.recipes import variational as learned
from diffusion_jax.recipes.autoencoder import Adversary, Perceptual
from diffusion_jax.recipes.few_step import (
    adversarial,
    consistency,
    continuous_consistency,
    critics,
    distribution_matching,
    guidance_distillation,
    improved_distribution_matching,
    latent_adversarial,
    latent_consistency,
    level_pairs,
    mean_flow,
    moment_matching,
    players,
    progressive,
    reflow,
    score_identity,
    shortcut,
    teachers,
    trajectory,
    two_times,
)

_CT = {"first": 2, "last": 150}  # Song et al. 2023, table 3
_ICT = {"first": 10, "last": 1280}  # Song & Dhariwal 2024, table 1
_LOG_NORMAL = {"mean": -1.1, "std": 2.0}
_ECT = {"q": 2.0, "k": 8.0, "b": 1.0, **_LOG_NORMAL}  # Geng et al. 2024, appendix A
_VQ = {"beta": 0.25, "weight": 1.0, "decay": 0.99}  # van den Oord et al. 2017

PUBLISHED = [
    (bottleneck.kl, {"weight": 1e-6}),  # Rombach et al. 2022, appendix G
    (bottleneck.vq, {**_VQ, "revive": 1.0, "dead": 0.1}),
    (bottleneck.vq_ema, {**_VQ, "dead": 0.1, "smoothing": 1e-5}),
    (Perceptual, {"weight": 1.0}),
    (Adversary, {"weight": 1.0, "start": 0}),
    (diffusion.uncertain_regression, {"frequencies": 32}),
    (diffusion.variational, {"scale": 0.001, "steps": 0}),  # Nichol & Dhariwal 2021, section 3.1
    (diffusion.diffusion, {"noise_offset": 0.0}),
    (dreambooth.dreambooth, {"weight": 1.0}),  # Ruiz et al. 2023, section 3.2
    (lora.merged, {"scale": 1.0}),
    (lora.unmerged, {"scale": 1.0}),
    (lora.Adapter, {"scale": 1.0}),
    (textual_inversion.extended, {"count": 1}),
    (adversarial.adversarial, {"ratio": 1, "distillation_weight": 1.0}),
    (adversarial.pixel_features, {"noise": 0.0}),
    (consistency.distillation, {"solver": "heun", "levels": 18}),  # Song et al. 2023, table 3
    (consistency.training, _CT),
    (consistency.improved, {**_ICT, **_LOG_NORMAL, "c": None}),
    (consistency.easy, {**_ECT, "c": 0.0}),
    (consistency.ema_rate, {"first": 2, "decay": 0.9}),
    (consistency.ema_rate_of_intervals, {"first": 2, "decay": 0.9}),
    (consistency.consistency_ema, {**_CT, "decay": 0.9}),
    (consistency.consistency_ema_of_intervals, {**_CT, "decay": 0.9}),
    (level_pairs.square_root, _CT),
    (level_pairs.doubling, _ICT),
    (level_pairs.log_normal, _LOG_NORMAL),
    (level_pairs.easing, _ECT),
    (  # Lu & Song 2025, algorithm 1
        continuous_consistency.continuous_consistency,
        {"sigma_data": 0.5, "warm_up": 10_000, "c": 0.1, "frequencies": 32},
    ),
    (continuous_consistency.tangent, {"r": 1.0}),
    (critics.Critic, {"r1": 0.0}),
    (  # Yin et al. 2024a, section 3.3
        distribution_matching.distribution_matching,
        {"ratio": 1, "regression_weight": 0.25, "pair_share": 1.0},
    ),
    (  # Yin et al. 2024b, section 4.2
        improved_distribution_matching.improved_distribution_matching,
        {"ratio": 5, "discriminator_weight": 0.01},
    ),
    (latent_adversarial.logit_normal, {"mean": 1.0, "std": 1.0}),  # Sauer et al. 2024
    (latent_consistency.latent_consistency, {"levels": 50}),  # Luo et al. 2023
    (mean_flow.constant_guidance, {"kappa": 0.0}),
    (moment_matching.moment_matching, {"particles": 4}),  # Zhou et al. 2025, IMM
    (moment_matching.imm_weight, {"bias": 5.0, "power": 1}),
    (moment_matching.laplace, {"minimum": 1e-8}),
    (players.uniform_levels, {"low": 0.02, "high": 0.98}),  # Yin et al. 2024a
    (players.normaliser, {"minimum": 1e-5}),
    (players.initialiser, {"fake": True}),
    (score_identity.score_identity, {"ratio": 1, "a": 1.2}),  # Zhou et al. 2024, SiD
    (shortcut.shortcut, {"finest": 128, "bootstrap": 0.125}),  # Frans et al. 2025
    (teachers.guidance_scales, {"low": 1.0, "high": 5.0}),
    (trajectory.trajectory, {"steps": 4, "denoising_weight": 1.0}),
    (two_times.ordered, {"same": 0.0, "to_clean": 0.0}),
    (two_times.uniform_end, {"to_clean": 0.0}),
]

WITH_CONDITIONS = [
    diffusion.diffusion,
    learned.variational,
    consistency.consistency,
    continuous_consistency.continuous_consistency,
    guidance_distillation.guidance_distillation,
    latent_consistency.latent_consistency,
    mean_flow.mean_flow,
    moment_matching.moment_matching,
    progressive.progressive,
    reflow.reflow,
    shortcut.shortcut,
    trajectory.trajectory,
]


def _defaults(function):
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    ("function", "wanted"), PUBLISHED, ids=lambda case: getattr(case, "__qualname__", "")
)
def test_settings_are_the_papers(function, wanted):
    found = _defaults(function)
    assert {name: found[name] for name in wanted} == wanted


def test_no_condition_is_dropped_unless_it_is_said():
    for recipe in WITH_CONDITIONS:
        assert _defaults(recipe)["condition_dropout"] == 0.0, recipe
