"""Flow maps against the closed form of a Gaussian, and steps by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import (
    flow_maps,
    grids,
    network_io,
    oracles,
    process,
    sampling,
    schedules,
    targets,
)
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Model, Prediction
from diffusion_jax.models.autoencoders.codec import IDENTITY

PATHS = ("vp", "ve", "rectified")
COVARIANCE = [[[0.3, 0.1], [0.1, 0.2]]]


def _process(path="vp", schedule=None):
    return process.Process(schedule or schedules.cosine(), process.PATHS[path])


def _gaussian():
    return oracles.mixture([1.0], [[0.7, -0.4]], COVARIANCE)


def _mixture():
    return oracles.mixture([1, 2], [[-0.8, 0.3], [0.6, -0.4]], [0.1, 0.2])


def _jump(x, now, end=None):
    return oracles.average(_gaussian(), x, now, process.clean(now) if end is None else end)


def _points(n=5):
    return 1.5 * jax.random.normal(jax.random.key(1), (n, 2))


@pytest.mark.parametrize("path", PATHS)
def test_the_jump_of_a_gaussian_is_its_flow_map(x64, path):
    data, x, at = _gaussian(), _points(), _process(path).at
    for a, b in ((0.8, 0.3), (0.2, 0.9), (0.6, 0.0)):
        now, end = at(a), at(b)
        prediction = oracles.average(data, x, now, end)
        assert_allclose(process.corrupt(*prediction[:2], now), x, rtol=1e-12)
        there = flow_maps.transfer(prediction, end)
        assert_allclose(there, oracles.flow_map(data, x, now, end), rtol=1e-12)
        for got, want in zip(flow_maps.secant(x, there, now, end)[:2], prediction[:2], strict=True):
            assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    still = oracles.average(data, x, at(0.4), at(0.4))
    for got, want in zip(still[:2], oracles.predict(data, x, at(0.4))[:2], strict=True):
        assert_allclose(got, want, rtol=1e-12)
    # From pure noise to clean data, where alpha and sigma are 0.
    ends = _process("rectified", schedules.rectified_flow())
    noise, clean = ends.at(1.0), ends.at(0.0)
    prediction = oracles.average(data, x, noise, clean)
    assert_allclose(prediction.eps, x, rtol=1e-12)
    there = oracles.flow_map(data, x, noise, clean)
    assert_allclose(flow_maps.transfer(prediction, clean), there, rtol=1e-12)
    assert_allclose(flow_maps.secant(x, there, noise, clean).x0, prediction.x0, rtol=1e-12)
    # From pure noise to itself, the denoiser.
    still = oracles.average(data, x, noise, noise)
    for got, want in zip(still[:2], oracles.predict(data, x, noise)[:2], strict=True):
        assert_allclose(got, want, rtol=1e-12, equal_nan=False)


@pytest.mark.parametrize("path", PATHS)
def test_jumps_compose(x64, path):
    x, at = _points(), _process(path).at
    first = flow_maps.transfer(_jump(x, at(0.9), at(0.5)), at(0.5))
    twice = flow_maps.transfer(_jump(first, at(0.5), at(0.1)), at(0.1))
    assert_allclose(twice, flow_maps.transfer(_jump(x, at(0.9), at(0.1)), at(0.1)), rtol=1e-12)


def test_the_secant_of_a_mixture_tends_to_its_denoiser(x64):
    data, x, at = _mixture(), _points(), _process().at

    def gap(h):
        end = at(0.5 - h)
        there = oracles.flow_map_numeric(data, x, at(0.5), end, 64)
        prediction = flow_maps.secant(x, there, at(0.5), end)
        return np.abs(prediction.eps - oracles.predict(data, x, at(0.5)).eps).max()

    assert 0.8 < np.log2(gap(1e-2) / gap(5e-3)) < 1.2


@pytest.mark.parametrize("path", PATHS)
def test_exact_jumps_sample_the_data_for_every_gamma(path):
    """Two jumps and the last one: mean and covariance, within Monte Carlo error."""
    data, n, here = _gaussian(), 40_000, _process(path)
    mean, cov = oracles.moments(data)
    levels = here.at(jnp.array([1.0, 0.7, 0.4]))
    start, start_cov = oracles.moments(data, jax.tree.map(lambda leaf: leaf[0], levels))
    root = np.linalg.cholesky(start_cov)
    x = start + jax.random.normal(jax.random.key(0), (n, 2)) @ root.T

    @jax.jit
    def draw(gamma, key):
        solver = SOLVERS["jump"](here, gamma)
        return sampling.sample(key, solver, _jump, x, levels)

    drawn = {g: np.asarray(draw(jnp.float32(g), jax.random.key(1))) for g in (0.0, 0.6, 1.0)}
    assert draw._cache_size() == 1
    for got in drawn.values():
        assert (np.abs(got.mean(0) - mean) < 5 * np.sqrt(np.diag(cov) / n)).all()
        assert_allclose(np.cov(got.T), cov, atol=5 * 0.3 * np.sqrt(2 / n))
    first = jax.tree.map(lambda leaf: leaf[0], levels)
    flow = oracles.flow_map(data, x, first, process.clean(first))
    assert_allclose(drawn[0.0], flow, atol=2e-3)
    assert np.abs(drawn[0.6] - flow).mean() > 0.05
    other = np.asarray(draw(jnp.float32(0.0), jax.random.key(2)))
    assert_allclose(other, drawn[0.0])  # no noise at gamma = 0


@pytest.mark.parametrize("path", PATHS)
def test_gamma_says_which_level_is_jumped_to(x64, path):
    """One step: x_nxt has the law of its level, sqrt(1 - γ²) of s kept, for any γ."""
    here, asked = _process(path), []

    def spy(x, now, end=None):
        asked.append(end)
        return _jump(x, now, end)

    now, nxt, x = here.at(0.9), here.at(0.4), _points()
    quiet = lambda key, x, now, nxt: jnp.zeros_like(x)
    for gamma in (0.0, 0.6, 1.0):
        got, _ = SOLVERS["jump"](here, gamma, quiet).step(jax.random.key(0), spy, x, now, nxt, ())
        end = asked[-1]
        s, s_nxt = (level.sigma / level.alpha for level in (end, nxt))
        assert_allclose(s, np.sqrt(1 - gamma**2) * s_nxt, rtol=1e-9, atol=1e-12)
        want = oracles.flow_map(_gaussian(), x, now, end) * nxt.alpha / end.alpha
        assert_allclose(got, want, rtol=1e-9)
        loud = lambda key, x, now, nxt: jnp.ones_like(x)
        more, _ = SOLVERS["jump"](here, gamma, loud).step(jax.random.key(0), spy, x, now, nxt, ())
        assert_allclose(more - got, gamma * nxt.sigma, rtol=1e-9, atol=1e-12)


def test_a_jump_of_one_time_is_ddim_or_multistep_consistency(x64):
    data, here, x, key = _mixture(), _process(), _points(), jax.random.key(3)
    denoise = lambda x, level: oracles.predict(data, x, level)
    levels = grids.trailing(here, 4)
    for gamma, name in ((0.0, "ddim"), (1.0, "consistency")):
        got = sampling.sample(
            key, SOLVERS["jump"](here, gamma), flow_maps.to_clean(denoise), x, levels
        )
        want = sampling.sample(key, SOLVERS[name](), denoise, x, levels)
        assert_allclose(got, want, rtol=1e-12)


def _model(net, target):
    return Model(
        net=net,
        process=_process(),
        target=target,
        scale_in=network_io.unit(),
        time_in=network_io.log_snr(),
        codec=IDENTITY,
        condition=lambda frozen, batch: {},
        null=lambda frozen, cond: cond,
    )


def test_a_network_of_two_times_is_told_where_to_go():
    x, here = _points(), _process()
    told = {}

    def net(params, x, time, cond, key=None):
        told.update(time=time, **cond)
        return 0.3 * x

    made = _model(net, targets.v())
    jump = flow_maps.condition(flow_maps.jumper(made, {}), {"label": jnp.zeros(5, jnp.int32)})
    prediction = jump(x, here.at(0.8), here.at(0.3))
    assert_allclose(told["end"], np.full(5, network_io.log_snr()(here.at(0.3))), rtol=1e-6)
    assert_allclose(told["time"], np.full(5, network_io.log_snr()(here.at(0.8))), rtol=1e-6)
    assert told["label"].shape == (5,)
    want = targets.predict(targets.v(), 0.3 * x, x, here.at(0.8))
    assert_allclose(prediction.x0, want.x0, rtol=1e-6)
    jump(x, here.at(0.8))
    assert_allclose(told["end"], 0.0)  # the clean level


def test_boundaries_are_the_papers():
    s = jnp.array([0.002, 0.01, 0.5, 80.0])
    level = _process("ve").at_log_snr(-2 * jnp.log(s))
    x, out = _points(4), jnp.cos(_points(4))
    edm = lambda x, level, cond: targets.predict(targets.edm(0.5), out, x, level)
    got = flow_maps.bounded(edm, flow_maps.consistency_models())(x, level, {})
    skip = 0.25 / ((s - 0.002) ** 2 + 0.25)
    c_out = 0.5 * (s - 0.002) / np.sqrt(s**2 + 0.25)
    assert_allclose(got.x0, skip[:, None] * x + c_out[:, None] * out, rtol=2e-5, atol=1e-5)
    assert_allclose(got.x0[0], x[0], atol=1e-6)
    assert_allclose(process.corrupt(got.x0, got.eps, level), x, rtol=1e-4, atol=1e-4)

    level = _process("vp", schedules.linear()).at(jnp.array([1, 2, 21, 1000]) / 1000)
    x0 = lambda x, level, cond: Prediction(out, jnp.zeros_like(x))
    got = flow_maps.bounded(x0, flow_maps.latent_consistency())(x, level, {})
    u = 10 * np.array([0, 1, 20, 999])[:, None]
    want = 0.25 / (u**2 + 0.25) * x + u / np.sqrt(u**2 + 0.25) * out
    assert_allclose(got.x0, want, rtol=1e-5, atol=1e-5)

    clean = _process().at_log_snr(jnp.full(4, jnp.inf))
    assert_allclose(flow_maps.bounded(x0, flow_maps.free())(x, clean, {}).x0, x)
