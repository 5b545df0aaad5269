"""diffusers' conventions: which levels a grid has, where it starts and ends, shifts of time."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference
import schedulers
from numpy.testing import assert_allclose
from reference import levels_of
from schedulers import BETAS, discrete, scheduler_of

from diffusion_jax.core import grids, schedules
from diffusion_jax.core.process import Process, rectified, ve, vp
from diffusion_jax.core.solvers import SOLVERS

pytestmark = pytest.mark.parity
STEPS = [5, 50]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("target", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]
)
def test_ddim(x64, steps, target, spacing, offset):
    scheduler = scheduler_of(
        "DDIMScheduler", prediction_type=target, timestep_spacing=spacing, steps_offset=offset,
        clip_sample=False,
    )  # fmt: skip
    if spacing == "linspace":  # it steps to t - T/n, which is not where it then calls the network
        scheduler.set_timesteps(steps)
    else:
        schedulers.compare(lambda z, n: SOLVERS["ddim"](), scheduler, steps, vp, target)
    # Our grids of these names are its timesteps.
    grid = {
        "leading": lambda: grids.leading(discrete(vp), steps, offset),
        "trailing": lambda: grids.trailing(discrete(vp), steps),
        "linspace": lambda: grids.linspace(discrete(vp), steps),
    }[spacing]()
    assert_allclose(grid.t * 1000 - 1, scheduler.timesteps.numpy(), atol=1e-6)
    assert_allclose(grid.alpha**2, np.cumprod(1 - BETAS)[scheduler.timesteps.numpy()], rtol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("linspace", 0)])
@pytest.mark.parametrize(
    "name",
    ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"],
)
def test_grids_of_multistep_schedulers(name, spacing, offset, steps):
    scheduler = scheduler_of(name, timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    grid = {
        "leading": lambda: grids.dpm_leading(discrete(vp), steps, offset),
        "linspace": lambda: grids.dpm_linspace(discrete(vp), steps),
    }[spacing]()
    assert_allclose(grid.t * 1000 - 1, scheduler.timesteps.numpy(), atol=1e-4)


@pytest.mark.parametrize("steps", STEPS)
def test_ddim_of_zero_terminal_snr_with_v(x64, steps):
    scheduler = scheduler_of(
        "DDIMScheduler", beta_start=1e-4, beta_end=0.02, rescale_betas_zero_snr=True,
        prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    schedulers.compare(lambda z, n: SOLVERS["ddim"](), scheduler, steps, vp, "v_prediction")
    ours = schedules.zero_terminal_snr(schedules.linear())
    grid = grids.trailing(Process(ours, vp), steps)
    cumulative = scheduler.alphas_cumprod.numpy()[scheduler.timesteps.numpy()]
    assert_allclose(grid.alpha**2, cumulative, rtol=1e-9, atol=1e-15)


def test_ddim_that_ends_at_the_first_level(x64):
    """set_alpha_to_one=False is a walk that ends at t = 1/T, with no step to the clean level."""
    scheduler = scheduler_of(
        "DDIMScheduler", set_alpha_to_one=False, steps_offset=1, clip_sample=False
    )
    times, theirs, s = schedulers.trace(scheduler, 10)
    first = (BETAS[0] / (1 - BETAS[0])) ** 0.5
    levels = levels_of(np.r_[s, first], vp, np.r_[times, 0])
    xs, _ = reference.our_trace(lambda z, n: SOLVERS["ddim"](), theirs[0], levels)
    assert_allclose(xs, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
)
@pytest.mark.parametrize("steps", STEPS)
def test_flow_matching(x64, name, steps):
    kind, seen = getattr(schedulers.diffusers, name), []
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
    make = lambda z, n: SOLVERS["flow_heun" if "Heun" in name else "flow_euler"]()
    xs, sample = reference.our_trace(make, seen[0][1], levels)
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
    scheduler = scheduler_of("LCMScheduler", timestep_scaling=1e6)  # c_skip 0, c_out 1
    rows = reference.noise_rows(steps)
    schedulers.compare(lambda z, n: SOLVERS["consistency"](z), scheduler, steps, vp, rows=rows)
    grid = reference.compiled(lambda: grids.consistency(discrete(vp), steps))
    assert_allclose(grid.t * 1000 - 1, scheduler.timesteps.numpy(), atol=1e-6)


@pytest.mark.parametrize(("family", "name"), [
    ("stable_diffusion", "StableDiffusionSigmas"), ("sdxl", "StableDiffusionXLSigmas"),
    ("stable_video_diffusion", "StableDiffusionVideoSigmas"),
])  # fmt: skip
def test_align_your_steps_tables(family, name):
    theirs = schedulers.diffusers.schedulers.AysSchedules[name]
    assert_allclose(grids.TABLES[family][:-1], theirs[:-1])  # it ends at 0


def test_karras_grid_is_diffusers(x64):
    scheduler = scheduler_of("EulerDiscreteScheduler", use_karras_sigmas=True)
    with reference.double(type(scheduler)):
        scheduler.set_timesteps(12)
    ends = ((1 - np.cumprod(1 - BETAS)) / np.cumprod(1 - BETAS)) ** 0.5
    levels = grids.karras(discrete(ve), 12, 7.0, ends[0], ends[-1])
    assert_allclose(levels.sigma, scheduler.sigmas[:-1], rtol=1e-9)
