"""Traces equal to k-diffusion's samplers of the same name, float64, level by level."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose

from diffusion_jax.core import grids, schedules
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers import SOLVERS, dpm, noising, runge_kutta

pytestmark = pytest.mark.parity
# k-diffusion's name -> (its arguments, ours from (process, noise), whether its last step is to x0)
PAIRS = {
    "euler": ("sample_euler", {}, lambda p, z: SOLVERS["euler"](), True),
    "euler_ancestral": (
        "sample_euler_ancestral", {"eta": 0.7}, lambda p, z: SOLVERS["ddim"](0.7, z), True),
    "heun": ("sample_heun", {}, lambda p, z: SOLVERS["heun"](), True),
    "dpm_2": ("sample_dpm_2", {}, lambda p, z: SOLVERS["dpm_2"](p), True),
    "dpm_2_ancestral": (
        "sample_dpm_2_ancestral", {"eta": 0.7},
        lambda p, z: SOLVERS["dpm_2_ancestral"](p, 0.7, z), True),
    "lms": ("sample_lms", {}, lambda p, z: SOLVERS["lms"](), False),
    "lms 2": ("sample_lms", {"order": 2}, lambda p, z: SOLVERS["lms"](2), False),
    "dpmpp_2s_ancestral": (
        "sample_dpmpp_2s_ancestral", {"eta": 0.7},
        lambda p, z: SOLVERS["dpmpp_2s_ancestral"](p, 0.7, z), True),
    "dpmpp_2m": ("sample_dpmpp_2m", {}, lambda p, z: SOLVERS["dpmpp_2m"](), True),
    "dpmpp_sde": (
        "sample_dpmpp_sde", {"eta": 0.7}, lambda p, z: SOLVERS["dpmpp_sde"](p, 0.7, noise=z), True),
    "dpmpp_2m_sde midpoint": (
        "sample_dpmpp_2m_sde", {"eta": 0.7, "solver_type": "midpoint"},
        lambda p, z: SOLVERS["dpmpp_2m_sde"](0.7, noise=z), True),
    "dpmpp_2m_sde heun": (
        "sample_dpmpp_2m_sde", {"solver_type": "heun"},
        lambda p, z: SOLVERS["dpmpp_2m_sde"](1.0, "exact", noise=z), True),
    "dpmpp_3m_sde": (
        "sample_dpmpp_3m_sde", {"eta": 0.7},
        lambda p, z: SOLVERS["dpmpp_3m_sde"](0.7, curvature=0.5, noise=z), True),
}  # fmt: skip


@pytest.mark.parametrize("steps", [5, 50])
@pytest.mark.parametrize("case", PAIRS)
def test_traces_are_those_of_k_diffusion(x64, case, steps):
    name, arguments, ours, to_x0 = PAIRS[case]
    process = Process(schedules.cosine(), PATHS["ve"])
    levels = grids.karras(process, steps, 7.0, 0.03, 15.0)
    log_snr = np.asarray(levels.log_snr)
    # Rows at the levels and half way between them in log-SNR, for solvers of two stages.
    fine = np.interp(np.arange(2 * steps - 1) / 2, np.arange(steps), log_snr)
    rows = reference.noise_rows(len(fine))
    at = lambda sigma: int(np.argmin(np.abs(fine + 2 * np.log(max(float(sigma), 1e-9)))))

    def noise_sampler(sigma, sigma_next):
        first, last = at(sigma), at(sigma_next)
        if case == "dpmpp_sde" and last == first + 2:  # the whole step: its two halves together
            tau = np.exp(fine[[first, first + 1, last]])
            shares = np.sqrt(np.diff(tau) / (tau[2] - tau[0]))
            return reference.torch.tensor(shares[0] * rows[first + 1] + shares[1] * rows[last])
        return reference.torch.tensor(rows[last])

    given = {"noise_sampler": noise_sampler} if "sde" in name or "ancestral" in name else {}
    theirs, end = reference.k_trace(name, np.asarray(levels.sigma), **given, **arguments)
    make = lambda z, n: ours(process, z)
    xs, sample = reference.our_trace(make, theirs[0], levels, rows, fine)
    assert_allclose(xs, theirs, rtol=1e-6, atol=1e-6)
    if to_x0:
        assert_allclose(sample, end, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("name", ["heun", "euler", "dpm_2"])
def test_churn_is_that_of_k_diffusion(x64, name, steps):
    process = Process(schedules.cosine(), PATHS["ve"])
    levels = grids.karras(process, steps, 7.0, 0.03, 15.0)
    rows = reference.noise_rows(steps)
    settings = {"s_churn": 8.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.01}
    # k-diffusion draws at every step, those outside of the range included.
    theirs, end = reference.k_trace(
        "sample_" + name, np.asarray(levels.sigma), noises=rows, **settings
    )
    inner = {
        "heun": runge_kutta.heun(),
        "euler": runge_kutta.euler(),
        "dpm_2": dpm.dpm_2(process),
    }

    def make(z, n):
        at_start = lambda key, x, now, nxt: z(key, x, now, now)  # row i is of the step from level i
        gamma = jnp.minimum(8.0 / n, 2**0.5 - 1)
        return noising.churned(inner[name], process, gamma, 0.1, 5.0, 1.01, at_start)

    xs, sample = reference.our_trace(make, theirs[0], levels, rows, levels.log_snr)
    assert_allclose(sample, end, rtol=1e-6, atol=1e-6)
    # Its callback sees x after the churn: compare where there is none.
    quiet = np.abs(np.log(np.asarray(levels.sigma) / 0.5**0.5)) > np.log(5 / 0.5**0.5)
    assert quiet.any() and not quiet.all()
    assert_allclose(xs[quiet], theirs[quiet], rtol=1e-6, atol=1e-6)
