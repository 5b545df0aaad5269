"""Levels per frame or pixel: exact conditionals, schedules of levels, and every solver's way."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

from diffusion_jax.core import (
    exact_moments,
    grids,
    guidance,
    level_maps,
    network_io,
    oracles,
    oracles_conditional,
    sampling,
    schedules,
    targets,
)
from diffusion_jax.core.process import PATHS, Process, corrupt
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.solvers.dpm import dpmpp_2m
from diffusion_jax.core.solvers.runge_kutta import heun
from diffusion_jax.core.types import Model, Prediction


def _process(path="vp"):
    return Process(schedules.cosine(), PATHS[path])


def _levels(log_snr, path="vp"):
    return jax.jit(lambda: _process(path).at_log_snr(jnp.asarray(log_snr)))()


def _clip(frames=12, rho=0.95):
    """A clip of one number a frame: stationary, of correlation rho between frames."""
    return rho ** np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))


def _exact(covariance):
    data = oracles.mixture([1.0], [np.zeros(len(covariance))], [covariance])
    return lambda x, level: oracles_conditional.predict(data, x, level)


def test_the_denoiser_is_the_textbooks_number_by_number(x64):
    """Of two components at levels per number, against densities by scipy and finite differences."""
    means, covariances = [[-1.0, 0.5, 0.2], [0.7, -0.3, 0.1]], [0.4 * _clip(3, 0.8), _clip(3, -0.5)]
    data = oracles.mixture([1, 2], means, covariances)
    x = np.array([[0.3, -0.8, 0.6], [1.2, 0.1, -0.4]])
    level = _levels([[-1.0, 0.5, 3.0], [2.0, -np.inf, np.inf]], "subvp")
    got = oracles_conditional.predict(data, jnp.asarray(x), level)
    a, s = np.asarray(level.alpha), np.asarray(level.sigma)
    assert_allclose(a * got.x0 + s * got.eps, x, atol=1e-12)
    assert_allclose(got.x0[1, 2], x[1, 2], rtol=1e-12)  # clean
    spread = lambda i, c: np.diag(a[i]) @ c @ np.diag(a[i]) + np.diag(s[i] ** 2)

    def density(i, at):
        laws = zip([1 / 3, 2 / 3], means, covariances, strict=True)
        return sum(w * multivariate_normal(a[i] * m, spread(i, c)).pdf(at) for w, m, c in laws)

    for i in range(2):
        for j in range(3):
            h = 1e-5 * np.eye(3)[j]
            slope = (np.log(density(i, x[i] + h)) - np.log(density(i, x[i] - h))) / 2e-5
            assert_allclose(got.eps[i, j], -s[i, j] * slope, atol=1e-8)
    same = _levels([0.4, -2.0])
    wanted, got = oracles.predict(data, x, same), oracles_conditional.predict(data, x, same)
    assert_allclose(got.x0, wanted.x0, rtol=1e-10)
    assert_allclose(got.eps, wanted.eps, rtol=1e-10)


def test_the_posterior_of_a_mixture_is_bayes_rule(x64):
    """p(x0)·p(y | x0) is proportional to the posterior's density, at any points."""
    data = oracles.mixture(
        [1, 3], [[-1.0, 0.4], [1.5, 0.2]], [0.3 * _clip(2, 0.6), [[0.2, 0], [0, 1]]]
    )
    operator, y, noise = np.array([[0.7, -1.1]]), np.array([0.5]), 0.4
    got = oracles_conditional.posterior(data, jnp.asarray(operator), jnp.asarray(y), noise)
    x = jax.random.normal(jax.random.key(0), (7, 2), jnp.result_type(float))
    residual = (y - x @ operator.T)[:, 0]
    joint = oracles.log_prob(data, x) - residual**2 / (2 * noise**2)
    ratio = oracles.log_prob(got, x) - joint
    assert_allclose(ratio, np.full(7, ratio[0]), atol=1e-9)
    # The evidence, which the ratio is one over, normalises it.
    grid = np.stack(np.meshgrid(*[np.linspace(-8, 8, 401)] * 2), -1).reshape(-1, 2)
    assert_allclose(np.exp(oracles.log_prob(got, jnp.asarray(grid))).sum() * 0.04**2, 1, rtol=1e-6)
    without_noise = oracles_conditional.posterior(data, jnp.eye(2)[:1], jnp.asarray(y), 0.0)
    assert_allclose(without_noise.means[:, 0], [0.5, 0.5], rtol=1e-12)


@jax.jit
def _walk(x, levels):
    return sampling.walk(jax.random.key(0), ddim(), _exact(_clip()), x, levels)[0]


def _map(levels, frames=12):
    """DDIM over levels [m, 1, f] is linear in where it starts: its matrix."""
    return np.asarray(_walk(jnp.eye(frames), levels)).T


def test_frames_held_clean_are_conditions(x64):
    """The exact conditional, where replacing the known part is 2.8 nats off (see test_repaint)."""
    covariance, y = _clip(), np.array([1.5, 0.5, 0.0, -1.0])
    mask = (jnp.arange(12) >= 4)[None]
    given = jax.tree.map(lambda leaf: leaf[()], _levels(14.0))
    apart = []
    for n in (60, 120):
        levels = level_maps.held(_levels(np.linspace(-10, 10, n)), mask, given)
        assert levels.log_snr.shape == (n, 1, 12)
        way = _map(levels)
        assert (way[:4, :4] == np.eye(4)).all() and (way[:4, 4:] == 0).all()
        gain = covariance[4:, :4] @ np.linalg.inv(covariance[:4, :4])
        mean, spread = way[4:, :4] @ y, way[4:, 4:] @ way[4:, 4:].T
        wanted = gain @ y, covariance[4:, 4:] - gain @ covariance[:4, 4:]
        apart.append(exact_moments.gaussian_kl(mean, spread, *wanted))
    assert apart[0] < 0.02
    assert_allclose(mean[0], -0.946, atol=1e-3)  # -0.95, but for a start that is not all noise
    assert_allclose(apart[0] / apart[1], 4, rtol=0.1)


def test_all_schedules_of_levels_end_in_the_same_law(x64):
    """Full, pyramid and autoregressive: KL to the data falls to a quarter as the steps double."""
    for lag in (0, 1, None):
        apart = []
        for n in (15, 30, 60, 120):
            steps = level_maps.staggered(
                _levels(np.linspace(-10, 10, n)), 12, n - 1 if lag is None else lag
            )
            assert steps.t.shape == (n + 11 * (n - 1 if lag is None else lag), 1, 12)
            way = _map(steps)
            law = np.zeros(12), way @ way.T
            apart.append(exact_moments.gaussian_kl(*law, np.zeros(12), _clip()))
        assert_allclose(apart, [0.339, 0.083, 0.0205, 0.0051], rtol=0.15)
        assert_allclose(np.divide(apart[1:3], apart[2:]), 4, rtol=0.1)


def test_second_order_solvers_are_of_second_order_frame_by_frame(x64):
    """On one pyramid, of finer and finer steps; which pyramid it is decides where x goes."""
    x = jax.random.normal(jax.random.key(2), (3, 4), jnp.result_type(float))

    @functools.partial(jax.jit, static_argnums=0)
    def run(solver_of, levels):
        return sampling.walk(jax.random.key(0), solver_of(), _exact(_clip(4, 0.8)), x, levels)[0]

    def end(solver_of, n):
        lag = (n - 1) // 20
        return run(solver_of, level_maps.staggered(_levels(np.linspace(-4, 4, n)), 4, lag))

    exact = end(heun, 641)
    for solver in (heun, dpmpp_2m):
        errors = [np.abs(end(solver, n) - exact).max() for n in (41, 81)]
        assert errors[1] < 0.02
        assert 1.7 < np.log2(errors[0] / errors[1]) < 2.4


REFUSING = {"sa_solver", "edict", "adaptive", "restart"}


def _solver(name):
    parameters = inspect.signature(SOLVERS[name]).parameters
    arguments = {"process": _process()} if "process" in parameters else {}
    return SOLVERS[name](**arguments, **({"steps": 6} if "steps" in parameters else {}))


@pytest.mark.parametrize("name", SOLVERS)
def test_each_solver_takes_levels_per_frame_or_says_that_it_does_not(name):
    """One level for all frames is the scalar's way; clean frames stay as they are, bit for bit."""
    solver, grid = _solver(name), _levels([-5.0, -2.0, -0.5, 1.0, 3.0])
    covariance = np.kron(np.eye(2), _clip(3, 0.7))
    exact = _exact(covariance)

    def denoise(x, level, end=None):
        del end
        return exact(x, level)

    x = jax.random.normal(jax.random.key(1), (2, 3, 2, 1))
    run = lambda levels: sampling.sample(jax.random.key(3), solver, denoise, x, levels)
    mask = jnp.array([[0, 1, 1]])
    clean = level_maps.by_strength(grid, mask.astype(jnp.float32))
    if name in REFUSING:
        with pytest.raises(ValueError, match="needs one level for the whole batch, got levels of"):
            run(clean)
        return
    alike = level_maps.staggered(grid, 3, 0)
    plain, same, given = jax.jit(lambda: (run(grid), run(alike), run(clean)))()
    assert_allclose(same, plain, rtol=1e-4, atol=1e-5)
    assert (given[:, 0] == x[:, 0]).all()
    assert np.isfinite(given).all() and np.abs(given[:, 1:] - plain[:, 1:]).max() > 1e-3


def test_a_strength_for_each_pixel_is_where_it_begins():
    """One strength for all is SDEdit by a cut grid; 0 leaves a pixel, 1 takes it all the way."""
    grid = _levels(np.linspace(-6, 6, 10))
    x0, eps = jax.random.normal(jax.random.key(0), (2, 2, 3, 2, 1))
    denoise = lambda x, level: Prediction(jnp.tanh(x), jnp.tanh(x) - 0.3 * x)

    @jax.jit
    def soft(strength):
        levels = level_maps.by_strength(grid, strength)
        x = corrupt(x0, eps, jax.tree.map(lambda leaf: leaf[0], levels))
        return sampling.sample(jax.random.key(0), dpmpp_2m(), denoise, x, levels)

    cut = grids.truncate(grid, 0.6)
    x = corrupt(x0, eps, jax.tree.map(lambda leaf: leaf[0], cut))
    wanted = jax.jit(lambda: sampling.sample(jax.random.key(0), dpmpp_2m(), denoise, x, cut))()
    assert_allclose(soft(jnp.full((2, 3, 2, 1), np.float32(0.6))), wanted, rtol=1e-5, atol=1e-6)
    assert (soft(jnp.zeros((2, 3, 2, 1))) == x0).all()
    half = soft(jnp.zeros((2, 3, 2, 1)).at[1, :, 0].set(0.6))
    assert_allclose(half[1, :, 0], wanted[1, :, 0], rtol=1e-5, atol=1e-6)
    assert (half[0] == x0[0]).all() and (half[1, :, 1] == x0[1, :, 1]).all()
    assert soft._cache_size() == 1


def test_the_last_level_is_stepped_to_frame_by_frame():
    grid = _levels([-3.0, 0.0, 2.0])
    denoise = lambda x, level: Prediction(0.5 * x, x)
    end = _levels(2.5)
    levels = level_maps.held(grid, jnp.array([[1, 0]]), end)
    x = jnp.ones((1, 2, 3))
    run = lambda end: sampling.sample(jax.random.key(0), ddim(), denoise, x, levels, end)
    assert (run(end)[:, 1] == 1).all()  # already there
    assert_allclose(run(None)[:, 1], 0.5)
    xs, x0s = sampling.trajectory(jax.random.key(0), ddim(), denoise, x, levels, [0, 2])
    assert xs.shape == x0s.shape == (2, 1, 2, 3)
    assert (xs[:, :, 1] == 1).all()
    assert_allclose(x0s[-1], run(None))
    start = sampling.prior(jax.random.key(0), (4000, 2), levels)
    first = np.asarray(levels.alpha[0, 0] ** 2 + levels.sigma[0, 0] ** 2)
    assert_allclose(start.var(0), first, rtol=0.1)


@pytest.mark.parametrize(
    ("shape", "wanted"), [((), (4,)), ((4,), (4,)), ((1, 3), (4, 3)), ((4, 3), (4, 3)),
                          ((1, 3, 2, 1), (4, 3, 2, 1))],
)  # fmt: skip
def test_a_network_is_told_levels_in_their_own_shape(shape, wanted):
    seen = []

    def net(params, x, time, cond, *, key=None):
        seen.append((x, time))
        return x

    scale_in, time_in = network_io.edm_scale(0.5), network_io.discrete(100)
    identity = lambda params, x, *key: x
    model = Model(
        net, _process(), targets.v(), scale_in, time_in, (identity, identity), identity, identity
    )
    level = _levels(np.linspace(-2, 2, int(np.prod(shape))).reshape(shape))
    x = jax.random.normal(jax.random.key(0), (4, 3, 2, 5))
    out = targets.denoiser(model, {})(x, level, {})
    ((scaled, time),) = seen
    assert time.shape == wanted and time.dtype == jnp.float32
    assert_allclose(time, np.broadcast_to(time_in(level), wanted))
    per_number = lambda c: np.asarray(c).reshape(shape + (1,) * (4 - len(shape)))
    assert_allclose(scaled, x * per_number(scale_in(level)), rtol=1e-6)
    assert_allclose(
        per_number(level.alpha) * out.x0 + per_number(level.sigma) * out.eps, x, atol=1e-5
    )


@pytest.mark.parametrize("first", [1, 2])
def test_conditions_share_levels_per_frame(first):
    """k conditions in one call; a first axis of 1 is for all examples."""
    level = _levels(np.linspace(-2, 2, first * 3).reshape(first, 3))
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))

    def denoiser(x, level, cond):
        assert level.t.shape == (x.shape[0], 3)
        return Prediction(cond["label"][:, None, None] * x * level.alpha[..., None], x)

    conds = [{"label": jnp.array([i, 10.0 * i])} for i in (1, 2, 3)]
    got = guidance.predictions(denoiser, conds)(x, level)
    for i, each in enumerate(got, 1):
        wanted = np.array([i, 10.0 * i])[:, None, None] * x * level.alpha[..., None]
        assert_allclose(each.x0, wanted, rtol=1e-6)
    # A weight for each frame: stronger towards the end (Blattmann et al. 2023).
    scale = jnp.linspace(1.0, 3.0, 3)[None]
    guided = guidance.cfg(denoiser, conds[2], conds[0], scale)(x, level)
    w = np.linspace(1, 3, 3)[:, None]
    assert_allclose(guided.x0, (1 - w) * got[0].x0 + w * got[2].x0, rtol=1e-5)
