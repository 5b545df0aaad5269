"""Stochastic solvers: their distribution, and how fast it tends to the data's."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import grids, oracles, sampling, schedules
from diffusion_jax.core.noise import brownian
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers import SOLVERS, dpm, noising
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.types import Prediction

# name -> (solver, its arguments, weak order of the variance on Gaussian data)
SOLVERS_AND_ORDERS = {
    "ddpm": ("ddpm", {}, 1),
    "ddim eta 0.5": ("ddim", {"eta": 0.5}, 1),
    "euler_ancestral": ("euler_ancestral", {}, 1),
    "dpm_2_ancestral": ("dpm_2_ancestral", {}, 2),
    "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", {}, 2),
    "dpmpp_sde": ("dpmpp_sde", {}, 2),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}, 2),
    "dpmpp_2m_sde exact, eta 0.5": ("dpmpp_2m_sde", {"rule": "exact", "eta": 0.5}, 2),
    "dpmpp_3m_sde": ("dpmpp_3m_sde", {}, 2),
    "sa_solver": ("sa_solver", {}, 2),
    "sa_solver tau 0.4": ("sa_solver", {"tau": 0.4, "order": 3, "corrector_order": 0}, 2),
    "er_sde 1": ("er_sde", {"order": 1}, 1),
    "er_sde 3": ("er_sde", {}, 2),
    "er_sde 2 as sde": ("er_sde", {"order": 2, "scale": "sde"}, 2),
    "edm": ("edm", {"steps": 400}, 1),
}


def _solver(name, process, **arguments):
    factory = SOLVERS[name]
    if "process" in inspect.signature(factory).parameters:
        arguments["process"] = process
    return factory(**arguments)


def _table_noise(table, lams):
    """A Noise that reads row k of the table for a step that ends at lams[k]."""
    return lambda key, x, now, nxt: table[jnp.argmin(jnp.abs(lams - nxt.log_snr))]


def _variance(case, n):
    """Of the sampler's output for N(0, 0.3) data, exactly: the sampler is linear in its noise."""
    name, arguments, _ = SOLVERS_AND_ORDERS[case]
    data = oracles.mixture([1.0], [[0.0]], [0.3])
    process = Process(schedules.cosine(), PATHS["vp"])
    levels = process.at_log_snr(jnp.linspace(-3.0, 3.0, n + 1))
    fine = jnp.linspace(-3.0, 3.0, 2 * n + 1)  # halves too, for two-stage solvers

    def end(x, table):
        noise = _table_noise(table, fine)
        solver = _solver(name, process, noise=noise, **arguments)
        denoise = lambda x, level: oracles.predict(data, x, level)
        return sampling.walk(jax.random.key(0), solver, denoise, x, levels)[0][0, 0]

    of_x, of_noise = jax.jit(jax.grad(end, (0, 1)))(jnp.zeros((1, 1)), jnp.zeros((2 * n + 1, 1, 1)))
    first, last = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in (0, -1))
    start = 0.3 * first.alpha**2 + first.sigma**2
    got = of_x[0, 0] ** 2 * start + jnp.sum(of_noise**2)
    return float(got / (0.3 * last.alpha**2 + last.sigma**2))


@pytest.mark.parametrize("case", [case for case in SOLVERS_AND_ORDERS if case != "edm"])
def test_the_variance_tends_to_the_datas_at_the_weak_order(x64, case):
    """Multistep methods start with one first-order step, whose error in law is of order 2."""
    coarse, fine = (abs(_variance(case, n) - 1) for n in (48, 96))
    assert fine < 0.05
    order = SOLVERS_AND_ORDERS[case][2]
    assert np.log2(coarse / fine) > order - 0.15, (coarse, fine, np.log2(coarse / fine))
    if order == 1:
        assert np.log2(coarse / fine) < 1.3


def test_independent_noises_would_cost_dpmpp_sde_an_order(x64, monkeypatch):
    """A step whose noise does not contain that of its own first half has weak order 1, not 2."""
    monkeypatch.setattr(dpm, "joined", lambda first, second, now, middle, nxt: second)
    coarse, fine = (abs(_variance("dpmpp_sde", n) - 1) for n in (48, 96))
    assert 0.7 < np.log2(coarse / fine) < 1.3, (coarse, fine, np.log2(coarse / fine))


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
def test_sa_solver_is_exact_where_x0_is_linear_in_log_snr(x64, tau):
    """After its first step: the mean of equation (1) for x0 = 0.7 + 0.3·l, without noise."""
    process = Process(schedules.cosine(), PATHS["vp"])
    levels = process.at_log_snr(jnp.array([-1.0, 0.0, 1.6]))

    def denoise(x, level):
        x0 = jnp.full_like(x, 0.7 + 0.3 * level.log_snr / 2)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    still = lambda key, x, now, nxt: jnp.zeros_like(x)
    solver = SOLVERS["sa_solver"](tau=tau, corrector_order=0, noise=still)
    upto = lambda n: jax.tree.map(lambda leaf: leaf[:n], levels)
    walk = lambda n: sampling.walk(jax.random.key(0), solver, denoise, jnp.ones((1, 1)), upto(n))
    (before, _), (after, _) = walk(2), walk(3)
    now, nxt = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in (1, 2))
    rate, start, end = 1 + tau**2, now.log_snr / 2, nxt.log_snr / 2
    half = jnp.linspace(start, end, 20_001)
    weight = rate * jnp.exp(rate * (half - end))
    moved = nxt.sigma / now.sigma * jnp.exp(-(tau**2) * (end - start)) * before
    expected = moved + nxt.alpha * jnp.trapezoid(weight * (0.7 + 0.3 * half), half)
    assert_allclose(after, expected, rtol=1e-7)


def _mixture():
    return oracles.mixture([1, 3], [[-1.5, 0.0], [1.0, 0.5]], [0.15, 0.3])


@functools.partial(jax.jit, static_argnums=0)
def _draw(case, key, x, levels):
    name, arguments, _ = SOLVERS_AND_ORDERS[case]
    solver = _solver(name, Process(schedules.cosine(), PATHS["vp"]), **arguments)
    denoise = lambda x, level: oracles.predict(_mixture(), x, level)
    return sampling.sample(key, solver, denoise, x, levels)


def _assert_distributed_as_the_mixture(sample, bias=0.0):
    """Mean, covariance and weights within 3 standard errors (and a stated bias)."""
    n, data = len(sample), _mixture()
    sample = np.asarray(sample)
    mean, cov = (np.asarray(m) for m in oracles.moments(data))
    assert (np.abs(sample.mean(0) - mean) < 3 * np.sqrt(np.diag(cov) / n) + bias).all()
    products = (sample - mean)[:, :, None] * (sample - mean)[:, None]
    assert (np.abs(products.mean(0) - cov) < 3 * products.std(0) / n**0.5 + bias).all()
    right = np.mean(sample[:, 0] > -0.25)
    exact = np.mean(np.asarray(oracles.sample(jax.random.key(5), data, 400_000))[:, 0] > -0.25)
    assert abs(right - exact) < 3 * (exact * (1 - exact) / n) ** 0.5 + bias


@pytest.mark.parametrize("case", SOLVERS_AND_ORDERS)
def test_samples_are_distributed_as_the_data(case):
    process = Process(schedules.cosine(), PATHS["vp"])
    levels = jax.jit(lambda: grids.uniform_log_snr(process, 400))()
    x = jax.random.normal(jax.random.key(7), (4000, 2))
    _assert_distributed_as_the_mixture(_draw(case, jax.random.key(2), x, levels))


def test_langevin_corrections_mend_a_coarse_predictor():
    """Ten Langevin steps at each of few levels bring the law closer to the data's."""
    process = Process(schedules.cosine(), PATHS["vp"])
    levels = jax.jit(lambda: grids.uniform_log_snr(process, 8))()
    x = jax.random.normal(jax.random.key(7), (4000, 2))
    denoise = lambda x, level: oracles.predict(_mixture(), x, level)
    cov = np.asarray(oracles.moments(_mixture())[1])

    def error(solver):
        run = jax.jit(lambda key: sampling.sample(key, solver, denoise, x, levels))
        return np.abs(np.cov(np.asarray(run(jax.random.key(0))).T) - cov).max()

    plain = error(ddim(1.0))
    mended = error(noising.langevin(ddim(1.0), snr=0.3, corrections=10))
    assert mended < 0.6 * plain


def test_restarts_keep_the_law_and_mend_a_coarse_solver():
    process = Process(schedules.cosine(), PATHS["vp"])
    x = jax.random.normal(jax.random.key(7), (4000, 2))
    denoise = lambda x, level: oracles.predict(_mixture(), x, level)
    solver = SOLVERS["restart"]()
    levels = jax.jit(lambda: grids.restart(process, 120, 3, 0.1, 1.0, 20))()
    run = jax.jit(lambda key: sampling.sample(key, solver, denoise, x, levels))
    _assert_distributed_as_the_mixture(run(jax.random.key(0)))
    log_snr = np.asarray(levels.log_snr)
    assert np.sum(log_snr[1:] < log_snr[:-1]) == 3


def test_consistency_sampling_of_the_exact_denoiser_is_a_chain_of_jumps(x64):
    """Each step's law, given x0-hat: mean alpha·x0-hat and deviation sigma, whatever x was."""
    process = Process(schedules.cosine(), PATHS["vp"])
    now, nxt = process.at(0.8), process.at(0.4)
    x = jnp.full((20_000, 1), 0.7)
    data = oracles.mixture([1.0], [[0.3]], [0.5])
    denoise = lambda x, level: oracles.predict(data, x, level)
    out, _ = SOLVERS["consistency"]().step(jax.random.key(0), denoise, x, now, nxt, ())
    x0 = denoise(x[:1], now).x0
    assert_allclose(np.mean(out), nxt.alpha * x0[0, 0], atol=4 * float(nxt.sigma) / 20_000**0.5)
    assert_allclose(np.std(out), nxt.sigma, rtol=0.02)


def test_brownian_increments_are_normal_independent_and_add_up(x64):
    process = Process(schedules.cosine(), PATHS["vp"])
    at = lambda lam: process.at_log_snr(jnp.asarray(lam))
    noise = brownian(jax.random.key(0))
    x = jnp.zeros((20_000, 1))
    lams = (-4.0, -1.3, -1.2, 2.0, 6.0)
    step = jax.jit(lambda a, b: noise(jax.random.key(9), x, at(a), at(b))[:, 0])
    parts = [np.asarray(step(a, b)) for a, b in itertools.pairwise(lams)]
    correlation = np.corrcoef(parts)
    assert_allclose(correlation, np.eye(4), atol=4 / 20_000**0.5)
    assert_allclose(np.std(parts, axis=1), 1, rtol=4 / (2 * 20_000) ** 0.5)
    # Increments, unlike their normalised values, add up: the same path on another grid.
    gaps = np.sqrt(np.diff(np.exp(lams)))
    whole = np.asarray(step(lams[0], lams[-1])) * np.sqrt(np.exp(lams[-1]) - np.exp(lams[0]))
    assert_allclose(np.asarray(parts).T @ gaps, whole, rtol=1e-6, atol=1e-6)


def test_brownian_noise_makes_few_steps_and_many_the_same_picture(x64):
    """The paths converge strongly: with white noise they would not come closer at all."""
    process = Process(schedules.cosine(), PATHS["vp"])
    denoise = lambda x, level: oracles.predict(_mixture(), x, level)
    x = jax.random.normal(jax.random.key(7), (50, 2))

    def end(n, noise):
        levels = process.at_log_snr(jnp.linspace(-6.0, 6.0, n))
        solver = SOLVERS["dpmpp_2m_sde"](noise=noise)
        run = jax.jit(lambda: sampling.sample(jax.random.key(0), solver, denoise, x, levels))
        return np.asarray(run())

    same = brownian(jax.random.key(1))
    exact = end(513, same)
    far, near = (np.sqrt(np.mean((end(n, same) - exact) ** 2)) for n in (33, 129))
    assert near < 0.5 * far
    assert near < 0.1


def test_brownian_noise_needs_one_level_for_the_batch():
    level = Process(schedules.cosine(), PATHS["vp"]).at(jnp.array([0.2, 0.3]))
    with pytest.raises(ValueError, match="one level for the whole batch"):
        brownian(jax.random.key(0))(jax.random.key(1), jnp.zeros((2, 1)), level, level)
