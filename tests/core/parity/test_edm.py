"""diffusers' schedulers for EDM's preconditioned networks, float64."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose

from diffusion_jax.core import grids, network_io, schedules, targets
from diffusion_jax.core.process import Process, ve
from diffusion_jax.core.solvers import SOLVERS, dpm
from diffusion_jax.core.solvers.steps import X0

pytestmark = pytest.mark.parity
diffusers, torch = reference.needed("diffusers"), reference.torch

DATA, LOW, HIGH = 0.5, 0.002, 80.0


def _trace(scheduler, steps, rows):
    """x at every sigma and after the last, and the sigmas, by its own loop and preconditioning."""
    kind = type(scheduler)
    x, xs = torch.tensor(reference.start()) * HIGH, []
    drawing = reference.drawing(sys.modules[kind.__module__], "randn_tensor", rows)
    with reference.double(kind), drawing:
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            xs.append(x)
            scaled = scheduler.scale_model_input(x, t)
            s = float(scheduler.sigmas[scheduler.step_index])
            assert_allclose(scaled, x / (s**2 + DATA**2) ** 0.5, rtol=1e-12)
            assert_allclose(t, np.log(s) / 4, rtol=1e-12)
            mean = reference.posterior_mean(x, s, torch.exp)
            out = (mean - DATA**2 / (s**2 + DATA**2) * x) / (s * DATA / (s**2 + DATA**2) ** 0.5)
            x = scheduler.step(out, t, x).prev_sample
    return np.stack([*xs, x]), scheduler.sigmas.numpy()[:-1]


def _compare(scheduler, make, steps):
    rows = reference.noise_rows(steps)
    theirs, sigmas = _trace(scheduler, steps, rows)
    levels = reference.levels_of(sigmas, ve)
    ours, sample = reference.our_trace(make, theirs[0], levels, rows)
    assert_allclose(ours, theirs[:-1], rtol=1e-9, atol=1e-9)
    assert_allclose(sample, theirs[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [5, 20])
def test_edm_euler(x64, steps):
    """Without churn: with it, its network is called before the noise, and read as if after it."""
    _compare(diffusers.EDMEulerScheduler(), lambda z, n: SOLVERS["euler"](), steps)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    ("kind", "order", "rule"),
    [
        ("dpmsolver++", 2, "midpoint"),
        ("dpmsolver++", 2, "heun"),
        ("dpmsolver++", 3, "midpoint"),
        ("dpmsolver++", 3, "heun"),
        ("sde-dpmsolver++", 2, "midpoint"),
        ("sde-dpmsolver++", 2, "heun"),
    ],
)
def test_edm_dpm_multistep(x64, kind, order, rule, steps):
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        algorithm_type=kind, solver_order=order, solver_type=rule
    )
    ours = {"midpoint": "midpoint", "heun": "exact"}[rule]
    eta = 1.0 if kind.startswith("sde") else 0.0
    make = lambda z, n: dpm.multistep(X0, order, eta, ours, 0.5, n if steps < 15 else None, z)
    _compare(scheduler, make, steps)


def test_karras_grid(x64):
    kind = diffusers.EDMEulerScheduler
    with reference.double(kind):
        scheduler = kind()
        scheduler.set_timesteps(12)
    ours = grids.karras(Process(schedules.cosine(), ve), 12, 7.0, LOW, HIGH)
    assert_allclose(ours.sigma, scheduler.sigmas[:-1], rtol=1e-9)


@pytest.mark.parametrize("s", [0.01, 0.5, 30.0])
def test_preconditioning(x64, s):
    """What F means: c_skip·x + c_out·F is x0 of our target; and the network's input."""
    x, out = reference.start(), reference.noise_rows(1)[0]
    kind = diffusers.EDMEulerScheduler
    with reference.double(kind):
        scheduler = kind(sigma_data=DATA)
        x0 = scheduler.precondition_outputs(torch.tensor(x), torch.tensor(out), s).numpy()
        scaled = scheduler.precondition_inputs(torch.tensor(x), s).numpy()
    level = reference.NoiseLevel(*(leaf[0] for leaf in reference.levels_of([s], ve)))
    target = targets.TARGETS["edm"](sigma_data=DATA)
    ours = targets.predict(target, jnp.asarray(out), jnp.asarray(x), level)
    assert_allclose(ours.x0, x0, rtol=1e-9, atol=1e-12)
    scale = network_io.SCALE_INPUTS["edm"](sigma_data=DATA)(level)
    assert_allclose(scale * x, scaled, rtol=1e-6)  # ours is float32, as all that the network sees
