"""Rules that make one prediction of two: a weak and a strong one.

The weak one is that of the empty condition, of a worse model, or of a perturbed network.  Every
pair goes with every rule: ``guide(pair(denoiser, null, cond), rescaled(apg(scale), phi, target))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.guidance.mixing import predictions
from diffusion_jax.core.guidance.moves import move_x0
from diffusion_jax.core.guidance.weights import Weight, weight_at
from diffusion_jax.core.targets import express, predict
from diffusion_jax.core.types import Cond, Denoise, Denoiser, NoiseLevel, Prediction, Target, like

Pair = Callable[[Array, NoiseLevel], tuple[Prediction, ...]]
"""(x, level) -> (weak, strong)."""

Rule = Callable[[Array, NoiseLevel, Prediction, Prediction], Prediction]
"""(x, level, weak, strong) -> Prediction; ``aux`` is that of the strong one."""


def pair(denoiser: Denoiser, null: Cond, cond: Cond) -> Pair:
    """The empty (or a negative) condition and the condition, in one network evaluation."""
    return predictions(denoiser, (null, cond))


def between(weak: Denoise, strong: Denoise) -> Pair:
    """Two functions, such as a worse model and the model (Karras et al. 2024a)."""
    return lambda x, level: (weak(x, level), strong(x, level))


def guide(both: Pair, rule: Rule) -> Denoise:
    """The rule's prediction."""
    return lambda x, level: rule(x, level, *both(x, level))


def linear(scale: Weight) -> Rule:
    """weak + scale·(strong - weak): classifier-free guidance (Ho & Salimans 2022, eq. 6)."""

    def rule(x: Array, level: NoiseLevel, weak: Prediction, strong: Prediction) -> Prediction:
        w = like(weight_at(scale, level, x), x)
        between = lambda a, b: (1 - w) * a + w * b
        return Prediction(between(weak.x0, strong.x0), between(weak.eps, strong.eps), strong.aux)

    return rule


def renoised(rule: Rule) -> Rule:
    """The rule's x0 with the weak (unconditional) prediction's eps.

    The result is no longer consistent with x, on purpose: see ``cfg_plus_plus``.
    """

    def changed(x: Array, level: NoiseLevel, weak: Prediction, strong: Prediction) -> Prediction:
        return rule(x, level, weak, strong)._replace(eps=weak.eps)

    return changed


def cfg_plus_plus(scale: Weight) -> Rule:
    """CFG++: x0 = weak + scale·(strong - weak), eps = weak (Chung et al. 2024, algorithm 2).

    With DDIM, x' = alpha'·x0 + sigma'·eps is the paper's step, line by line: a guided x0, renoised
    by the unconditional eps.  A solver that reads x rather than eps (``ddpm``) does plain guidance
    under it.

    Args:
        scale: the paper's λ, 0 to 1; larger ones leave the manifold that the method keeps to.
    """
    return renoised(linear(scale))


def apg(scale: Weight, eta: Weight = 0.0, threshold: Weight = math.inf) -> Rule:
    """Adaptive projected guidance, on x0 (Sadat et al. 2024).

    With d = x0_strong - x0_weak, shortened to norm ``threshold`` where it is longer, and split into
    d_∥ along x0_strong and d_⊥ orthogonal to it: x0 = x0_strong + (scale - 1)·(d_⊥ + eta·d_∥).
    Inner products are over the whole example.  The paper's momentum, a running sum of d over the
    steps of one sampler, is left out: a Denoise has no memory.

    Args:
        scale: 1 is the strong prediction.
        eta: share of d_∥, which saturates; 1 and no threshold is classifier-free guidance.
        threshold: the paper's r, > 0.
    """

    def rule(x: Array, level: NoiseLevel, weak: Prediction, strong: Prediction) -> Prediction:
        axes = tuple(range(1, x.ndim))
        inner = lambda a, b: jnp.sum(a * b, axes, keepdims=True)
        w, share, limit = (like(weight_at(c, level, x), x) for c in (scale, eta, threshold))
        d = strong.x0 - weak.x0
        norm = jnp.sqrt(_positive(inner(d, d)))
        d = d * jnp.minimum(1.0, limit / norm)
        parallel = inner(d, strong.x0) / _positive(inner(strong.x0, strong.x0)) * strong.x0
        return move_x0(strong, (w - 1) * (d - parallel + share * parallel), level)

    return rule


def zero_star(scale: Weight, target: Target) -> Rule:
    """CFG-Zero*: F = s·F_weak + scale·(F_strong - s·F_weak) (Fan et al. 2025).

    s = <F_strong, F_weak> / |F_weak|², of each example, is the multiple of the weak prediction next
    to the strong one.  The paper's second part, no movement in the first steps, is left out.

    Args:
        scale: 1 is the strong prediction.
        target: what F is; the paper's is the velocity, ``targets.flow()``.
    """

    def rule(x: Array, level: NoiseLevel, weak: Prediction, strong: Prediction) -> Prediction:
        axes = tuple(range(1, x.ndim))
        a, b = (express(target, each.x0, each.eps, level) for each in (weak, strong))
        inner = lambda a, b: jnp.sum(a * b, axes, keepdims=True)
        a = inner(a, b) / _positive(inner(a, a)) * a
        w = like(weight_at(scale, level, x), x)
        return predict(target, a + w * (b - a), x, level)._replace(aux=strong.aux)

    return rule


def rescaled(rule: Rule, phi: Weight, target: Target) -> Rule:
    """F·(phi·std(F_strong)/std(F) + 1 - phi), F the rule's output (Lin et al. 2024, §3.4).

    Standard deviations are of each example, over all of its numbers.  Which quantity F is matters:
    the paper's is the network's output, a v.  Around ``cfg_plus_plus`` it would undo the other eps;
    write ``renoised(rescaled(linear(scale), phi, target))``.

    Args:
        rule: to be rescaled.
        phi: 0 leaves the rule, 1 matches the deviation; the paper takes 0.7.
        target: what F is, such as the model's own target.
    """

    def scaled(x: Array, level: NoiseLevel, weak: Prediction, strong: Prediction) -> Prediction:
        axes = tuple(range(1, x.ndim))
        guided = rule(x, level, weak, strong)
        f_strong, f = (express(target, p.x0, p.eps, level) for p in (strong, guided))
        deviation = lambda f: jnp.std(f, axes, keepdims=True)
        share = like(weight_at(phi, level, x), x)
        factor = share * deviation(f_strong) / _positive(deviation(f)) + 1 - share
        return predict(target, factor * f, x, level)._replace(aux=guided.aux)

    return scaled


def _positive(norm: Array) -> Array:
    """A norm that may divide: 1 where it is 0, since what it divides is 0 too."""
    return jnp.where(norm > 0, norm, 1.0)
