"""Every estimate of the table on the exact model of a Gaussian mixture, and wrong settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import oracles, schedules
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers.ancestral import fixed_large
from diffusion_jax.evaluate import dequantiser
from diffusion_jax.evaluate.likelihoods import LIKELIHOODS, Subject
from diffusion_jax.spec import build

PROCESS = Process(schedules.cosine(low=-12.0, high=12.0), PATHS["vp"])


def _measure(spec, data, x0, discrete):
    estimate = build(LIKELIHOODS, spec, "evaluate.likelihood")
    denoise = lambda x, level: oracles.predict(data, x, level)
    subject = Subject(denoise, PROCESS, fixed_large, False, discrete)
    return jax.jit(lambda key, x0: estimate.terms(key, subject, x0))(jax.random.key(0), x0)


def _sum(terms):
    return sum(x if x.ndim == 1 else x.sum(0) for name, x in terms.items() if name != "total")


@pytest.mark.parametrize(
    ("spec", "slack"),
    [
        ("continuous_bound(n=8)", 0.0),
        ("continuous_bound(n=8, high=7)", 0.02),
        ("continuous_bound(n=8, steps=500, high=7)", 0.1),
        ("importance_weighted(k=4, steps=24)", 0.2),
        ("variational_bound(n=16, steps=64)", 0.6),
        ("flow(steps=48, probes=0)", 0.0),
        ("flow_adaptive(rtol=1e-3, atol=1e-3, probes=0)", 0.0),
    ],
)
def test_points_have_densities(spec, slack):
    data = oracles.mixture([1, 2], [[-1.0, 0.5], [1.0, 0.0]], [0.1, 0.3])
    x0 = oracles.sample(jax.random.key(1), data, 2000 if "bound" in spec else 100)
    exact = -np.asarray(oracles.log_prob(data, x0)) / 2 / np.log(2)
    terms = _measure(spec, data, x0, discrete=False)
    np.testing.assert_allclose(terms["total"], _sum(terms), rtol=1e-3, atol=1e-3)
    excess = np.asarray(terms["total"]) - exact
    error = excess.std() / np.sqrt(len(x0))
    assert -4 * error - 2e-3 < excess.mean() < slack + 4 * error + 2e-3


def _images(n):
    """8-bit 'images' of 2x1x1, of a mixture wide beside a bin: the density times a bin's area."""
    data = oracles.mixture([1, 2], [[-0.3, 0.2], [0.3, 0.0]], [0.02, 0.01])
    x0 = jnp.round((oracles.sample(jax.random.key(1), data, n) + 1) * 127.5).clip(0, 255)
    x0 = (x0 / 127.5 - 1).reshape(n, 2, 1, 1)
    return data, x0, -np.asarray(oracles.log_prob(data, x0)) / 2 / np.log(2) + np.log2(127.5)


@pytest.mark.parametrize(
    ("spec", "high"),
    [
        ("flow(steps=48, probes=0)", 0.01),
        ("flow('truncated_normal', steps=48, probes=0, k=4)", 0.5),
        ("flow('variational', steps=48, probes=0, fit=5)", 0.3),
        ("continuous_bound(n=8, decoder='categorical')", 0.5),
    ],
)
def test_images_have_probabilities(spec, high):
    data, x0, exact = _images(500)
    terms = _measure(spec, data, x0, discrete=True)
    np.testing.assert_allclose(terms["total"], _sum(terms), rtol=1e-3, atol=2e-3)
    excess = np.asarray(terms["total"]) - exact
    error = excess.std() / np.sqrt(len(x0))
    assert -4 * error - 5e-3 < excess.mean() < high + 4 * error


def test_a_lesser_cleanest_level_moves_bits_from_the_steps_to_the_decoder():
    data, x0, _ = _images(500)
    whole, short = (
        _measure(f"continuous_bound(n=8, high={high})", data, x0, discrete=True) for high in (0, 8)
    )
    assert whole["decoder"].mean() < 0.9 < short["decoder"].mean()
    assert short["steps"].sum(0).mean() < whole["steps"].sum(0).mean()


def test_fitting_a_dequantiser_lowers_its_bound():
    """Of a density that falls by e^3 across a bin."""
    x, w = jnp.zeros((4, 3)), 2 / 255
    bits = lambda key, x: -(3 * x / w).mean(1) / np.log(2)
    run = jax.jit(
        lambda steps_key, key: [
            (lambda q: bits(key, q[0]) + q[1] / np.log(2))(
                dequantiser.fit(steps_key, x, bits, steps)(key, x)
            ).mean()
            for steps in (0, 200)
        ]
    )
    pairs = np.array([run(jax.random.key(i), jax.random.key(100 + i)) for i in range(100)])
    exact = -np.log2(w * (np.exp(1.5) - np.exp(-1.5)) / 3)
    before, after = pairs.mean(0)
    error = pairs[:, 1].std() / 10
    assert exact - 4 * error < after < exact + 0.05 + 4 * error
    assert before > after + 0.1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("continuous_bound(n=0)", "n >= 1"),
        ("continuous_bound(decoder='pixel')", "'categorical'"),
        ("continuous_bound(high=-1)", "high=-1.* high >= 0"),
        ("variational_bound(n=-1)", "n >= 0"),
        ("importance_weighted(k=0)", "at least 1"),
        ("importance_weighted(variance='large')", "'fixed_large'"),
        ("flow(dequantisation='gauss')", "'truncated_normal'"),
        ("flow(steps=0)", "steps >= 1"),
        ("flow(probes=-1)", "probes >= 0"),
        ("flow(method='rk5')", "heun or rk4"),
        ("flow(k=0)", "k >= 1"),
        ("flow_adaptive(rtol=0)", "rtol > 0"),
        ("flow_adaptive(method='rk45')", "tsit5"),
        ("flw()", "known are .*flow"),
    ],
)
def test_wrong_settings_are_sentences(spec, words):
    with pytest.raises(ValueError, match=f"config.evaluate.likelihood = .*{words}"):
        build(LIKELIHOODS, spec, "evaluate.likelihood")


def test_points_take_no_dequantisation_and_large_images_no_exact_trace():
    data, x0, _ = _images(2)
    with pytest.raises(ValueError, match="omit both"):
        _measure("flow('uniform')", data, x0.reshape(2, 2), discrete=False)
    with pytest.raises(ValueError, match="at most 4096"):
        _measure("flow(probes=0)", data, jnp.zeros((1, 65, 64, 1)), discrete=True)
