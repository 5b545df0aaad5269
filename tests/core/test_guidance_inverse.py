"""Guidance by a measurement, where the posterior is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import grids, guidance, oracles, sampling, schedules
from diffusion_jax.core.guidance import inverse
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.solvers.runge_kutta import heun
from diffusion_jax.core.types import NoiseLevel, Prediction

A = np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]])
MEAN = np.array([0.4, -0.2, 0.1])
COVARIANCE = np.array([[0.5, 0.2, 0.1], [0.2, 0.3, -0.1], [0.1, -0.1, 0.8]])
Y = np.array([0.9, -0.6])


def _level(t, path="vp"):
    return jax.jit(Process(schedules.cosine(), PATHS[path]).at)(jnp.asarray(t))


def _x(n=4, d=3):
    return jax.random.normal(jax.random.key(0), (n, d), jnp.result_type(float))


def _forward(x0):
    return x0 @ jnp.asarray(A.T, x0.dtype)


def _posterior(mean, covariance, a, y, noise):
    """Mean and covariance of x0 given y = a x0 + noise, by the textbook."""
    gain = covariance @ a.T @ np.linalg.inv(a @ covariance @ a.T + noise**2 * np.eye(len(a)))
    return mean + gain @ (y - a @ mean), covariance - gain @ a @ covariance


def _exact(mean, covariance):
    data = oracles.mixture([1.0], [mean], [covariance])
    return lambda x, level: oracles.predict(data, x, level)


def _same(got, wanted, rtol=1e-8):
    assert_allclose(got.x0, wanted.x0, rtol=rtol, atol=1e-10)
    assert_allclose(got.eps, wanted.eps, rtol=rtol, atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_moment_matching_is_the_exact_posterior_of_gaussian_data(x64, path):
    x, level, prior = _x(), _level([0.05, 0.4, 0.7, 0.98], path), _exact(MEAN, COVARIANCE)
    y = jnp.broadcast_to(jnp.asarray(Y), (4, 2))
    run = jax.jit(lambda y, noise: guidance.moment_matching(prior, _forward, y, noise, 2)(x, level))
    for noise in (0.3, 2.0):
        wanted = _exact(*_posterior(MEAN, COVARIANCE, A, Y, noise))(x, level)
        _same(run(y, noise), wanted)
    assert run._cache_size() == 1
    assert not np.allclose(prior(x, level).x0, wanted.x0, rtol=1e-2)


def test_more_iterations_than_needed_do_no_harm(x64):
    x, level, prior = _x(), _level(0.5), _exact(MEAN, COVARIANCE)
    y = jnp.broadcast_to(jnp.asarray(Y), (4, 2))
    got = jax.jit(guidance.moment_matching(prior, _forward, y, 0.3, 20))(x, level)
    _same(got, _exact(*_posterior(MEAN, COVARIANCE, A, Y, 0.3))(x, level))


def test_samples_have_the_mean_and_covariance_of_the_posterior():
    n, noise = 4000, 0.3
    y, prior = jnp.broadcast_to(jnp.asarray(Y, jnp.float32), (n, 2)), _exact(MEAN, COVARIANCE)

    @jax.jit
    def run(key):
        levels = grids.trailing(Process(schedules.cosine(), PATHS["vp"]), 50)
        denoise = guidance.moment_matching(prior, _forward, y, noise, 2)
        x = sampling.prior(key, (n, 3), levels)
        return sampling.sample(key, heun(), denoise, x, levels)

    got = np.asarray(run(jax.random.key(3)), np.float64)
    mean, covariance = _posterior(MEAN, COVARIANCE, A, Y, noise)
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(got.mean(0) - mean) < 4 * spread / np.sqrt(n) + 0.01 * spread).all()
    error = np.sqrt((covariance**2 + np.outer(spread**2, spread**2)) / n)
    # The steps of the sampler leave a per cent beside the standard error.
    assert (np.abs(np.cov(got.T) - covariance) < 4 * error + 0.01 * np.outer(spread, spread)).all()
    assert (np.sqrt(np.diag(COVARIANCE)) > 1.3 * spread).all()


SELECT = np.eye(3)[:2]  # A Aᵀ = I


@pytest.mark.parametrize("path", ["vp", "ve", "rectified"])
def test_known_variance_is_exact_for_unit_gaussians(x64, path):
    """Song et al. 2023: r² = Var[x0 | x_t] of N(0, 1) data, and A Aᵀ = I."""
    x, level, prior = _x(), _level([0.1, 0.4, 0.7, 0.95], path), _exact(np.zeros(3), np.eye(3))
    y = jnp.broadcast_to(jnp.asarray(Y), (4, 2))
    forward = lambda x0: x0[:, :2]
    variance = lambda level: 0.5**2 + guidance.unit_variance(level)
    got = guidance.reconstruction(prior, forward, y, variance)(x, level)
    _same(got, _exact(*_posterior(np.zeros(3), np.eye(3), SELECT, Y, 0.5))(x, level))
    inverse = lambda y: jnp.pad(y, ((0, 0), (0, 1)))
    got = guidance.pseudo_inverse(prior, forward, inverse, y)(x, level)
    _same(got, _exact(*_posterior(np.zeros(3), np.eye(3), SELECT, Y, 0.0))(x, level))
    half = guidance.pseudo_inverse(prior, forward, inverse, y, 0.5)(x, level)
    plain = prior(x, level)
    assert_allclose(half.x0 - plain.x0, (got.x0 - plain.x0) / 2, rtol=1e-8)


def _curved(x0):
    return jnp.stack([jnp.tanh(x0[:, 0] + x0[:, 1]), x0[:, 2] ** 2], -1)


def test_reconstruction_guidance_is_the_gradient_of_the_error(x64):
    """Ho et al. 2022: x0 - w·(alpha/2)·∇|y - A(x0)|², with an A that is not linear."""
    data = oracles.mixture([1, 3], [[-1.5, 0.0, 0.3], [1.0, 0.5, 0.0]], [0.3, 0.4])
    model = lambda x, level: oracles.predict(data, x, level)
    x, level = _x(), _level([0.1, 0.4, 0.7, 0.95])
    y = jnp.broadcast_to(jnp.asarray(Y), (4, 2))
    w = jnp.array([1.0, 2.0, 0.5, 3.0])
    error = lambda x: jnp.sum((y - _curved(model(x, level).x0)) ** 2, -1)
    plain, slope = model(x, level), jax.grad(lambda x: error(x).sum())(x)
    got = guidance.reconstruction(model, _curved, y, guidance.ho_variance, w)(x, level)
    wanted = plain.x0 - (w * level.alpha / 2)[:, None] * slope
    assert_allclose(got.x0, wanted, rtol=1e-9)
    assert_allclose(level.alpha[:, None] * got.x0 + level.sigma[:, None] * got.eps, x, rtol=1e-9)
    likelihood = guidance.reconstruction(model, _curved, y, 0.7)(x, level)
    assert_allclose(likelihood.eps, plain.eps + level.sigma[:, None] * slope / 1.4, rtol=1e-9)
    norm = jax.grad(lambda x: jnp.sqrt(error(x)).sum())(x)
    got = guidance.dps(model, _curved, y, 1.3)(x, level)
    assert_allclose(got.eps, plain.eps + 1.3 * level.sigma[:, None] * norm, rtol=1e-9)


def test_samples_move_towards_the_measurement():
    """Of a mixture, where all are approximations: the explained error falls, classes are chosen."""
    means = [[-1.5, 0.0], [1.5, 1.0]]
    data = oracles.mixture([1, 1], means, [0.05, 0.05])
    model = lambda x, level: oracles.predict(data, x, level)
    y = jnp.full((400, 1), 1.5)
    forward = lambda x0: x0[:, :1]

    @jax.jit
    def run(key):
        levels = grids.trailing(Process(schedules.cosine(), PATHS["vp"]), 40)
        x = sampling.prior(key, (400, 2), levels)
        draw = lambda denoise: sampling.sample(key, ddim(), denoise, x, levels)
        return [
            draw(model),
            draw(guidance.reconstruction(model, forward, y, guidance.ho_variance, 2.0)),
            draw(guidance.dps(model, forward, y, 4.0)),
            draw(guidance.moment_matching(model, forward, y, 0.2, 1)),
            draw(
                guidance.pseudo_inverse(model, forward, lambda y: jnp.pad(y, ((0, 0), (0, 1))), y)
            ),
        ]

    plain, *guided = (np.asarray(x) for x in run(jax.random.key(0)))
    error = lambda x: np.sqrt(np.mean((x[:, 0] - 1.5) ** 2))
    share = lambda x: np.mean(x[:, 1] > 0.5)  # of the component that explains the measurement
    assert error(plain) > 1.5 and 0.4 < share(plain) < 0.6
    for x in guided:
        assert error(x) < 0.5 * error(plain)
        assert share(x) > 0.85


def test_guided_images_can_be_measured(x64):
    """Around classifier-free guidance; scale 1 is one Gaussian, whose posterior is known."""
    means, select = np.array([[-1.5, 0.0, 0.3, 1], [1.0, 0.5, 0.0, 1]]), np.eye(4)[[0, 2]]
    data = oracles.mixture([1, 3], means, [0.3, 0.4], [0, 1])
    label = lambda k: {"label": jnp.full((3,), k)}
    x, level = _x(3, 4).reshape(3, 2, 2, 1), _level([0.2, 0.4, 0.8])
    left = lambda x0: x0[:, :, :1]  # of the 2 x 2 pixels

    @jax.jit
    def run(y, scale, noise):
        denoise = guidance.cfg(oracles.denoiser(data), label(1), label(2), scale)
        measured = guidance.moment_matching(denoise, left, y, noise)
        return guidance.clip(-2.0, 2.0)(measured)(x, level), denoise(x, level)

    y = np.array([0.7, -0.4])
    near, _ = run(jnp.broadcast_to(y.reshape(2, 1, 1), (3, 2, 1, 1)), 1.0, 0.3)
    law = _posterior(means[1], 0.4 * np.eye(4), select, y, 0.3)
    assert_allclose(near.x0, np.clip(_exact(*law)(x, level).x0, -2, 2), rtol=1e-8)
    far, plain = run(jnp.ones((3, 2, 1, 1)), 3.0, 1e4)  # so much noise tells nothing
    assert_allclose(far.x0, np.clip(plain.x0, -2, 2), rtol=1e-5, atol=1e-5)
    assert run._cache_size() == 1


def test_both_ends_of_time_are_finite():
    x, y = _x(2), jnp.ones((2, 2))
    denoise = lambda x, level: Prediction(0.5 * x, x)
    pad = lambda y: jnp.pad(y, ((0, 0), (0, 1)))
    first = lambda x0: x0[:, :2]
    methods = {
        "ho": guidance.reconstruction(denoise, first, y, guidance.ho_variance),
        "dps": guidance.dps(denoise, first, y, 1.0),
        "pseudo": guidance.pseudo_inverse(denoise, first, pad, y),
        "moments": guidance.moment_matching(denoise, first, y, 0.0),
    }
    run = jax.jit(lambda level: {name: method(x, level) for name, method in methods.items()})
    for end in ((1.0, -jnp.inf, 0.0, 1.0), (0.0, jnp.inf, 1.0, 0.0)):
        for name, got in run(NoiseLevel(*(jnp.array(c) for c in end))).items():
            assert np.isfinite(got.x0).all() and np.isfinite(got.eps).all(), (name, end)
            if end[2] == 0.0:
                assert_allclose(got.x0, 0.5 * x, err_msg=name)


def test_conjugate_gradients_solve_each_example_and_leave_what_has_no_solution():
    """Two iterations in the plane are exact; in the null space of A nothing moves."""
    matrices = np.array([[[2.0, 0.5], [0.5, 1.0]], [[1.0, 0.0], [0.0, 0.0]]], np.float32)
    b = np.array([[1.0, -2.0], [0.0, 3.0]], np.float32)
    apply = lambda u: jnp.einsum("bij,bj->bi", jnp.asarray(matrices), u)
    got = inverse._conjugate_gradients(apply, jnp.asarray(b), 2)
    assert_allclose(got[0], np.linalg.solve(matrices[0], b[0]), rtol=1e-5)
    assert_allclose(got[1], 0)
