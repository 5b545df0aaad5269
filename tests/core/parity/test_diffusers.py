"""Traces equal to diffusers' schedulers of the same name, float64, level by level."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose

from diffusion_jax.core import grids, schedules
from diffusion_jax.core.noise import white
from diffusion_jax.core.process import Process, rectified, ve, vp
from diffusion_jax.core.solvers import SOLVERS, dpm
from diffusion_jax.core.solvers.steps import EPS, X0

pytestmark = pytest.mark.parity
if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
else:
    diffusers = pytest.importorskip("diffusers")

BETAS = np.linspace(0.0001, 0.02, 1000)
STEPS = [5, 50]


def _scheduler(name, **options):
    betas = None if options.get("rescale_betas_zero_snr") else BETAS
    kind = getattr(diffusers, name)
    with reference.double(kind):
        return kind(trained_betas=betas, **options)


def _process(path):
    return Process(schedules.discrete(BETAS), path)


def _levels(s, timesteps, path):
    """Levels of given s = sigma/alpha, at diffusers' timesteps (its 0 is our 1/T)."""
    s = np.asarray(s, np.float64)
    with np.errstate(divide="ignore"):
        log_snr = jnp.asarray(-2 * np.log(s))
    t = jnp.asarray((np.asarray(timesteps, np.float64) + 1) / 1000)
    return reference.NoiseLevel(t, log_snr, *path(log_snr))


def _compare(ours, scheduler, steps, path, target="epsilon", rows=None, pick=None, **arguments):
    """Every x of the scheduler against ours; its last step, to sigma = 0, against our x0.

    Args:
        ours: noise -> solver.
        scheduler: diffusers'.
        steps: number of them.
        path: ve where x is y = x/alpha, vp elsewhere.
        target: what the network predicts.
        rows: noise in the order of its draws.
        pick: which of its calls start a step (those of two-stage solvers do not all).
    """
    times, theirs, s = reference.diffusers_trace(scheduler, steps, target, rows, **arguments)
    starts = np.arange(len(s)) if pick is None else np.arange(len(s))[pick]
    levels = _levels(s[starts], times[starts], path)
    noise = (
        reference.table_noise(rows, np.r_[levels.log_snr[1:], 1e9]) if rows is not None else white
    )
    xs, sample = reference.our_trace(ours(noise), theirs[0], levels)
    assert_allclose(xs, theirs[starts], rtol=1e-9, atol=1e-9)
    assert_allclose(sample, theirs[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("target", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]
)
def test_ddim(x64, steps, target, spacing, offset):
    scheduler = _scheduler(
        "DDIMScheduler", prediction_type=target, timestep_spacing=spacing, steps_offset=offset,
        clip_sample=False,
    )  # fmt: skip
    if spacing == "linspace":  # it steps to t - T/n, which is not where it then calls the network
        scheduler.set_timesteps(steps)
    else:
        _compare(lambda z: SOLVERS["ddim"](), scheduler, steps, vp, target)
    # Our grids of these names are its timesteps.
    grid = {
        "leading": lambda: grids.leading(_process(vp), steps, offset),
        "trailing": lambda: grids.trailing(_process(vp), steps),
        "linspace": lambda: grids.linspace(_process(vp), steps),
    }[spacing]()
    assert_allclose(grid.t * 1000 - 1, scheduler.timesteps.numpy(), atol=1e-6)
    assert_allclose(grid.alpha**2, np.cumprod(1 - BETAS)[scheduler.timesteps.numpy()], rtol=1e-9)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_with_noise(x64, eta, steps):
    scheduler = _scheduler("DDIMScheduler", clip_sample=False, timestep_spacing="leading")
    ours = lambda z: SOLVERS["ddim"](eta, z)
    _compare(ours, scheduler, steps, vp, rows=reference.noise_rows(steps), eta=eta)


@pytest.mark.parametrize("steps", STEPS)
def test_ddim_of_zero_terminal_snr_with_v(x64, steps):
    scheduler = _scheduler(
        "DDIMScheduler", beta_start=1e-4, beta_end=0.02, rescale_betas_zero_snr=True,
        prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    _compare(lambda z: SOLVERS["ddim"](), scheduler, steps, vp, "v_prediction")
    ours = schedules.zero_terminal_snr(schedules.linear())
    grid = grids.trailing(Process(ours, vp), steps)
    cumulative = scheduler.alphas_cumprod.numpy()[scheduler.timesteps.numpy()]
    assert_allclose(grid.alpha**2, cumulative, rtol=1e-9, atol=1e-15)


def test_ddim_that_ends_at_the_first_level(x64):
    """set_alpha_to_one=False is a walk that ends at t = 1/T, with no step to the clean level."""
    scheduler = _scheduler(
        "DDIMScheduler", set_alpha_to_one=False, steps_offset=1, clip_sample=False
    )
    times, theirs, s = reference.diffusers_trace(scheduler, 10)
    first = (BETAS[0] / (1 - BETAS[0])) ** 0.5
    levels = _levels(np.r_[s, first], np.r_[times, 0], vp)
    xs, _ = reference.our_trace(SOLVERS["ddim"](), theirs[0], levels)
    assert_allclose(xs, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(x64, steps, variance):
    scheduler = _scheduler("DDPMScheduler", variance_type=variance, clip_sample=False)
    ours = lambda z: SOLVERS["ddpm"](variance, z)
    _compare(ours, scheduler, steps, vp, rows=reference.noise_rows(steps))


SIGMA_SPACE = {
    "EulerDiscreteScheduler": (lambda z: SOLVERS["euler"](), None, 0),
    "EulerAncestralDiscreteScheduler": (lambda z: SOLVERS["euler_ancestral"](1.0, z), None, 1),
    "HeunDiscreteScheduler": (lambda z: SOLVERS["heun"](), slice(None, None, 2), 0),
    "KDPM2DiscreteScheduler": (
        lambda z: SOLVERS["dpm_2"](_process(ve)), slice(None, None, 2), 0),
}  # fmt: skip


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SIGMA_SPACE)
def test_schedulers_in_sigma(x64, name, steps, target):
    ours, pick, draws = SIGMA_SPACE[name]
    scheduler = _scheduler(name, prediction_type=target)
    rows = reference.noise_rows(steps) if draws else None
    _compare(ours, scheduler, steps, ve, target, rows, pick)


@pytest.mark.parametrize("steps", STEPS)
def test_lms(x64, steps):
    """Its last step goes to sigma = 0 by the same formula; ours is x0, so the end differs."""
    scheduler = _scheduler("LMSDiscreteScheduler")
    times, theirs, s = reference.diffusers_trace(scheduler, steps)
    xs, _ = reference.our_trace(SOLVERS["lms"](), theirs[0], _levels(s, times, ve))
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
    scheduler = _scheduler(
        "DPMSolverMultistepScheduler", final_sigmas_type=final, algorithm_type=kind,
        solver_order=order, solver_type=rule,
        lower_order_final=lower, use_karras_sigmas=karras,
    )  # fmt: skip
    ends = steps if lower and steps < 15 else None
    rule = {"midpoint": "midpoint", "heun": "exact"}[rule]
    eta = 1.0 if kind.startswith("sde") else 0.0
    form = X0 if kind.endswith("++") else EPS
    make = lambda z: dpm.multistep(form, order, eta, rule, 0.5, ends, z)
    rows = reference.noise_rows(steps) if eta else None
    if final == "zero":
        _compare(make, scheduler, steps, vp, rows=rows)
        return
    # It repeats its last level, and steps from it to itself.
    times, theirs, s = reference.diffusers_trace(scheduler, steps)
    xs, _ = reference.our_trace(make(white), theirs[0], _levels(s, times, vp))
    assert_allclose(xs, theirs[:-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(x64, order, variant, corrector, steps):
    scheduler = _scheduler(
        "UniPCMultistepScheduler", solver_order=order, solver_type=variant,
        disable_corrector=[] if corrector else list(range(1000)), lower_order_final=True,
    )  # fmt: skip
    make = lambda z: SOLVERS["unipc"](order, variant, corrector, lower_order_final=steps)
    times, theirs, s = reference.diffusers_trace(scheduler, steps)
    xs, sample = reference.our_trace(make(None), theirs[0], _levels(s, times, vp))
    assert_allclose(xs, theirs[:-1], rtol=1e-9, atol=1e-9)
    if variant == "bh2":  # the last step of its bh1, where h and so B(h) is infinite, is NaN
        assert_allclose(sample, theirs[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(x64, order, steps):
    scheduler = _scheduler("DEISMultistepScheduler", solver_order=order, lower_order_final=False)
    make = lambda z: SOLVERS["deis"](_process(vp), order, "log_rho")
    times, theirs, s = reference.diffusers_trace(scheduler, steps)
    xs, _ = reference.our_trace(make(None), theirs[0], _levels(s, times, vp))
    assert_allclose(xs, theirs[:-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
def test_ipndm_transfer(x64, steps):
    """Its levels are cos and sin of its times; the factors and their start are the same."""
    scheduler = diffusers.IPNDMScheduler()
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
    xs, _ = reference.our_trace(SOLVERS["ipndm"](), theirs[0], levels)
    assert_allclose(xs, np.stack(theirs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
def test_plms(x64, steps):
    scheduler = _scheduler("PNDMScheduler", skip_prk_steps=True)
    times, theirs, s = reference.diffusers_trace(scheduler, steps)
    # Its second call repeats the first step with the mean of both predictions.
    keep = np.r_[0, np.arange(2, len(s))]
    xs, _ = reference.our_trace(SOLVERS["plms"](), theirs[0], _levels(s[keep], times[keep], vp))
    assert_allclose(xs, theirs[:-1][keep], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [20, 50])
def test_pndm(x64, steps):
    scheduler = _scheduler("PNDMScheduler")
    times, theirs, s = reference.diffusers_trace(scheduler, steps)
    keep = np.r_[0, 4, 8, np.arange(12, len(s))]
    levels = _levels(s[keep], times[keep], vp)
    xs, _ = reference.our_trace(SOLVERS["pndm"](_process(vp)), theirs[0], levels)
    assert_allclose(xs, theirs[:-1][keep], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("orders", [(1, 1), (2, 1), (3, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_sa_solver(x64, orders, tau, steps):
    predictor, corrector = orders
    scheduler = _scheduler(
        "SASolverScheduler", predictor_order=predictor, corrector_order=corrector,
        tau_func=lambda t: tau, algorithm_type="data_prediction", lower_order_final=False,
        use_karras_sigmas=True,
    )  # fmt: skip
    rows = reference.noise_rows(steps)
    times, theirs, s = reference.diffusers_trace(scheduler, steps, rows=rows)
    levels = _levels(s, times, vp)
    noise = reference.table_noise(rows, np.r_[levels.log_snr[1:], 1e9])
    solver = SOLVERS["sa_solver"](predictor, corrector, tau, rule="half", noise=noise)
    xs, _ = reference.our_trace(solver, theirs[0], levels)
    assert_allclose(xs, theirs[:-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
)
@pytest.mark.parametrize("steps", STEPS)
def test_flow_matching(x64, name, steps):
    kind, seen = getattr(diffusers, name), []
    with reference.double(kind):
        scheduler = kind(shift=3.0)
        scheduler.set_timesteps(steps)
        x = reference.torch.tensor(reference.start())
        for t in scheduler.timesteps:
            if scheduler.step_index is None:
                scheduler._init_step_index(t)
            sigma = float(scheduler.sigmas[scheduler.step_index])
            if getattr(scheduler, "state_in_first_order", True):
                seen.append((sigma, x.numpy()))
            out = reference.output(x, 1 - sigma, sigma, "flow_prediction")
            x = scheduler.step(out, t, x).prev_sample
    sigma = np.array([s for s, _ in seen])
    levels = reference.level_at(1 - sigma, sigma)
    solver = SOLVERS["flow_heun" if "Heun" in name else "flow_euler"]()
    xs, sample = reference.our_trace(solver, seen[0][1], levels)
    assert_allclose(xs, np.stack([x for _, x in seen]), rtol=1e-9, atol=1e-9)
    assert_allclose(sample, x.numpy(), rtol=1e-9, atol=1e-9)
    # It shifts its smallest sigma, 1/1000, once by itself and once more with all the others.
    last = 3 / 1000 / (1 + 2 / 1000)
    grid = grids.shifted(lambda p, n: p.at(jnp.linspace(1, last, n)), 3.0)
    ours = grid(Process(schedules.rectified_flow(), rectified), steps)
    assert_allclose(ours.sigma, sigma, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm(x64, steps):
    """With a network that is a consistency function at every level, boundary scalings are off."""
    scheduler = _scheduler("LCMScheduler", timestep_scaling=1e6)  # c_skip 0, c_out 1
    rows = reference.noise_rows(steps)
    _compare(lambda z: SOLVERS["consistency"](z), scheduler, steps, vp, rows=rows)
    grid = grids.consistency(_process(vp), steps)
    assert_allclose(grid.t * 1000 - 1, scheduler.timesteps.numpy(), atol=1e-6)


@pytest.mark.parametrize(("family", "name"), [
    ("stable_diffusion", "StableDiffusionSigmas"), ("sdxl", "StableDiffusionXLSigmas"),
    ("stable_video_diffusion", "StableDiffusionVideoSigmas"),
])  # fmt: skip
def test_align_your_steps_tables(family, name):
    from diffusers.schedulers import AysSchedules

    assert_allclose(grids.TABLES[family][:-1], AysSchedules[name][:-1])  # it ends at 0


def test_karras_grid_is_diffusers(x64):
    scheduler = _scheduler("EulerDiscreteScheduler", use_karras_sigmas=True)
    with reference.double(type(scheduler)):
        scheduler.set_timesteps(12)
    ends = ((1 - np.cumprod(1 - BETAS)) / np.cumprod(1 - BETAS)) ** 0.5
    levels = grids.karras(_process(ve), 12, 7.0, ends[0], ends[-1])
    assert_allclose(levels.sigma, scheduler.sigmas[:-1], rtol=1e-9)
