import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import grids, oracles, sampling, schedules
from diffusion_jax.core.process import PATHS, Process, clean, posterior
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.solvers.ancestral import ancestral, fixed_large, fixed_small, learned_range
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.types import Prediction


def _grid(grid, process, n):
    return jax.jit(lambda: grid(process, n))()


def _gaussian():
    return oracles.mixture([1.0], [[0.4, -0.2]], [[[0.5, 0.2], [0.2, 0.3]]])


def _mixture():
    return oracles.mixture([1, 3], [[-1.5, 0.0], [1.0, 0.5]], [0.15, 0.3])


def _exact(data):
    return lambda x, level: oracles.predict(data, x, level)


def _noise(n, d=2):
    return jax.random.normal(jax.random.key(7), (n, d), jnp.result_type(float))


@functools.partial(jax.jit, static_argnums=0)
def _ddim(data_of, key, x, levels, eta):
    return sampling.sample(key, ddim(eta), _exact(data_of()), x, levels)


@functools.partial(jax.jit, static_argnums=0)
def _ancestral(variance, key, x, levels):
    return sampling.sample(key, ancestral(variance), _exact(_mixture()), x, levels)


@pytest.mark.parametrize("path", PATHS)
def test_ddim_with_eta_1_is_the_ddpm_posterior(x64, path):
    levels = _grid(grids.trailing, Process(schedules.cosine(low=-9.0), PATHS[path]), 8)
    x, key = levels.sigma[0] * _noise(5), jax.random.key(3)
    with_eta, ancestor = (
        _ddim(_mixture, key, x, levels, 1.0),
        _ancestral(fixed_small, key, x, levels),
    )
    assert_allclose(with_eta, ancestor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", ["vp", "ve", "rectified"])
def test_ddim_is_of_first_order_to_the_exact_flow(x64, path):
    here = Process(schedules.cosine(), PATHS[path])
    x = np.asarray(jax.jit(here.at)(0.95).sigma) * _noise(6)
    errors = []
    for n in (32, 64):
        levels = _grid(grids.at_times, here, np.linspace(0.95, 0.15, n + 1))
        now, nxt = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in (0, -1))
        exact = oracles.predict(_gaussian(), oracles.flow_map(_gaussian(), x, now, nxt), nxt).x0
        errors.append(np.abs(_ddim(_gaussian, jax.random.key(0), x, levels, 0.0) - exact).max())
    assert errors[1] < 0.05
    assert 0.9 < np.log2(errors[0] / errors[1]) < 1.1


def test_every_path_gives_the_same_sample(x64):
    samples = []
    for path in PATHS.values():
        levels = _grid(grids.trailing, Process(schedules.cosine(), path), 10)
        # The same point in y = x/alpha, s = sigma/alpha.
        x = levels.alpha[0] * _noise(4) * 1e3
        samples.append(_ddim(_mixture, jax.random.key(1), x, levels, 0.5))
    for sample in samples[1:]:
        assert_allclose(sample, samples[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("solver", ["ddim", "half", "small"])
def test_samples_are_distributed_as_the_data(solver):
    n, data = 4000, _mixture()
    levels = _grid(grids.trailing, Process(schedules.cosine(), PATHS["vp"]), 100)
    key, x = jax.random.key(0), _noise(n)
    sample = np.asarray(
        {
            "ddim": lambda: _ddim(_mixture, key, x, levels, 0.0),
            "half": lambda: _ddim(_mixture, key, x, levels, 0.5),
            "small": lambda: _ancestral(fixed_small, key, x, levels),
        }[solver]()
    )
    mean, cov = (np.asarray(m) for m in oracles.moments(data))
    assert (np.abs(sample.mean(0) - mean) < 4 * np.sqrt(np.diag(cov) / n)).all()
    products = (sample - mean)[:, :, None] * (sample - mean)[:, None]
    # The last bit of bias is the finite number of steps.
    assert (np.abs(products.mean(0) - cov) < 4 * products.std(0) / n**0.5 + 0.02).all()
    right = np.mean(sample[:, 0] > -0.25)
    exact = np.mean(np.asarray(oracles.sample(jax.random.key(5), data, 100_000))[:, 0] > -0.25)
    assert abs(right - exact) < 4 * (exact * (1 - exact) / n) ** 0.5 + 0.01


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_an_ancestral_step_has_the_posteriors_mean_and_the_rules_variance(variance):
    here = Process(schedules.cosine(), PATHS["vp"])
    now, nxt = jax.jit(here.at)(0.7), jax.jit(here.at)(0.5)
    x = jnp.broadcast_to(jnp.array([0.3, -1.0]), (20_000, 2))
    exact = _exact(_mixture())
    out, _ = jax.jit(lambda key: ancestral(variance).step(key, exact, x, now, nxt, ()))(
        jax.random.key(0)
    )
    mean, small = posterior(x[:1], exact(x[:1], now).x0, now, nxt)
    a_ts = float(now.alpha / nxt.alpha)
    wanted = {
        fixed_small: float(small),
        fixed_large: float(now.sigma**2) - a_ts**2 * float(nxt.sigma**2),
    }[variance]
    assert (np.abs(out.mean(0) - mean[0]) < 4 * np.sqrt(wanted / len(x))).all()
    assert_allclose(np.asarray(out).var(0), wanted, rtol=4 * (2 / len(x)) ** 0.5)


def test_eta_is_the_share_of_the_posteriors_standard_deviation(x64):
    now, nxt = (Process(schedules.cosine(), PATHS["vp"]).at(t) for t in (0.7, 0.5))
    x, key = jnp.array([[0.3, -1.0]]), jax.random.key(0)
    z = jax.random.normal(key, x.shape, x.dtype)
    flat = lambda x, level: Prediction(jnp.zeros_like(x), jnp.zeros_like(x))
    _, small = posterior(x, x, now, nxt)
    for eta in (0.3, 1.0):
        out, _ = ddim(eta).step(key, flat, x, now, nxt, ())
        assert_allclose(out, eta * small**0.5 * z, rtol=1e-12)
    # What is not fresh noise is predicted noise: the variances add up to sigma².
    ones = lambda x, level: Prediction(jnp.zeros_like(x), jnp.ones_like(x))
    down = ddim(0.3).step(key, ones, x, now, nxt, ())[0] - 0.3 * small**0.5 * z
    assert_allclose(down**2 + 0.3**2 * small, np.full((1, 2), float(nxt.sigma) ** 2), rtol=1e-12)


def test_fixed_large_is_exact_for_standard_normal_data():
    """The chain of few, large steps has the data's variance: the reverse of q is Gaussian."""
    data, n = oracles.mixture([1.0], [[0.0]], [1.0]), 20_000
    here = Process(schedules.discrete(np.full(4, 0.4)), PATHS["vp"])
    levels = _grid(grids.trailing, here, 4)
    solver = ancestral(fixed_large)
    x = jax.random.normal(jax.random.key(0), (n, 1))
    xs, _ = jax.jit(lambda key: sampling.trajectory(key, solver, _exact(data), x, levels))(
        jax.random.key(1)
    )
    assert_allclose(np.asarray(xs).var((1, 2)), 1, rtol=4 * (2 / n) ** 0.5)


def test_learned_range_runs_from_small_to_large():
    here = Process(schedules.linear(), PATHS["vp"])
    now, nxt = jax.jit(here.at)(jnp.array([0.5, 0.9])), jax.jit(here.at)(jnp.array([0.4, 0.8]))
    x = jnp.zeros((2, 3))
    at = lambda c: learned_range(now, nxt, Prediction(x, x, jnp.full_like(x, c)))
    small, large = (
        rule(now, nxt, Prediction(x, x))[:, None] for rule in (fixed_small, fixed_large)
    )
    assert (np.asarray(large) > np.asarray(small)).all()
    for c, wanted in ((-1.0, small), (1.0, large), (0.0, (small + large) / 2)):
        assert at(c).shape == x.shape
        assert_allclose(at(c), np.broadcast_to(wanted, x.shape), rtol=1e-6)
    with pytest.raises(ValueError, match="twice the channels"):
        learned_range(now, nxt, Prediction(x, x))


def test_variances_of_the_last_step_are_finite():
    here = Process(schedules.linear(), PATHS["vp"])
    first = jax.jit(here.at)(1 / 1000)
    x = Prediction(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    assert_allclose(np.exp(fixed_large(first, clean(first), x)), 1e-4, rtol=1e-4)
    assert_allclose(np.exp(fixed_small(first, clean(first), x)), 0.5e-4, rtol=1e-4)
    assert np.isfinite(fixed_small(first, first, x))


@pytest.mark.parametrize("times", [[1.0], [1.0, 0.001], [0.9, 0.55, 0.54, 0.2, 0.003]])
def test_any_subsequence_of_the_levels_is_a_sampler(times):
    levels = _grid(grids.at_times, Process(schedules.linear(), PATHS["vp"]), jnp.array(times))
    for eta in (0.0, 1.0):
        sample = _ddim(_mixture, jax.random.key(0), _noise(8), levels, eta)
        assert np.isfinite(sample).all()
        assert (np.abs(sample) < 6).all()


@pytest.mark.parametrize("path", ["vp", "rectified", "subvp"])
def test_sampling_starts_without_signal(path):
    """alpha = 0 at the first level: zero terminal SNR."""
    for schedule in (schedules.zero_terminal_snr(schedules.linear()), schedules.rectified_flow()):
        levels = _grid(grids.trailing, Process(schedule, PATHS[path]), 5)
        assert levels.alpha[0] == 0
        for eta in (0.0, 1.0):
            sample = _ddim(_mixture, jax.random.key(0), _noise(8), levels, eta)
            assert np.isfinite(sample).all()
        assert np.isfinite(_ancestral(fixed_small, jax.random.key(0), _noise(8), levels)).all()


def test_the_last_step_gives_the_predicted_x0_and_the_calls_are_counted():
    calls = []

    def denoise(x, level):
        jax.debug.callback(lambda t: calls.append(float(t)), level.t)
        return Prediction(jnp.full_like(x, 3.0), x)

    levels = _grid(grids.trailing, Process(schedules.linear(), PATHS["vp"]), 5)
    sample = sampling.sample(jax.random.key(0), ddim(1.0), denoise, jnp.ones((2, 3)), levels)
    jax.effects_barrier()
    assert_allclose(sample, 3.0)
    assert_allclose(sorted(calls), [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)


def test_trajectory_is_the_sample_with_its_way():
    levels = _grid(grids.trailing, Process(schedules.cosine(), PATHS["vp"]), 5)
    x, key, exact = _noise(3), jax.random.key(2), _exact(_mixture())
    xs, x0s = sampling.trajectory(key, ddim(0.7), exact, x, levels)
    assert xs.shape == x0s.shape == (5, 3, 2)
    assert_allclose(xs[0], x)
    assert_allclose(x0s[-1], _ddim(_mixture, key, x, levels, 0.7), rtol=1e-5, atol=1e-6)
    for i in (0, 3):
        level = jax.tree.map(lambda leaf, i=i: leaf[i], levels)
        assert_allclose(x0s[i], exact(xs[i], level).x0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_the_prior_has_the_scale_of_unit_variance_data(path):
    levels = _grid(grids.trailing, Process(schedules.cosine(low=-2.0), PATHS[path]), 3)
    x = np.asarray(sampling.prior(jax.random.key(0), (200, 10, 10, 1), levels))
    scale = float(levels.alpha[0] ** 2 + levels.sigma[0] ** 2) ** 0.5
    assert abs(x.std() / scale - 1) < 4 / (2 * x.size) ** 0.5
    assert abs(x.mean()) < 4 * scale / x.size**0.5


def test_the_key_matters_and_a_new_eta_seed_or_grid_compiles_nothing():
    here = Process(schedules.linear(), PATHS["vp"])

    @jax.jit
    def run(key, x, levels, eta):
        return sampling.sample(key, ddim(eta), _exact(_mixture()), x, levels)

    first = run(jax.random.key(0), _noise(2), _grid(grids.trailing, here, 4), jnp.asarray(1.0))
    second = run(jax.random.key(1), _noise(2), _grid(grids.trailing, here, 4), jnp.asarray(1.0))
    run(jax.random.key(1), _noise(2), _grid(grids.leading, here, 4), jnp.asarray(0.3))
    assert run._cache_size() == 1
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(("name", "calls"), [("ddim", 1), ("dpmpp_2m", 1), ("heun", 2)])
def test_keeping_the_way_calls_the_network_no_more_often(name, calls):
    kernel = jnp.ones((128, 128))

    def denoise(x, level):
        x0 = jnp.tanh(x @ kernel)
        return Prediction(x0, x - x0)

    levels = _grid(grids.trailing, Process(schedules.cosine(), PATHS["vp"]), 10)
    way = lambda key, x: sampling.trajectory(key, SOLVERS[name](), denoise, x, levels)
    flops = lambda f, *args: jax.jit(f).lower(*args).compile().cost_analysis()["flops"]
    x = jnp.ones((32, 128))
    ratio = flops(way, jax.random.key(0), x) / flops(lambda x: denoise(x, None).x0, x)
    # A scan's body is counted once: its calls, and the one of the last level.
    assert ratio == pytest.approx(calls + 1, abs=0.2)
