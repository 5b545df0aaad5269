"""Every estimate of the table on the exact model of a Gaussian mixture, and wrong settings."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logit as logit_of

from diffusion_jax.core import continuous_bound as continuous
from diffusion_jax.core import (
    dequantise,
    flow_likelihood,
    grids,
    importance_bound,
    likelihood,
    oracles,
    schedules,
)
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers.ancestral import fixed_large, fixed_small, learned_range
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


def test_a_fit_starts_almost_uniform_and_moves_by_the_rate():
    x, key, steps_key = jnp.zeros((2, 3)), jax.random.key(0), jax.random.key(5)
    steep = lambda key, x: (1e6 * x).mean(1)  # so that every mean falls
    settings = [{"steps": 0}, {"steps": 1}, {"steps": 1, "rate": 0.2}, {"steps": 1, "bins": 17}]
    fits = lambda: [dequantiser.fit(steps_key, x, steep, **each)(key, x)[0] for each in settings]
    e = np.asarray(jax.random.normal(key, x.shape))
    for each, found in zip(settings, jax.jit(fits)(), strict=True):
        logit = logit_of(np.float64(found) / dequantise.width(each.get("bins", 256)) + 0.5)
        moved = each["steps"] * each.get("rate", 0.05)
        # A deviation may rise or fall.
        off = [np.abs(logit + moved - np.exp(0.5 + sign * moved) * e) for sign in (-1, 1)]
        assert np.minimum(*off).max() < 1e-4


def recorded(monkeypatch, module, name):
    """What a function of the core is called with; it returns nothing."""
    calls = []

    def record(*given):
        calls.append(given)
        return SimpleNamespace(_asdict=dict, total=jnp.zeros(2))

    monkeypatch.setattr(module, name, record)
    return calls


KEY = jax.random.key(3)
X0 = jnp.zeros((2, 2, 1, 1))


def told(spec, **changes):
    subject = Subject(lambda x, level: None, PROCESS, fixed_small, False, True)._replace(**changes)
    build(LIKELIHOODS, spec, "evaluate.likelihood").terms(KEY, subject, X0)
    return subject


def test_the_discrete_bound_takes_its_levels_steps_variance_and_decoder(monkeypatch):
    every = recorded(monkeypatch, likelihood, "variational_bound")
    drawn = recorded(monkeypatch, likelihood, "estimate_bound")
    monkeypatch.setattr(grids, "trailing", lambda process, n: (process, n))
    subject = told("variational_bound(steps=7)")
    told("variational_bound(n=3, steps=5)", discrete=False)
    told("variational_bound")
    decoders = likelihood.DECODERS
    (key, denoise, x0, levels, *settings), standard = every
    assert (key is KEY, denoise, x0 is X0) == (True, subject.denoise, True)
    assert levels == (PROCESS, 7)
    assert settings == [fixed_small, decoders["discretised"]]
    assert standard[3] == (PROCESS, 1000)
    ((*_, levels, n, variance, decoder),) = drawn
    assert (n, variance, decoder) == (3, fixed_small, decoders["gaussian"])
    assert levels == (PROCESS, 5)


def test_the_continuous_bound_takes_its_draws_decoder_times_and_clock(monkeypatch):
    every = recorded(monkeypatch, continuous, "continuous_bound")
    in_steps = recorded(monkeypatch, continuous, "stepwise_bound")
    told("continuous_bound", learned=True)
    told("continuous_bound(n=3, times='antithetic', decoder='categorical', high=4.0)")
    told("continuous_bound(n=6, steps=9, clock='schedule')", discrete=False)
    (*_, n, decoder, times, clock), (*_, few, other, pairs, log_snr) = every
    name = lambda decoder: decoder.__qualname__.split(".")[0]
    assert (n, name(decoder), times) == (64, "discretised", continuous.TIMES["stratified"])
    assert (few, name(other), pairs) == (3, "categorical", continuous.TIMES["antithetic"])
    assert (clock.func, clock.keywords) == (continuous.by_schedule, {"high": np.inf})
    assert (log_snr.func, log_snr.keywords) == (continuous.by_log_snr, {"high": 4.0})
    ((key, _, x0, process, steps, n, decoder, clock),) = in_steps
    assert (key is KEY, x0 is X0, process, steps, n) == (True, True, PROCESS, 9, 6)
    assert (name(decoder), clock.func) == ("gaussian", continuous.by_schedule)


def test_the_weighted_bound_takes_its_noisings_and_the_variance_of_least_spread(monkeypatch):
    calls = recorded(monkeypatch, importance_bound, "importance_weighted_bound")
    for spec, model, wanted in (
        ("importance_weighted(k=5, steps=11)", fixed_small, (11, 5, fixed_large)),
        ("importance_weighted", learned_range, (100, 8, learned_range)),
        ("importance_weighted(2, 3, 'fixed_small')", learned_range, (3, 2, fixed_small)),
    ):
        told(spec, variance=model)
        *_, levels, k, variance, decoder = calls[-1]
        assert (len(levels.log_snr), k, variance) == wanted
        assert decoder == likelihood.DECODERS["discretised"]
        np.testing.assert_allclose(np.diff(levels.log_snr), 24 / (wanted[0] - 1), rtol=1e-3)


def test_the_flow_takes_its_steps_method_tolerances_and_probes(monkeypatch):
    fixed = recorded(monkeypatch, flow_likelihood, "flow_likelihood")
    adaptive = recorded(monkeypatch, flow_likelihood, "adaptive_flow_likelihood")
    probes = []
    monkeypatch.setattr(flow_likelihood, "hutchinson", lambda *given: probes.append(given))
    told("flow(steps=6, method='heun', probes=3, law='gaussian', high=5.0)", discrete=False)
    told("flow_adaptive(rtol=0.1, atol=0.2, method='dopri5')", discrete=False)
    told("flow_adaptive", discrete=False)
    told("flow", discrete=False)
    (*_, levels, method, _), standard = fixed
    np.testing.assert_allclose(levels.log_snr, np.linspace(-12, 5, 7), rtol=1e-5)
    assert (method, standard[5], len(standard[4].log_snr)) == ("heun", "rk4", 65)
    (*_, levels, method, rtol, atol, _), standard = adaptive
    np.testing.assert_allclose(levels.log_snr, [-12, 12], rtol=1e-5)
    assert (method, rtol, atol) == ("dopri5", 0.1, 0.2)
    assert standard[5:8] == ("tsit5", 1e-4, 1e-4)
    assert probes == [(3, "gaussian"), (1, "rademacher"), (1, "rademacher"), (1, "rademacher")]


@pytest.mark.parametrize(("given", "cut"), [("", 2 * np.log(3 * 255)), ("high=4.0", 4.0)])
def test_a_truncated_normal_starts_where_a_bin_is_three_deviations(monkeypatch, given, cut):
    """Half a bin is 1/255 = 3·exp(-λ/2): λ = 13.3, beyond the end of this process."""
    calls = recorded(monkeypatch, flow_likelihood, "flow_likelihood")
    stds = recorded(monkeypatch, dequantise, "truncated_normal")
    monkeypatch.setattr(dequantise, "bound", lambda key, q, x0, bits, k: (
        bits(key, x0), SimpleNamespace(_asdict=lambda: {"k": k}))[1])  # fmt: skip
    wide = Process(schedules.cosine(low=-20.0, high=20.0), PATHS["vp"])
    told(f"flow('truncated_normal', steps=2, k=7, {given})", process=wide)
    np.testing.assert_allclose(calls[0][4].log_snr[-1], cut, rtol=1e-5)
    np.testing.assert_allclose(stds[0][0], np.exp(-cut / 2), rtol=1e-4)
    told("flow('truncated_normal', steps=2)")
    np.testing.assert_allclose(calls[1][4].log_snr[-1], 12, rtol=1e-5)


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
        ("flow_adaptive(atol=0)", "rtol > 0, atol > 0"),
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
