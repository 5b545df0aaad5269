"""Single-step DPM-Solvers of k-diffusion and diffusers, and DPM2 ancestral, float64."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import schedulers
from numpy.testing import assert_allclose
from schedulers import scheduler_of

from diffusion_jax.core import grids, schedules
from diffusion_jax.core.process import Process, ve, vp
from diffusion_jax.core.sampling import walk
from diffusion_jax.core.solvers import SOLVERS, noising
from diffusion_jax.core.types import NoiseLevel

pytestmark = pytest.mark.parity
torch = reference.torch

LOW, HIGH = 0.03, 15.0


def _process():
    return Process(schedules.cosine(), ve)


def _torch_model(x, sigma, **_):
    return reference.posterior_mean(x, sigma[0], torch.exp)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("order", [2, 3])
def test_steps_of_k_diffusion(x64, order, steps):
    """On a grid that is even in nothing, with k-diffusion's r_1 = 1/2, or 1/3 and 2/3."""
    levels = grids.karras(_process(), steps, 7.0, LOW, HIGH)
    solver = reference.k_sampling().DPMSolver(_torch_model)
    times = [-torch.tensor(float(s), dtype=torch.float64).log() for s in levels.sigma]
    xs = [torch.tensor(reference.start()) * HIGH]
    for now, nxt in pairwise(times):
        xs.append(getattr(solver, f"dpm_solver_{order}_step")(xs[-1], now, nxt)[0])
    make = lambda z, n: SOLVERS["dpm_solver"](_process(), order)
    ours, _ = reference.our_trace(make, xs[0].numpy(), levels)
    assert_allclose(ours, np.stack(xs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("calls", [9, 14])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_dpm_fast(x64, calls, eta):
    """It spends n calls on steps of order 3, and the last one or two of lower order."""
    parts, process, kind = calls // 3 + 1, _process(), reference.k_sampling().DPMSolver
    orders = [3] * (parts - 2) + [2, 1] if calls % 3 == 0 else [3] * (parts - 1) + [calls % 3]
    log_snr = jnp.linspace(-2 * np.log(HIGH), -2 * np.log(LOW), parts + 1)
    rows = reference.noise_rows(parts)
    of_theirs = iter(torch.tensor(rows))
    with reference.double(kind):
        theirs = reference.k_sampling().sample_dpm_fast(
            _torch_model, torch.tensor(reference.start()) * HIGH, LOW, HIGH, calls, disable=True,
            eta=eta, noise_sampler=lambda now, nxt: next(of_theirs),
        )  # fmt: skip
    noise, levels = reference.table_noise(rows, log_snr[1:]), process.at_log_snr(log_snr)
    plain = {
        k: SOLVERS["ddim"]() if k == 1 else SOLVERS["dpm_solver"](process, k) for k in (1, 2, 3)
    }
    x = jnp.asarray(reference.start()) * HIGH
    # With noise, its last step is cut off at LOW: it ends there, and without fresh noise.
    runs = [(0, parts - 2, 3, eta), (parts - 2, parts - 1, orders[-2], eta)]
    for first, last, order, share in [*runs, (parts - 1, parts, orders[-1], 0.0)]:
        solver = plain[order]
        if share:
            solver = noising.ancestral_steps(solver, process, share, noise)
        part = NoiseLevel(*(leaf[first : last + 1] for leaf in levels))
        go = lambda x, part, solver=solver: walk(
            jax.random.key(0), solver, reference.denoise, x, part
        )
        x, _ = reference.compiled(go, x, part)
    assert_allclose(x, theirs.numpy(), rtol=1e-9, atol=1e-9)


END = {"dpmsolver++": "zero", "dpmsolver": "sigma_min"}
# its (algorithm, order) -> ours
SINGLE = {
    ("dpmsolver++", 2): lambda p: SOLVERS["dpmpp_2s"](p),
    ("dpmsolver", 2): lambda p: SOLVERS["dpm_solver"](p, 2),
    ("dpmsolver++", 3): lambda p: SOLVERS["dpmpp_3s"](p),
    ("dpmsolver", 3): lambda p: SOLVERS["dpm_solver"](p, 3),
}


@pytest.mark.parametrize("blocks", [2, 6])
@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_blocks_of_diffusers(x64, case, blocks):
    """A step of order k is a block of k of its timesteps, whose inner levels its grid has.

    On a grid that is even in log sigma these lie at 1/2, or 1/3 and 2/3, as the papers have it.
    Of order 3 it differs from Lu et al. 2022a, algorithm 2, in the second inner stage alone: this
    it takes by the rule of its option, (e^h - 1)/2·D', where the paper has the integral of the
    slope, ((e^h - 1)/h - 1)·D', which is its option "heun"; but with "heun" the whole step too is
    another.  Changed between the two, it is the paper's.
    """
    algorithm, order = case
    steps = blocks * order + 1
    scheduler = scheduler_of(
        "DPMSolverSinglestepScheduler", solver_order=order, algorithm_type=algorithm,
        use_exponential_sigmas=True, final_sigmas_type=END[algorithm],
    )  # fmt: skip
    with reference.double(type(scheduler)):
        scheduler.set_timesteps(steps)
        assert scheduler.order_list == list(range(1, order + 1)) * blocks + [1]
        x, xs = torch.tensor(reference.start()), []
        for i, t in enumerate(scheduler.timesteps):
            xs.append(x.numpy())
            s = float(scheduler.sigmas[i])
            alpha = 1 / (1 + s**2) ** 0.5
            inner = order == 3 and scheduler.order_list[i] == 2
            scheduler.register_to_config(solver_type="heun" if inner else "midpoint")
            x = scheduler.step(reference.output(x, alpha, s * alpha, "epsilon"), t, x).prev_sample
    levels = reference.levels_of(scheduler.sigmas[:-1:order].numpy(), vp)
    make = lambda z, n: SINGLE[case](Process(schedules.cosine(), vp))
    ours, sample = reference.our_trace(make, xs[0], levels)
    assert_allclose(ours, np.stack(xs[::order]), rtol=1e-9, atol=1e-9)
    if algorithm == "dpmsolver++":  # the other ends by a step from its last level to itself
        assert_allclose(sample, x.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
def test_dpm_2_ancestral_of_diffusers(x64, steps, target):
    scheduler = scheduler_of("KDPM2AncestralDiscreteScheduler", prediction_type=target)
    rows = reference.noise_rows(steps)
    make = lambda z, n: noising.dpm_2_ancestral(_process(), 1.0, z)
    schedulers.compare(make, scheduler, steps, ve, target, rows, slice(None, None, 2))
