"""Guidance by name: what ``config.sampler.guidance`` chooses from.

Arguments of the string are fixed when the sampler is compiled; the scale is traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Array

from diffusion_jax.core.guidance import mixing, rules
from diffusion_jax.core.guidance.rules import Rule
from diffusion_jax.core.guidance.weights import Weight, interval
from diffusion_jax.core.types import Cond, Denoise, Denoiser, Target

Guidance = Callable[[Denoiser, Cond, Cond | None, Weight | None], Denoise]
"""(denoiser, cond, null, scale) -> Denoise.

null is None for a model without conditions, scale is None for 1: both leave out the network
evaluations that would change nothing.
"""

Gates = Callable[..., Array]
"""Names or indices of layers -> gates [n], 1 for those; see ``models.unet.plan.select``."""


def by_rule(rule_of: Callable[[Weight], Rule]) -> Guidance:
    """A rule on the predictions for the empty condition and for the condition."""

    def guidance(denoiser: Denoiser, cond: Cond, null: Cond | None, scale: Weight | None):
        if null is None or scale is None:
            return mixing.condition(denoiser, cond)
        return rules.guide(rules.pair(denoiser, null, cond), rule_of(scale))

    return guidance


def cfg() -> Guidance:
    """Classifier-free guidance (Ho & Salimans 2022): ``rules.linear``."""
    return by_rule(rules.linear)


def limited(low: float = -math.inf, high: float = math.inf) -> Guidance:
    """Classifier-free guidance for low <= log_snr < high only (Kynkäänniemi et al. 2024)."""
    return by_rule(lambda scale: rules.linear(interval(scale, low, high)))


def cfg_plus_plus() -> Guidance:
    """CFG++ (Chung et al. 2024), for ``ddim`` and a scale from 0 to 1: ``rules.cfg_plus_plus``."""
    return by_rule(rules.cfg_plus_plus)


def apg(eta: float = 0.0, threshold: float = math.inf) -> Guidance:
    """Adaptive projected guidance (Sadat et al. 2024): ``rules.apg``."""
    return by_rule(lambda scale: rules.apg(scale, eta, threshold))


def zero_star(*, target: Target) -> Guidance:
    """CFG-Zero* (Fan et al. 2025) on what the network predicts: ``rules.zero_star``."""
    return by_rule(lambda scale: rules.zero_star(scale, target))


def rescaled(phi: float = 0.7, *, target: Target) -> Guidance:
    """Classifier-free guidance, rescaled (Lin et al. 2024), on what the network predicts."""
    return by_rule(lambda scale: rules.rescaled(rules.linear(scale), phi, target))


def autoguidance(*, reference: Denoiser) -> Guidance:
    """Guidance by a worse model (Karras et al. 2024a): ``mixing.autoguidance``."""

    def guidance(denoiser: Denoiser, cond: Cond, null: Cond | None, scale: Weight | None):
        del null
        if scale is None:
            return mixing.condition(denoiser, cond)
        return mixing.autoguidance(denoiser, reference, cond, scale)

    return guidance


def perturbed_attention(
    scale: float = 3.0, layers: object = "middle", *, attention_gates: Gates
) -> Guidance:
    """Perturbed-attention guidance (Ahn et al. 2024) beside the classifier-free one.

    Args:
        scale: strength of the perturbed-attention part; 0 is none.
        layers: name, index, or a list of them.
        attention_gates: see ``Gates``.
    """
    return _perturbed("identity_attention", attention_gates(layers), scale)


def skip_layers(scale: float = 3.0, layers: object = "middle", *, block_gates: Gates) -> Guidance:
    """Skip-layer guidance (Hyung et al. 2024) beside the classifier-free one.

    Args:
        scale: strength of the skip-layer part; 0 is none.
        layers: name, index, or a list of them.
        block_gates: see ``Gates``.
    """
    return _perturbed("skip_blocks", block_gates(layers), scale)


def _perturbed(key: str, gates: Array, strength: float) -> Guidance:
    def guidance(denoiser: Denoiser, cond: Cond, null: Cond | None, scale: Weight | None):
        if scale is None:
            return mixing.perturbed(denoiser, cond, {key: gates}, strength)
        return mixing.perturbed(denoiser, cond, {key: gates}, strength, null, scale)

    return guidance


# Those whose scale of 1 is not the plain conditional model.
ALWAYS_GUIDED = ("cfg_plus_plus",)

GUIDANCES: dict[str, Callable[..., Guidance]] = {
    "cfg": cfg,
    "interval": limited,
    "cfg_plus_plus": cfg_plus_plus,
    "apg": apg,
    "zero_star": zero_star,
    "rescaled": rescaled,
    "autoguidance": autoguidance,
    "perturbed_attention": perturbed_attention,
    "skip_layers": skip_layers,
}
