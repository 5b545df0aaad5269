import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import oracles
from diffusion_jax.core.process import PATHS, Process, corrupt
from diffusion_jax.core.schedules import cosine, rectified_flow

MEANS = [[-1.0, 0.5], [1.5, -0.3], [0.2, 2.0]]
COVARIANCES = [[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]], [[0.2, -0.15], [-0.15, 0.3]]]


def _mixture(classes=None):
    return oracles.mixture([1, 2, 3], MEANS, COVARIANCES, classes)


def _level(t, path="vp"):
    return jax.jit(Process(cosine(), PATHS[path]).at)(jnp.asarray(t))


def _points(n=6):
    return jax.random.normal(jax.random.key(1), (n, 2), jnp.result_type(float)) * 1.5


def test_density_is_the_textbook_one(x64):
    def normal(x, mean, cov):
        gap = x - mean
        quadratic = np.einsum("bi,ij,bj->b", gap, np.linalg.inv(cov), gap)
        return np.exp(-quadratic / 2) / np.sqrt(np.linalg.det(2 * np.pi * cov))

    x, level = np.asarray(_points()), _level(0.4, "subvp")
    for lv, a, s in ((None, 1.0, 0.0), (level, float(level.alpha), float(level.sigma))):
        wanted = sum(
            w / 6 * normal(x, a * np.array(m), a**2 * np.array(c) + s**2 * np.eye(2))
            for w, m, c in zip([1, 2, 3], MEANS, COVARIANCES, strict=True)
        )
        assert_allclose(oracles.log_prob(_mixture(), jnp.asarray(x), lv), np.log(wanted), rtol=1e-9)


@pytest.mark.parametrize("t", [None, 0.5])
def test_density_integrates_to_one(x64, t):
    data = oracles.mixture([1, 3], [[-1.0], [2.0]], [0.1, 0.5])
    x = jnp.linspace(-9, 9, 4001)
    density = np.exp(oracles.log_prob(data, x[:, None], None if t is None else _level(t)))
    assert_allclose(density.sum() * (x[1] - x[0]), 1, rtol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_score_is_the_gradient_and_tweedie_gives_the_denoiser(x64, path):
    data, x, level = _mixture(), _points(), _level(0.45, path)
    score = jax.grad(lambda x: oracles.log_prob(data, x, level).sum())(x)
    assert_allclose(oracles.score(data, x, level), score, rtol=1e-9, atol=1e-12)
    got = oracles.predict(data, x, level)
    assert_allclose(got.x0, (x + level.sigma**2 * score) / level.alpha, rtol=1e-9)
    assert_allclose(got.eps, -level.sigma * score, rtol=1e-9)
    assert_allclose(corrupt(got.x0, got.eps, level), x, rtol=1e-9)


def test_posterior_covariance_is_the_jacobian_of_the_denoiser(x64):
    """Cov[x0 | x] = (sigma²/alpha)·∂E[x0 | x]/∂x (second-order Tweedie)."""
    data, x, level = _mixture(), _points(3), _level(0.45)
    jacobian = jax.vmap(jax.jacfwd(lambda x: oracles.predict(data, x[None], level).x0[0]))(x)
    got = oracles.posterior_covariance(data, x, level)
    assert_allclose(got, level.sigma**2 / level.alpha * jacobian, rtol=1e-9, atol=1e-13)


def test_the_denoiser_is_the_conditional_mean_by_monte_carlo():
    data, level = _mixture(), _level(0.5)
    x0 = oracles.sample(jax.random.key(0), data, 40_000)
    x = jnp.array([[0.4, 0.3]])
    log_w = -jnp.sum((x - level.alpha * x0) ** 2, -1) / (2 * level.sigma**2)
    w = jax.nn.softmax(log_w)
    mean = w @ x0
    se = jnp.sqrt(jnp.sum(w[:, None] ** 2 * (x0 - mean) ** 2, 0))
    assert (np.abs(oracles.predict(data, x, level).x0[0] - mean) < 4 * se).all()


def test_ends_of_time_in_float32():
    data, x = _mixture(), _points()
    here = Process(rectified_flow(), PATHS["rectified"])
    noise, clean = here.at(jnp.asarray(1.0)), here.at(jnp.asarray(0.0))
    mean, _ = oracles.moments(data)
    at_noise, at_clean = oracles.predict(data, x, noise), oracles.predict(data, x, clean)
    assert_allclose(at_noise.x0, jnp.broadcast_to(mean, x.shape), rtol=1e-5)
    assert_allclose(at_noise.eps, x, rtol=1e-6)
    assert_allclose(at_clean.x0, x, rtol=1e-5, atol=1e-6)
    assert_allclose(at_clean.eps, 0)


def test_samples_have_the_moments_and_levels_add_noise():
    data, n = _mixture(), 40_000
    x0 = oracles.sample(jax.random.key(0), data, n)
    mean, cov = oracles.moments(data)
    assert_allclose(mean, np.average(MEANS, axis=0, weights=[1, 2, 3]), rtol=1e-6)
    assert (np.abs(x0.mean(0) - mean) < 4 * np.sqrt(np.diag(cov) / n)).all()
    products = (x0 - mean)[:, :, None] * (x0 - mean)[:, None]
    assert (np.abs(products.mean(0) - cov) < 4 * products.std(0) / n**0.5).all()
    level = _level(0.3, "subvp")
    mean_t, cov_t = oracles.moments(data, level)
    assert_allclose(mean_t, level.alpha * mean, rtol=1e-6)
    assert_allclose(cov_t, level.alpha**2 * cov + level.sigma**2 * np.eye(2), rtol=1e-5)


def test_labels_choose_components_and_the_null_label_keeps_all(x64):
    data, x, level = _mixture(classes=[0, 1, 0]), _points(3), _level([0.3, 0.5, 0.8])
    denoise = oracles.denoiser(data)
    got = denoise(x, level, {"label": jnp.array([0, 1, 2])})
    first = oracles.mixture([1, 3], [MEANS[0], MEANS[2]], [COVARIANCES[0], COVARIANCES[2]])
    second = oracles.mixture([1], MEANS[1:2], COVARIANCES[1:2])
    for i, only in enumerate((first, second, data)):
        assert_allclose(got.x0[i], oracles.predict(only, x, level).x0[i], rtol=1e-10)
        assert_allclose(got.eps[i], oracles.predict(only, x, level).eps[i], rtol=1e-10)
    assert_allclose(denoise(x, level, {}).x0, oracles.predict(data, x, level).x0)


def test_images_are_points(x64):
    data = oracles.mixture([1.0], np.zeros((1, 4)), [0.5])
    x = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    flat = oracles.predict(data, x.reshape(3, 4), _level(0.5))
    assert_allclose(oracles.predict(data, x, _level(0.5)).x0.reshape(3, 4), flat.x0)
    assert oracles.score(data, x, _level(0.5)).shape == x.shape
    assert oracles.log_prob(data, x).shape == (3,)


@pytest.mark.parametrize("path", PATHS)
def test_flow_map_transports_a_gaussian_exactly(x64, path):
    data = oracles.mixture([1.0], MEANS[:1], COVARIANCES[:1])
    now, nxt, x = _level(0.8, path), _level(0.2, path), _points()
    there = oracles.flow_map(data, x, now, nxt)
    assert_allclose(oracles.flow_map(data, there, nxt, now), x, rtol=1e-10)
    # It carries the density: log p_now(x) = log p_nxt(there) + log |det J|.
    jacobian = jax.jacfwd(lambda x: oracles.flow_map(data, x[None], now, nxt)[0])(x[0])
    change = oracles.log_prob(data, there, nxt) - oracles.log_prob(data, x, now)
    assert_allclose(change, -np.linalg.slogdet(jacobian)[1], rtol=1e-9)
    # It follows the ODE: from vp's circle, dx/dφ = cos φ·eps - sin φ·x0.
    assert_allclose(oracles.flow_map_numeric(data, x, now, nxt, 128), there, rtol=1e-7)


def test_numeric_flow_of_a_mixture_is_of_fourth_order_and_carries_the_density(x64):
    data, x, now, nxt = _mixture(), _points(), _level(0.9), _level(0.02)
    flow = jax.jit(lambda x, n: oracles.flow_map_numeric(data, x, now, nxt, n), static_argnums=1)
    best = flow(x, 512)
    coarse, fine = (np.abs(flow(x, n) - best).max() for n in (64, 128))
    assert fine < 1e-5
    assert 3.5 < np.log2(coarse / fine) < 4.8
    jacobian = jax.vmap(jax.jacfwd(lambda x: flow(x[None], 512)[0]))(x)
    change = oracles.log_prob(data, best, nxt) - oracles.log_prob(data, x, now)
    assert_allclose(change, -np.linalg.slogdet(jacobian)[1], atol=1e-6)


def test_bad_mixtures_and_maps_are_named():
    with pytest.raises(ValueError, match="positive"):
        oracles.mixture([1, 0], [[0.0], [1.0]], [1, 1])
    with pytest.raises(ValueError, match="covariances has shape"):
        oracles.mixture([1, 1], [[0.0], [1.0]], [1, 1, 1])
    with pytest.raises(ValueError, match="flow_map_numeric"):
        oracles.flow_map(_mixture(), _points(), _level(0.5), _level(0.2))
