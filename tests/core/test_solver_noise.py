"""Where solvers add noise, as published, and that memory ends there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import grids, sampling, schedules
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers import SOLVERS, noising
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.solvers.dpm import dpmpp_2m
from diffusion_jax.core.solvers.invertible import edict
from diffusion_jax.core.solvers.repaint import repaint, repaint_on_grid
from diffusion_jax.core.solvers.runge_kutta import heun
from diffusion_jax.core.solvers.sa_solver import sa_solver
from diffusion_jax.core.solvers.unipc import unipc
from diffusion_jax.core.types import Prediction


def _process(path="vp"):
    return Process(schedules.cosine(), PATHS[path])


def _alike(x, level, end=None):
    """The exact denoiser of N(0.3, 0.25)."""
    del end
    rest = x - 0.3 * level.alpha
    variance = 0.25 * level.alpha**2 + level.sigma**2
    return Prediction(0.3 + 0.25 * level.alpha / variance * rest, level.sigma / variance * rest)


def _algorithm_2(x, t, draws, s_churn, s_min, s_max, s_noise):
    """Karras et al. 2022, algorithm 2, in NumPy: t has N levels and the 0 after them."""
    n = len(t) - 1
    denoised = lambda x, t: 0.3 + 0.25 / (0.25 + t**2) * (x - 0.3)
    for i in range(n):
        gamma = min(s_churn / n, 2**0.5 - 1) if s_min <= t[i] <= s_max else 0.0
        raised = t[i] * (1 + gamma)
        x = x + np.sqrt(raised**2 - t[i] ** 2) * s_noise * draws[i]
        slope = (x - denoised(x, raised)) / raised
        moved = x + (t[i + 1] - raised) * slope
        if t[i + 1]:
            slope = (slope + (moved - denoised(moved, t[i + 1])) / t[i + 1]) / 2
            moved = x + (t[i + 1] - raised) * slope
        x = moved
    return x


# The defaults, all but the ends of the range, none but the last level, and more than the cap.
CHURNS = (
    (40.0, 0.05, 50.0, 1.003),
    (2.0, 0.01, 10.0, 1.2),
    (1.5, 0.0, 0.03, 0.7),
    (100.0, 0.0, np.inf, 1.1),
)


@pytest.mark.parametrize("path", ["ve", "rectified"])
def test_edm_is_algorithm_2_to_the_clean_level(x64, path):
    """With the same draws; the step to 0 is churned too where its level is in the range."""
    process, n = _process(path), 6
    t = np.append(
        (80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.02 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0
    )
    levels = process.at_log_snr(-2 * jnp.log(t[:-1]))
    x, draws = (
        np.random.default_rng(0).normal(size=(2, 3)),
        np.random.default_rng(1).normal(size=(n, 2, 3)),
    )

    def noise(key, x, now, nxt):
        return jnp.asarray(draws)[jnp.argmin(jnp.abs(levels.log_snr - now.log_snr))]

    def run(x, row):
        solver = SOLVERS["edm"](process, n, *row, noise=noise)
        return sampling.sample(jax.random.key(0), solver, _alike, x, levels)

    once = jax.jit(run)
    for row in CHURNS:
        start = 80 * x * levels.alpha[0]
        got = run(start, ()) if row == CHURNS[0] else once(start, row)
        assert_allclose(got, _algorithm_2(80 * x, t, draws, *row), rtol=1e-9, err_msg=row)


def test_trajectory_of_edm_ends_at_the_sample():
    levels = jax.jit(lambda: grids.karras(_process(), 4, s_max=40.0))()
    solver, x = SOLVERS["edm"](_process(), 4, s_min=0.0), jnp.ones((2, 3))
    way = sampling.trajectory(jax.random.key(3), solver, _alike, x, levels)
    sample = sampling.sample(jax.random.key(3), solver, _alike, x, levels)
    assert_allclose(way[1][-1], sample, rtol=1e-5)
    last = jax.tree.map(lambda leaf: leaf[-1], levels)
    assert np.abs(sample - _alike(way[0][-1], last).x0).max() > 1e-6  # churned, so another one


def test_samples_and_trajectories_have_the_dtype_of_x():
    levels = _process().at_log_snr(jnp.array([-2.0, 0.5, 3.0]))
    wide = lambda x, level: _alike(x.astype(jnp.float32), level)
    x, end = jnp.ones((2, 3), jnp.bfloat16), _process().at_log_snr(5.0)
    for ends in (None, end):
        sample = sampling.sample(jax.random.key(0), ddim(), wide, x, levels, ends)
        assert sample.dtype == jnp.bfloat16
    kept = sampling.trajectory(jax.random.key(0), ddim(), wide, x, levels)
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16] * 2
    narrow = lambda x, level: jax.tree.map(lambda a: a.astype(jnp.bfloat16), _alike(x, level))
    sample = sampling.sample(jax.random.key(0), ddim(), narrow, jnp.ones((2, 3)), levels)
    assert sample.dtype == jnp.float32


def _langevin_step(x, alpha, sigma, denoise, z, snr, factor):
    """Song et al. 2021, algorithm 4 (factor 1) or 5 (factor 1 - β_i) on a batch of one."""
    score = -denoise / sigma
    step = 2 * factor * (snr * np.linalg.norm(z) / np.linalg.norm(score)) ** 2
    return x + step * score + np.sqrt(2 * step) * z


def test_a_langevin_step_is_the_published_one(x64):
    """On a table's level, whose β_i is in the algorithm's VP case."""
    process = Process(schedules.linear(), PATHS["vp"])
    now, nxt = process.at(jnp.asarray(0.6)), process.at(jnp.asarray(0.599))
    x = np.random.default_rng(0).normal(size=(1, 40))
    z = np.random.default_rng(1).normal(size=(1, 40))
    z *= 40**0.5 / np.linalg.norm(z)  # of its root mean square norm
    beta = 1e-4 + (0.02 - 1e-4) * 598 / 999
    alpha, sigma = float(nxt.alpha), float(nxt.sigma)
    stay = ddim()._replace(step=lambda key, denoise, x, now, nxt, state: (x, state))
    for factor in (1.0, 1 - beta):
        solver = noising.langevin(stay, 0.3 * factor**0.5, 2, lambda *given: jnp.asarray(z))
        got, _ = solver.step(jax.random.key(0), _alike, jnp.asarray(x), now, nxt, ())
        wanted = x
        for _ in range(2):
            eps = sigma / (0.25 * alpha**2 + sigma**2) * (wanted - 0.3 * alpha)
            wanted = _langevin_step(wanted, alpha, sigma, eps, z, 0.3, factor)
        assert_allclose(got, wanted, rtol=1e-9)
    still = lambda x, level: Prediction(x, 0 * x)  # no score: the longest step is sigma²
    solver = noising.langevin(stay, 0.3, 1, lambda *given: jnp.asarray(z))
    got, _ = solver.step(jax.random.key(0), still, jnp.asarray(x), now, nxt, ())
    assert_allclose(got, x + 2**0.5 * sigma * z)


def test_langevin_is_the_same_on_every_path(x64):
    """x/alpha, from the same noise: from nearly pure noise on, where alpha is small."""
    x, ends = jax.random.normal(jax.random.key(1), (3, 4)), {}
    for path in PATHS:
        levels = _process(path).at_log_snr(jnp.array([-7.0, -5.5, -2.0, 1.0, 4.0]))
        solver = noising.langevin(ddim(1.0), 0.25, 2)
        start = levels.alpha[0] * jnp.exp(3.5) * x
        ends[path] = sampling.sample(jax.random.key(0), solver, _alike, start, levels)
        assert_allclose(ends[path], ends["vp"], rtol=1e-9)


def _ends(solvers, levels):
    x = jax.random.normal(jax.random.key(1), (2, 3))
    run = lambda x: [
        sampling.sample(jax.random.key(5), solver, _alike, x, levels) for solver in solvers
    ]
    return jax.jit(run)(x)


@pytest.mark.parametrize("inner", [unipc(), sa_solver(tau=0.0)])
def test_memory_ends_where_a_wrapper_adds_noise(x64, inner):
    """So each step is of the first order, DDIM's; and without noise the solver is itself."""
    process = _process()
    levels = process.at_log_snr(jnp.array([-4.0, -2.0, 0.0, 2.0, 4.0]))
    around = {
        "churned": lambda s, on: noising.churned(s, process, 0.3 * on, s_noise=1.1),
        "ancestral": lambda s, on: noising.ancestral_steps(s, process, 1.0 * on),
        "repaint": lambda s, on: repaint(s, process, 8 * on, -4.0, 4.0, 0.5),
        "repaint_on_grid": lambda s, on: repaint_on_grid(s, 1 + 2 * on),
    }
    noisy = [wrap(s, 1) for wrap in around.values() for s in (inner, ddim())]
    quiet = [wrap(inner, 0) for wrap in around.values()]
    langevin = [noising.langevin(s, 0.2, 2) for s in (inner, ddim())]
    got = _ends([*noisy, *quiet, *langevin, inner, ddim()], levels)
    for i, name in enumerate(around):
        if "repaint" not in name:  # whose own first leg has the memory of the step before
            assert_allclose(got[2 * i], got[2 * i + 1], rtol=1e-9, err_msg=name)
        assert_allclose(got[8 + i], got[-2], rtol=1e-9, err_msg=name)
    assert_allclose(got[12], got[13], rtol=1e-9)
    assert np.abs(got[-1] - got[-2]).max() > 1e-3


def test_restarts_of_a_multistep_solver_are_no_worse_than_those_of_others(x64):
    """Variance of the samples of N(0.3, 0.25), exactly: the sampler is affine in all its noise."""
    levels = grids.restart(Process(schedules.edm(), PATHS["vp"]), 48, 2, 0.1, 1.0, 9)
    first, last = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in (0, -1))
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 47))

    def error(inner):
        def end(x, table):
            step = lambda key: jnp.argmax((keys == jax.random.key_data(key)).all(-1))
            noise = lambda key, x, now, nxt: table[step(key)]
            solver = noising.renoising(inner, noise)
            return sampling.walk(jax.random.key(0), solver, _alike, x, levels)[0][0, 0]

        of_x, of_noise = jax.jit(jax.grad(end, (0, 1)))(jnp.zeros((1, 1)), jnp.zeros((47, 1, 1)))
        assert np.sum(np.asarray(of_noise) != 0) == 2
        variance = of_x[0, 0] ** 2 * (0.25 * first.alpha**2 + first.sigma**2) + jnp.sum(of_noise**2)
        return abs(float(variance / (0.25 * last.alpha**2 + last.sigma**2)) - 1)

    errors = {"unipc": error(unipc()), "sa_solver": error(sa_solver(tau=0.0))}
    assert max(errors.values()) < min(error(dpmpp_2m()), error(heun())), errors


def test_edict_starts_anew_from_the_noised_copy():
    process, x = _process(path="ve"), jnp.ones((1, 2))
    now, nxt = process.at_log_snr(1.0), process.at_log_snr(-1.0)
    moved, other = noising.renoising(edict()).step(jax.random.key(0), _alike, x, now, nxt, x)
    assert (moved == other).all() and (moved != x).all()


def test_at_pure_noise_nothing_is_noisier():
    """alpha = 0: neither renoising nor churn changes x there."""
    process, x = _process(), jnp.array([[0.3, -1.2]])
    level = process.at_log_snr(-jnp.inf)
    assert (noising.renoise(jax.random.key(0), x, level, level) == x).all()
    stay = ddim()._replace(step=lambda key, denoise, x, now, nxt, state: (x, state))
    churned = noising.churned(stay, process, 0.4)
    assert (churned.step(jax.random.key(0), _alike, x, level, process.at(0.5), ())[0] == x).all()
