"""The probability flow's likelihood against exact densities of Gaussian mixtures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import flow_likelihood as flow
from diffusion_jax.core import grids, oracles, schedules
from diffusion_jax.core.process import PATHS, Process

END = 22.0


def _mixture(d):
    rng = np.random.default_rng(0)
    root = 0.3 * rng.normal(size=(3, d, d))
    covariances = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(d)
    return oracles.mixture([1, 2, 3], rng.normal(size=(3, d)), covariances)


def _process(path="vp", end=END):
    return Process(schedules.cosine(low=-end, high=end), PATHS[path])


def _levels(process, steps, end=END):
    return process.at_log_snr(jnp.linspace(-end, end, steps + 1))


def _solver(data, path, **settings):
    """(x0, levels) -> -log p in nats, one program for all grids of a length."""
    process = _process(path)
    denoise = lambda x, level: oracles.predict(data, x, level)
    solve = flow.flow_likelihood if "rtol" not in settings else flow.adaptive_flow_likelihood

    @jax.jit
    def run(x0, levels):
        key = jax.random.key(1)
        out = solve(key, denoise, x0, process, levels, trace=flow.exact(), **settings)
        return out.total * x0.shape[1] * np.log(2), out.total - out.prior - out.volume

    return run


def _compare(data, path, steps, **settings):
    x0 = oracles.sample(jax.random.key(0), data, 6)
    got, rest = _solver(data, path, **settings)(x0, _levels(_process(path), steps))
    assert_allclose(rest, 0, atol=1e-12)
    assert_allclose(got, -oracles.log_prob(data, x0), atol=1e-3)


@pytest.mark.parametrize(("d", "path"), [(1, "ve"), (2, "rectified"), (8, "vp")])
def test_it_is_the_density_of_a_mixture(x64, d, path):
    _compare(_mixture(d), path, 128)


def test_the_adaptive_solver_is_the_density_too(x64):
    _compare(_mixture(2), "rectified", 1, method="dopri5", rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "order", "steps"), [("heun", 2, 32), ("rk4", 4, 32)])
def test_fixed_steps_converge_at_their_order(x64, method, order, steps):
    data, process = oracles.mixture([1.0], [[0.4, -0.2]], [[0.3, 1.5]]), _process()
    run = _solver(data, "vp", method=method)
    x0 = oracles.sample(jax.random.key(0), data, 6)
    # Padded to one length by steps of no size, so that one program takes them all.
    grid = lambda n: grids.pad(_levels(process, n), 4 * steps + 1)
    coarse, fine, finest = (run(x0, grid(n))[0] for n in (steps, 2 * steps, 4 * steps))
    assert run._cache_size() == 1
    slope = np.log2(np.abs(coarse - fine).mean() / np.abs(fine - finest).mean())
    assert abs(slope - order) < 0.3


def test_the_small_end_is_the_density_of_slightly_noised_data(x64):
    """From λ = 2 up, the result is the density of x0 + s·eps, s = 1/e, at x0."""
    data, process = _mixture(2), _process("rectified")
    x0 = oracles.sample(jax.random.key(0), data, 5)
    levels = process.at_log_snr(jnp.linspace(-END, 2.0, 129))
    denoise = lambda x, level: oracles.predict(data, x, level)
    out = jax.jit(
        lambda x0: flow.flow_likelihood(
            jax.random.key(0), denoise, x0, process, levels, trace=flow.exact()
        )
    )(x0)
    noised = Process(schedules.cosine(), PATHS["ve"]).at_log_snr(2.0)
    exact = -oracles.log_prob(data, x0, noised) / 2 / np.log(2)
    assert_allclose(out.total, exact, atol=1e-3)
    assert np.abs(exact + oracles.log_prob(data, x0) / 2 / np.log(2)).max() > 0.05


def test_hutchinson_is_unbiased_and_repeats_itself():
    """On a matrix, over many probes; rademacher has no error where the matrix is diagonal."""
    matrix = jnp.array([[1.0, 2.0, 0.5], [0.0, -3.0, 1.0], [4.0, 0.3, 0.7]])
    x = jnp.ones((2000, 3))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def apply(trace, f, x):
        return trace.apply(trace.draw(jax.random.key(0), x), f, x)

    for law in flow.PROBES:
        value, each = apply(flow.hutchinson(2, law), lambda x: x @ matrix.T, x)
        assert_allclose(value, x @ matrix.T, rtol=1e-6)
        assert each.shape == (2000,) and each.std() > 0.1
        assert abs(each.mean() - jnp.trace(matrix)) < 4 * each.std() / np.sqrt(2000)
    _, each = apply(flow.hutchinson(1), lambda x: x**2 / 2, x)
    assert_allclose(each, 3.0, rtol=1e-6)
    _, each = apply(flow.exact(2), lambda x: jnp.sin(x @ matrix.T), x)
    assert_allclose(each, jnp.cos(x @ matrix.T) @ jnp.diag(matrix), rtol=1e-5)


def test_probes_estimate_the_exact_likelihood_of_images():
    """Shape [b, 2, 2, 1], float32, one program for any grid of a length."""
    data = oracles.mixture([1, 2], [[0.5, 0, 0, 0.2], [-0.5, 0.3, 0, 0]], [0.2, 0.4])
    process = _process(end=15.0)
    x0 = jnp.tile(oracles.sample(jax.random.key(2), data, 1).reshape(1, 2, 2, 1), (500, 1, 1, 1))
    denoise = lambda x, level: oracles.predict(data, x, level)
    run = jax.jit(
        lambda x0, levels: flow.flow_likelihood(jax.random.key(0), denoise, x0, process, levels)
    )
    out = run(x0, _levels(process, 48, 15.0))
    exact = -oracles.log_prob(data, x0[:1])[0] / 4 / np.log(2)
    error = np.std(out.total) / np.sqrt(500)
    assert out.total.dtype == jnp.float32 and 0 < error < 0.05
    assert abs(out.total.mean() - exact) < 4 * error + 2e-3
    run(x0, _levels(process, 48, 14.0))
    assert run._cache_size() == 1


def test_wrong_arguments_are_sentences():
    process = _process()
    given = (jax.random.key(0), lambda x, level: None, jnp.zeros((1, 2)), process)
    with pytest.raises(ValueError, match="known are heun, rk4"):
        flow.flow_likelihood(*given, _levels(process, 2), "euler")
    with pytest.raises(ValueError, match="at least 1 step"):
        flow.flow_likelihood(*given, _levels(process, 0))
    with pytest.raises(ValueError, match="must be positive"):
        flow.adaptive_flow_likelihood(*given, _levels(process, 1), rtol=0.0)
    with pytest.raises(ValueError, match="known are tsit5"):
        flow.adaptive_flow_likelihood(*given, _levels(process, 1), "rk45")
    with pytest.raises(ValueError, match="at least 1 probe"):
        flow.hutchinson(0)
    with pytest.raises(ValueError, match="rademacher, gaussian"):
        flow.hutchinson(1, "cauchy")
    with pytest.raises(ValueError, match="at most 4096"):
        flow.exact().draw(jax.random.key(0), jnp.zeros((1, 65, 64)))


@pytest.mark.parametrize("path", ["subvp", "ve"])
def test_the_prior_is_that_of_unit_data_at_any_noisiest_level(x64, path):
    """For x0 ~ N(0, I) the answer is exact however early the flow ends."""
    data, process = oracles.mixture([1.0], [[0.0, 0.0]], [1.0]), _process(path)
    x0 = jnp.array([[0.4, -1.3], [2.0, 0.1]])
    levels = process.at_log_snr(jnp.linspace(-0.8, END, 161))
    denoise = lambda x, level: oracles.predict(data, x, level)
    run = jax.jit(
        lambda x0: flow.flow_likelihood(
            jax.random.key(1), denoise, x0, process, levels, trace=flow.exact()
        )
    )
    square = np.sum(np.asarray(x0) ** 2, -1)
    wanted = (0.5 * square + np.log(2 * np.pi)) / 2 / np.log(2)
    assert_allclose(run(x0).total, wanted, atol=2e-3)
