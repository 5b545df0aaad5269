"""The same numbers as diffusers' guiders, float64."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import guidance, schedules, targets
from diffusion_jax.core.process import PATHS, Process

pytestmark = pytest.mark.parity
if os.environ.get("REQUIRE_PARITY") == "1":
    import torch
    from diffusers import guiders
else:
    torch = pytest.importorskip("torch")
    guiders = pytest.importorskip("diffusers.guiders")

SHAPE = (3, 4, 5, 2)


def _outputs(count=2):
    return np.random.default_rng(0).normal(size=(count, *SHAPE))


def _ours(rule, target, weak, strong):
    """The rule on two outputs of a network, back as an output."""
    level = Process(schedules.cosine(), PATHS["vp"]).at(jnp.array([0.2, 0.5, 0.9]))
    x = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE))
    pair = [targets.predict(target, jnp.asarray(f), x, level) for f in (weak, strong)]
    got = rule(x, level, *pair)
    return targets.express(target, got.x0, got.eps, level)


def _theirs(guider, weak, strong, **more):
    more = {name: torch.from_numpy(f) for name, f in more.items()}
    return guider.forward(torch.from_numpy(strong), torch.from_numpy(weak), **more).pred.numpy()


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_classifier_free_guidance_and_its_rescaling(x64, name, phi):
    target, (weak, strong) = targets.TARGETS[name](), _outputs()
    rule = guidance.rescaled(guidance.linear(4.5), phi, target)
    wanted = _theirs(guiders.ClassifierFreeGuidance(4.5, phi), weak, strong)
    assert_allclose(_ours(rule, target, weak, strong), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("eta", "r"), [(0.0, 5.0), (0.4, 20.0), (1.0, 1e9)])
def test_adaptive_projected_guidance(x64, eta, r):
    weak, strong = _outputs()
    theirs = guiders.AdaptiveProjectedGuidance(
        4.5 - 1, adaptive_projected_guidance_rescale=r, eta=eta, use_original_formulation=True
    )  # the paper's: cond + (scale - 1)·update; diffusers' own form adds it to the unconditional
    wanted = _theirs(theirs, weak, strong)
    got = _ours(guidance.apg(4.5, eta, r), targets.x0(), weak, strong)
    assert_allclose(got, wanted, rtol=1e-8, atol=1e-10)


def test_zero_star(x64):
    weak, strong = _outputs()
    theirs = guiders.ClassifierFreeZeroStarGuidance(4.5, zero_init_steps=0)
    theirs.set_state(step=1, num_inference_steps=10, timestep=None)
    got = _ours(guidance.zero_star(4.5, targets.flow()), targets.flow(), weak, strong)
    # Their inner products are float32.
    assert_allclose(got, _theirs(theirs, weak, strong), rtol=1e-5, atol=1e-6)


def test_autoguidance(x64):
    weak, strong = _outputs()
    theirs = guiders.AutoGuidance(2.5, auto_guidance_layers=[0], dropout=1.0)
    got = _ours(guidance.linear(2.5), targets.x0(), weak, strong)
    assert_allclose(got, _theirs(theirs, weak, strong), rtol=1e-9)


def test_perturbed_attention_beside_classifier_free_guidance(x64):
    null, perturbed, cond = _outputs(3)
    theirs = guiders.PerturbedAttentionGuidance(
        4.5, perturbed_guidance_scale=2.8, perturbed_guidance_layers=[0]
    )
    wanted = _theirs(theirs, null, cond, pred_cond_skip=perturbed)
    level = Process(schedules.cosine(), PATHS["vp"]).at(0.5)
    x = jnp.zeros(SHAPE)

    def denoiser(x, level, inputs):
        chosen = jnp.where(
            inputs["gate"][:, 0, None, None, None] == 1,
            jnp.tile(perturbed, (3, 1, 1, 1)),
            jnp.where(
                inputs["label"][:, None, None, None] == 0,
                jnp.tile(null, (3, 1, 1, 1)),
                jnp.tile(cond, (3, 1, 1, 1)),
            ),
        )
        return targets.from_x0(chosen, x, level)

    label = lambda k: {"label": jnp.full((3,), k)}
    gates = {"gate": jnp.ones(1)}
    got = guidance.perturbed(denoiser, label(1), gates, 2.8, label(0), 4.5)(x, level)
    assert_allclose(got.x0, wanted, rtol=1e-9)
