"""Traces equal to diffusers' schedulers of the same name, float64, level by level."""

import numpy as np
import pytest
import reference
import schedulers
from numpy.testing import assert_allclose
from reference import levels_of
from schedulers import discrete, scheduler_of

from diffusion_jax.core.process import ve, vp
from diffusion_jax.core.solvers import SOLVERS, dpm
from diffusion_jax.core.solvers.steps import EPS, X0

pytestmark = pytest.mark.parity
STEPS = [5, 50]


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_with_noise(x64, eta, steps):
    scheduler = scheduler_of("DDIMScheduler", clip_sample=False, timestep_spacing="leading")
    ours = lambda z, n: SOLVERS["ddim"](eta, z)
    schedulers.compare(ours, scheduler, steps, vp, rows=reference.noise_rows(steps), eta=eta)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(x64, steps, variance):
    scheduler = scheduler_of("DDPMScheduler", variance_type=variance, clip_sample=False)
    ours = lambda z, n: SOLVERS["ddpm"](variance, z)
    schedulers.compare(ours, scheduler, steps, vp, rows=reference.noise_rows(steps))


SIGMA_SPACE = {
    "EulerDiscreteScheduler": (lambda z, n: SOLVERS["euler"](), None, 0),
    "EulerAncestralDiscreteScheduler": (lambda z, n: SOLVERS["euler_ancestral"](1.0, z), None, 1),
    "HeunDiscreteScheduler": (lambda z, n: SOLVERS["heun"](), slice(None, None, 2), 0),
    "KDPM2DiscreteScheduler": (
        lambda z, n: SOLVERS["dpm_2"](discrete(ve)), slice(None, None, 2), 0),
}  # fmt: skip


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SIGMA_SPACE)
def test_schedulers_in_sigma(x64, name, steps, target):
    ours, pick, draws = SIGMA_SPACE[name]
    scheduler = scheduler_of(name, prediction_type=target)
    rows = reference.noise_rows(steps) if draws else None
    schedulers.compare(ours, scheduler, steps, ve, target, rows, pick)


@pytest.mark.parametrize("steps", STEPS)
def test_lms(x64, steps):
    """Its last step goes to sigma = 0 by the same formula; ours is x0, so the end differs."""
    scheduler = scheduler_of("LMSDiscreteScheduler")
    times, theirs, s = schedulers.trace(scheduler, steps)
    xs, _ = reference.our_trace(lambda z, n: SOLVERS["lms"](), theirs[0], levels_of(s, ve, times))
    assert_allclose(xs, theirs[:-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(
    ("kind", "order", "rule"),
    [
        ("dpmsolver++", 1, "midpoint"), ("dpmsolver++", 2, "midpoint"), ("dpmsolver++", 2, "heun"),
        ("dpmsolver++", 3, "heun"), ("dpmsolver", 2, "midpoint"), ("dpmsolver", 2, "heun"),
        ("dpmsolver", 3, "heun"), ("sde-dpmsolver++", 2, "midpoint"),
        ("sde-dpmsolver++", 2, "heun"),
    ],
)  # fmt: skip
def test_dpm_multistep(x64, kind, order, rule, lower, steps, karras):
    final = "zero" if kind.endswith("++") else "sigma_min"
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler", final_sigmas_type=final, algorithm_type=kind,
        solver_order=order, solver_type=rule,
        lower_order_final=lower, use_karras_sigmas=karras,
    )  # fmt: skip
    ends = lower and steps < 15
    rule = {"midpoint": "midpoint", "heun": "exact"}[rule]
    eta = 1.0 if kind.startswith("sde") else 0.0
    form = X0 if kind.endswith("++") else EPS
    make = lambda z, n: dpm.multistep(form, order, eta, rule, 0.5, n if ends else None, z)
    rows = reference.noise_rows(steps) if eta else None
    if final == "zero":
        schedulers.compare(make, scheduler, steps, vp, rows=rows)
        return
    # It repeats its last level, and steps from it to itself.
    times, theirs, s = schedulers.trace(scheduler, steps)
    xs, _ = reference.our_trace(make, theirs[0], levels_of(s, vp, times))
    assert_allclose(xs, theirs[:-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(x64, order, variant, corrector, steps):
    scheduler = scheduler_of(
        "UniPCMultistepScheduler", solver_order=order, solver_type=variant,
        disable_corrector=[] if corrector else list(range(1000)), lower_order_final=True,
    )  # fmt: skip
    make = lambda z, n: SOLVERS["unipc"](order, variant, corrector, lower_order_final=n)
    times, theirs, s = schedulers.trace(scheduler, steps)
    xs, sample = reference.our_trace(make, theirs[0], levels_of(s, vp, times))
    assert_allclose(xs, theirs[:-1], rtol=1e-9, atol=1e-9)
    if variant == "bh2":  # the last step of its bh1, where h and so B(h) is infinite, is NaN
        assert_allclose(sample, theirs[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(x64, order, steps):
    scheduler = scheduler_of("DEISMultistepScheduler", solver_order=order, lower_order_final=False)
    make = lambda z, n: SOLVERS["deis"](discrete(vp), order, "log_rho")
    times, theirs, s = schedulers.trace(scheduler, steps)
    xs, _ = reference.our_trace(make, theirs[0], levels_of(s, vp, times))
    assert_allclose(xs, theirs[:-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
def test_ipndm_transfer(x64, steps):
    """Its levels are cos and sin of its times; the factors and their start are the same."""
    scheduler = schedulers.diffusers.IPNDMScheduler()
    scheduler.set_timesteps(steps)
    angle = np.linspace(0.97, 0, steps + 1) * np.pi / 2  # its own start, alpha = 0, loses x0
    alphas, sigmas = np.cos(angle), np.sin(angle)
    levels = reference.level_at(alphas[:-1], sigmas[:-1])
    torch = reference.torch
    scheduler.alphas, scheduler.betas = (torch.tensor(a) for a in (alphas, sigmas))
    x, theirs = torch.tensor(reference.start()), []
    for i, t in enumerate(scheduler.timesteps):
        theirs.append(x.numpy())
        out = reference.output(x, float(levels.alpha[i]), float(levels.sigma[i]), "v_prediction")
        x = scheduler.step(out, t, x).prev_sample
    xs, _ = reference.our_trace(lambda z, n: SOLVERS["ipndm"](), theirs[0], levels)
    assert_allclose(xs, np.stack(theirs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
def test_plms(x64, steps):
    scheduler = scheduler_of("PNDMScheduler", skip_prk_steps=True)
    times, theirs, s = schedulers.trace(scheduler, steps)
    # Its second call repeats the first step with the mean of both predictions.
    keep = np.r_[0, np.arange(2, len(s))]
    levels = levels_of(s[keep], vp, times[keep])
    xs, _ = reference.our_trace(lambda z, n: SOLVERS["plms"](), theirs[0], levels)
    assert_allclose(xs, theirs[:-1][keep], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [20, 50])
def test_pndm(x64, steps):
    scheduler = scheduler_of("PNDMScheduler")
    times, theirs, s = schedulers.trace(scheduler, steps)
    keep = np.r_[0, 4, 8, np.arange(12, len(s))]
    levels = levels_of(s[keep], vp, times[keep])
    xs, _ = reference.our_trace(lambda z, n: SOLVERS["pndm"](discrete(vp)), theirs[0], levels)
    assert_allclose(xs, theirs[:-1][keep], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("orders", [(1, 1), (2, 1), (3, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_sa_solver(x64, orders, tau, steps):
    predictor, corrector = orders
    scheduler = scheduler_of(
        "SASolverScheduler", predictor_order=predictor, corrector_order=corrector,
        tau_func=lambda t: tau, algorithm_type="data_prediction", lower_order_final=False,
        use_karras_sigmas=True,
    )  # fmt: skip
    rows = reference.noise_rows(steps)
    times, theirs, s = schedulers.trace(scheduler, steps, rows=rows)
    make = lambda z, n: SOLVERS["sa_solver"](predictor, corrector, tau, rule="half", noise=z)
    xs, _ = reference.our_trace(make, theirs[0], levels_of(s, vp, times), rows)
    assert_allclose(xs, theirs[:-1], rtol=1e-9, atol=1e-9)
