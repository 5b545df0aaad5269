import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from diffusion_jax.core import losses, schedules, targets
from diffusion_jax.core.process import PATHS, Process, clean, corrupt
from diffusion_jax.core.solvers.ancestral import VARIANCES, fixed_large, fixed_small
from diffusion_jax.core.types import NoiseLevel, Prediction

_term = jax.jit(losses.variational_term, static_argnames="variance")
_likelihood = jax.jit(losses.discretised_log_likelihood)
_corrupt = jax.jit(corrupt)


def _at(t):
    return jax.jit(_process().at)(t)


def _process():
    return Process(schedules.linear(), PATHS["vp"])


def test_regression_is_the_mean_squared_error_to_the_target():
    level = _at(jnp.array([0.2, 0.7]))
    x0, eps = jnp.ones((2, 2, 2, 1)), 3 * jnp.ones((2, 2, 2, 1))
    out = jnp.concatenate([jnp.zeros_like(x0), 99 * x0], -1)  # extra channels are not looked at
    assert_allclose(losses.regression(targets.eps(), out, x0, eps, level), [9, 9])
    v = np.asarray(3 * level.alpha - level.sigma)
    assert_allclose(losses.regression(targets.v(), out, x0, eps, level), v**2, rtol=1e-5)
    uneven = x0.at[0, 0, 0, 0].set(5.0)
    assert_allclose(losses.regression(targets.eps(), uneven, x0, eps, level), [(4 + 4 * 3) / 4, 4])


def test_normal_kl_is_the_integral(x64):
    x = np.linspace(-30, 30, 200_001)
    mq, vq, mp, vp = 0.3, 0.7, -0.5, 2.1
    q = scipy.stats.norm.pdf(x, mq, vq**0.5)
    log_ratio = scipy.stats.norm.logpdf(x, mq, vq**0.5) - scipy.stats.norm.logpdf(x, mp, vp**0.5)
    got = losses.normal_kl(*(jnp.asarray(v) for v in (mq, np.log(vq), mp, np.log(vp))))
    assert_allclose(got, (q * log_ratio).sum() * (x[1] - x[0]), rtol=1e-8)


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.01), (-0.9, 0.3), (0.0, 3.0)])
def test_discretised_likelihood_is_the_mass_of_each_bin(mean, std):
    x = np.arange(256) / 127.5 - 1
    edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    lower, upper = edges[:-1], edges[1:]
    sf, cdf = scipy.stats.norm.sf, scipy.stats.norm.cdf
    mass = np.where(
        x > mean,
        sf(lower, mean, std) - sf(upper, mean, std),
        cdf(upper, mean, std) - cdf(lower, mean, std),
    )
    got = _likelihood(jnp.asarray(x, jnp.float32), jnp.asarray(mean), jnp.asarray(2 * np.log(std)))
    assert_allclose(np.exp(np.asarray(got, np.float64)).sum(), 1, rtol=1e-4)
    near = np.abs(x - mean) < 8 * std
    assert_allclose(got[near], np.log(mass[near]), rtol=2e-3, atol=2e-3)
    assert np.isfinite(got).all()


def test_discretised_likelihood_and_its_gradient_are_finite_far_out():
    x = jnp.asarray(np.linspace(-1, 1, 256), jnp.float32)[:, None, None]
    mean = jnp.array([-50.0, -1.0, 0.0, 1.0, 50.0])[:, None]
    log_var = jnp.array([-18.0, -9.0, 0.0, 9.0])
    total = lambda mean, log_var: losses.discretised_log_likelihood(x, mean, log_var).sum()
    value, slopes = jax.jit(jax.value_and_grad(total, (0, 1)))(mean, log_var)
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("name", VARIANCES)
def test_variational_term_is_the_kl_of_the_two_steps(x64, name):
    variance = VARIANCES[name]
    now, nxt = _at(jnp.array([0.002, 0.5, 1.0])), _at(jnp.array([0.001, 0.499, 0.999]))
    x0, eps, wrong, aux = jax.random.normal(jax.random.key(0), (4, 3, 2))
    x = _corrupt(x0, eps, now)
    got = _term(x0, x, Prediction(wrong, eps, aux), now, nxt, variance)
    beta = np.asarray(schedules.linear_betas())[[1, 499, 999]]
    bar = np.cumprod(1 - schedules.linear_betas())
    small = beta * (1 - bar[[0, 498, 998]]) / (1 - bar[[1, 499, 999]])
    f = (np.asarray(aux) + 1) / 2
    log_p = {
        "fixed_small": np.log(small)[:, None],
        "fixed_large": np.log(beta)[:, None],
        "learned_range": f * np.log(beta)[:, None] + (1 - f) * np.log(small)[:, None],
    }[name]
    gap = np.sqrt(bar[[0, 498, 998]]) * beta / (1 - bar[[1, 499, 999]])
    gap = gap[:, None] * (np.asarray(wrong) - np.asarray(x0))
    ratio = np.log(small)[:, None] - log_p
    kl = 0.5 * (np.exp(ratio) - 1 - ratio + gap**2 / np.exp(log_p))
    assert_allclose(got, kl.mean(-1), rtol=1e-6)


def test_variational_term_to_the_clean_level_is_the_decoder(x64):
    now = _at(jnp.array([0.001]))
    x0 = jnp.array([[3.0, 200.0]]) / 127.5 - 1
    prediction = Prediction(x0 + 0.002, x0)
    got = _term(x0, x0, prediction, now, clean(now), fixed_large)
    wanted = _likelihood(x0, prediction.x0, jnp.log(jnp.asarray(1e-4)))
    assert_allclose(got, -wanted.mean(-1), rtol=1e-6)


def test_variational_term_trains_at_every_level_of_a_mixed_batch_in_float32():
    steps = jnp.array([1, 2, 3, 500, 999, 1000])
    now, nxt = _at(steps / 1000), _at(jnp.maximum(steps - 1, 1) / 1000)
    nxt = NoiseLevel(*(jnp.where(steps == 1, c, n) for c, n in zip(clean(now), nxt, strict=True)))
    x0, eps, wrong, aux = jax.random.normal(jax.random.key(0), (4, 6, 3))
    x0 = jnp.clip(x0, -1, 1)

    def total(aux, wrong):
        prediction = Prediction(wrong, eps, aux)
        x = corrupt(x0, eps, now)
        return losses.variational_term(
            x0, x, prediction, now, nxt, VARIANCES["learned_range"]
        ).sum()

    value, slopes = jax.jit(jax.value_and_grad(total, (0, 1)))(aux, wrong)
    assert np.isfinite(value)
    for slope in slopes:
        assert np.isfinite(slope).all()
        assert (np.abs(slope).max(-1) > 0).all()


def test_a_perfect_prediction_with_the_true_variance_costs_nothing():
    now, nxt = _at(jnp.array([0.5, 0.9])), _at(jnp.array([0.4, 0.2]))
    x0, eps = jax.random.normal(jax.random.key(0), (2, 2, 3))
    got = _term(x0, _corrupt(x0, eps, now), Prediction(x0, eps), now, nxt, fixed_small)
    assert_allclose(got, 0, atol=1e-7)
