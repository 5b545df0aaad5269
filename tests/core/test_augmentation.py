"""Cascades: what noise on a condition, told or not, does to the law of the second stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import (
    exact_moments,
    network_io,
    oracles,
    oracles_conditional,
    sampling,
    schedules,
)
from diffusion_jax.core.augmentation import augmented
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.types import Prediction

# A row of 16 numbers, and means of its pairs.
HIGH = 0.9 ** np.abs(np.subtract.outer(np.arange(16), np.arange(16)))
HALF = np.kron(np.eye(8), np.full((1, 2), 0.5))


def _data():
    return oracles.mixture([1.0], [np.zeros(16)], [HIGH])


def _apart(error, added, told):
    law = oracles_conditional.cascade(_data(), jnp.asarray(HALF), error, added, told)
    return exact_moments.gaussian_kl(*law, np.zeros(16), HIGH)


def test_told_noise_hides_the_first_stages_faults_and_untold_noise_adds_to_them(x64):
    """KL to the data, nats, of a first stage that is 0.3 off; and of a perfect one, lied about."""
    apart = [_apart(0.3, s, s) for s in (1e-3, 0.1, 0.2, 0.3, 0.5)]
    assert_allclose(apart, [0.782, 0.520, 0.195, 0.063, 0.008], atol=1e-3)
    assert _apart(0.0, 0.3, 0.3) < 1e-9
    assert_allclose([_apart(0.0, 0.0, 0.3), _apart(0.0, 0.3, 0.05)], [0.085, 0.671], atol=1e-3)
    with pytest.raises(ValueError, match="1 component, got 2"):
        two = oracles.mixture([1, 1], np.zeros((2, 16)), [HIGH, HIGH])
        oracles_conditional.cascade(two, jnp.asarray(HALF), 0.1, 0.1, 0.1)


def _second_stage(x, level, cond):
    """The exact p(high | low with noise of the told sigma/alpha), for one told number."""
    law = oracles_conditional.posterior(
        _data(), jnp.asarray(HALF, x.dtype), jnp.zeros(8, x.dtype), cond["low_noise"][0]
    )
    spread = HALF @ HIGH @ HALF.T + cond["low_noise"][0] ** 2 * jnp.eye(8)
    mean = cond["low"] @ jnp.linalg.solve(spread, HALF @ HIGH)
    around = oracles.predict(law, x - level.alpha * mean, level)
    return Prediction(around.x0 + mean, around.eps)


@pytest.mark.parametrize("path", ["ve", "vp"])
def test_a_sampled_cascade_has_the_law_of_the_oracle(path):
    """Draws through ``augmented`` and DDIM; where alpha < 1 the low picture is rescaled."""
    n, error = 20_000, 0.3
    low_process, process = (
        Process(schedules.cosine(), PATHS[path]),
        Process(schedules.cosine(), PATHS["vp"]),
    )
    tell = lambda level: jnp.exp(-level.log_snr / 2)  # sigma/alpha

    @jax.jit
    def run(key, added, told):
        of_data, of_error, of_low, of_x = jax.random.split(key, 4)
        low = oracles.sample(of_data, _data(), n) @ HALF.T
        low = low + error * jax.random.normal(of_error, low.shape)
        level = low_process.at_log_snr(-2 * jnp.log(added))
        cond = augmented({"low": low}, "low", "low_noise", level, of_low, tell)
        cond = {**cond, "low": cond["low"] / level.alpha, "low_noise": jnp.full(n, told)}
        levels = process.at_log_snr(jnp.linspace(-10.0, 9.0, 50))
        x = sampling.prior(of_x, (n, 16), levels)
        denoise = lambda x, level: _second_stage(x, level, cond)
        return sampling.sample(of_x, ddim(), denoise, x, levels)

    for added, told in ((0.2, 0.2), (0.3, 0.05)):
        x = np.asarray(run(jax.random.key(1), added, told), np.float64)
        got = exact_moments.gaussian_kl(x.mean(0), np.cov(x.T), np.zeros(16), HIGH)
        assert_allclose(got, _apart(error, added, told), rtol=0.1, atol=0.02)
    assert run._cache_size() == 1


def test_the_network_is_told_the_level_of_each_example():
    level = Process(schedules.cosine(), PATHS["vp"]).at(jnp.array([0.1, 0.7, 0.4]))
    low = jax.random.normal(jax.random.key(0), (3, 64, 64, 2), jnp.bfloat16)
    cond = {"label": jnp.array([1, 2, 0]), "low": low}
    tell = network_io.discrete(1000)
    got = jax.jit(lambda key: augmented(cond, "low", "low_level", level, key, tell))(
        jax.random.key(2)
    )
    assert sorted(got) == ["label", "low", "low_level"] and got["low"].dtype == jnp.bfloat16
    assert_allclose(got["low_level"], [99, 699, 399], rtol=1e-5)
    noise = np.asarray(got["low"] - level.alpha[:, None, None, None] * low, np.float64)
    assert_allclose(noise.std((1, 2, 3)), level.sigma, rtol=0.03)
    alone = augmented(
        cond, "low", "low_level", jax.tree.map(lambda c: c[1], level), jax.random.key(2), tell
    )
    assert_allclose(alone["low_level"], [699] * 3, rtol=1e-5)
    with pytest.raises(ValueError, match=r"augmented\('hint'\): the condition has label, low"):
        augmented(cond, "hint", "low_level", level, jax.random.key(0), tell)
