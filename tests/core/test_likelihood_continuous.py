"""Bounds in continuous time, by importance weights and of 8-bit data, against exact values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import (
    continuous_bound,
    dequantise,
    importance_bound,
    likelihood,
    oracles,
    process,
    schedules,
)
from diffusion_jax.core.likelihood import standard_error
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers.ancestral import fixed_large, fixed_small
from diffusion_jax.core.types import Prediction

BINS = 16


def _data():
    return oracles.mixture([1, 2], [[-1.0, 0.5], [1.0, 0.0]], [0.1, 0.3])


def _process(path="vp", end=12.0):
    return Process(schedules.cosine(low=-end, high=end), PATHS[path])


def _exact_denoise(data):
    return lambda x, level: oracles.predict(data, x, level)


def _excess(run, data=None, n=20_000):
    """Mean of a bound of one point over draws, less the exact -log2 p/D, and its error."""
    data = data or _data()
    x0 = jnp.array([0.8, 0.3])
    exact = -float(oracles.log_prob(data, x0[None])[0]) / 2 / np.log(2)
    out = jax.jit(run)(jax.random.key(0), jnp.tile(x0, (n, 1)))
    return out, float(out.total.mean()) - exact, float(standard_error(out.total))


@pytest.mark.parametrize(
    ("path", "times", "clock", "decoder"),
    [
        ("vp", "stratified", "log_snr", "gaussian"),
        ("ve", "antithetic", "log_snr", "gaussian_direct"),
        ("rectified", "uniform", "schedule", "gaussian"),
    ],
)
def test_the_continuous_bound_of_the_exact_denoiser_is_the_density(path, times, clock, decoder):
    made = [
        continuous_bound.DECODERS[decoder](),
        continuous_bound.TIMES[times],
        continuous_bound.CLOCKS[clock],
    ]
    process, denoise = _process(path, 10.0), _exact_denoise(_data())
    run = lambda key, x0: continuous_bound.continuous_bound(key, denoise, x0, process, 8, *made)
    out, excess, error = _excess(run)
    assert out.steps.shape == (8, 20_000) and error < 0.1
    assert_allclose(out.total, out.prior + out.steps.sum(0) + out.decoder, rtol=1e-4, atol=1e-4)
    assert abs(excess) < 4 * error


@pytest.mark.parametrize(("high", "clean"), [(np.inf, 9.0), (4.0, 4.0)])
def test_terms_have_their_closed_forms_and_a_wrong_denoiser_costs_what_it_should(x64, high, clean):
    """With eps_hat = 0: ½·(λ_max - λ_min) for the steps; and any time gives the same."""
    process = Process(schedules.cosine(low=-6.0, high=9.0), PATHS["vp"])
    zero = lambda x, level: Prediction(x, jnp.zeros_like(x))
    x0 = jnp.tile(jnp.array([[0.3, -0.5]]), (20_000, 1))
    for whole in continuous_bound.CLOCKS.values():
        clock = functools.partial(whole, high=high)
        out = jax.jit(
            lambda key, clock=clock: continuous_bound.continuous_bound(
                key, zero, x0, process, 4, continuous_bound.gaussian_direct(), clock=clock
            )
        )(jax.random.key(0))
        steps = out.steps.sum(0)
        assert abs(steps.mean() - (clean + 6) / 2 / np.log(2)) < 4 * standard_error(steps)
        # E(x0 - x/alpha)² is the decoder's variance: ½·log(2πe·s²).
        wanted = 0.5 * (np.log(2 * np.pi) + 1 - clean) / np.log(2)
        assert abs(out.decoder.mean() - wanted) < 4 * standard_error(out.decoder)
    noisy = process.at(1.0)
    a2, s2 = float(noisy.alpha) ** 2, float(noisy.sigma) ** 2
    prior = 0.5 * (s2 + a2 * np.mean([0.09, 0.25]) - 1 - np.log(s2)) / np.log(2)
    assert_allclose(out.prior, prior, rtol=1e-9)


def test_the_bound_in_steps_is_that_of_the_discrete_chain_and_tends_to_the_continuous():
    """Kingma et al. 2021, eq. 14, is KL by KL the posterior's with variance fixed_small."""
    denoise, process, steps = _exact_denoise(_data()), _process(end=8.0), 16
    gaussian = continuous_bound.gaussian()
    run = lambda t: (
        lambda key, x0: continuous_bound.stepwise_bound(key, denoise, x0, process, t, 8, gaussian)
    )
    few, loose, _ = _excess(run(steps))
    levels = process.at_log_snr(jnp.linspace(-8.0, 8.0, steps + 1))
    chain, _, _ = _excess(
        lambda key, x0: likelihood.variational_bound(
            key, denoise, x0, levels, fixed_small, likelihood.gaussian_log_likelihood
        ),
        n=5000,
    )
    together = np.hypot(standard_error(few.steps.sum(0)), standard_error(chain.steps.sum(0)))
    assert abs(few.steps.sum(0).mean() - chain.steps.sum(0).mean()) < 4 * together
    _, tight, finer = _excess(run(512))
    assert -4 * finer < tight < 0.2 * loose


def test_more_noisings_tighten_the_importance_weighted_bound_and_never_pass_the_density():
    levels = _process(end=9.0).at_log_snr(jnp.linspace(-9.0, 9.0, 13))
    denoise = _exact_denoise(_data())
    run = lambda k: (
        lambda key, x0: importance_bound.importance_weighted_bound(
            key, denoise, x0, levels, k, fixed_large, likelihood.gaussian_log_likelihood
        )
    )
    one, first, error = _excess(run(1), n=8000)
    many, best, smaller = _excess(run(16), n=2000)
    discrete, _, spread = _excess(
        lambda key, x0: likelihood.variational_bound(
            key, denoise, x0, levels, fixed_large, likelihood.gaussian_log_likelihood
        ),
        n=8000,
    )
    assert abs(one.total.mean() - discrete.total.mean()) < 4 * np.hypot(error, spread)
    assert_allclose(one.gain, 0, atol=1e-6)
    assert (np.asarray(many.gain) <= 1e-6).all()
    assert_allclose(many.total, many.single + many.gain, atol=1e-5)
    assert -4 * smaller < best < first - 4 * np.hypot(error, smaller)


def test_the_categorical_decoder_is_a_probability_and_its_noise_vanishes(x64):
    values = jnp.linspace(-1.0, 1.0, BINS)[:, None]
    decode = continuous_bound.categorical(BINS)
    level = _process("rectified").at_log_snr(3.0)
    at = jax.jit(lambda x0, x: decode(None, x0, x, level))
    x = jnp.full_like(values, 0.2)
    log_p = at(values, x)
    assert_allclose(jnp.exp(log_p).sum(), 1.0, rtol=1e-12)
    s = np.exp(-1.5)
    logits = -0.5 * ((0.2 / float(level.alpha) - np.asarray(values)) / s) ** 2
    assert_allclose(log_p - log_p[0], logits - logits[0], rtol=1e-9)
    clean = _process("rectified").at_log_snr(12.0)
    assert float(jnp.abs(decode(None, values, values * clean.alpha, clean)).max()) < 1e-9


# One dimension of a mixture, and the exact mass of each of 16 bins on [-1, 1].


def _bins(scale=1.0):
    data = oracles.mixture([1, 2], [[-0.4], [0.3]], [0.02 * scale, 0.05 * scale])
    w = 2 / (BINS - 1)
    points = np.linspace(-0.5, 0.5, 401)[None] * w + np.linspace(-1, 1, BINS)[:, None]
    density = np.exp(np.asarray(oracles.log_prob(data, jnp.asarray(points.reshape(-1, 1)))))
    return data, -np.log2(np.trapezoid(density.reshape(points.shape), points, axis=1))


def _bits(data):
    return lambda key, x: -oracles.log_prob(data, x) / np.log(2)


_bound = jax.jit(dequantise.bound, static_argnames=("dequantiser", "bits", "k"))


@pytest.mark.parametrize(
    ("name", "scale"),
    # 400: bins beside which the density is flat
    [("uniform", 1.0), ("uniform", 400.0), ("truncated_normal", 1.0), ("logistic_normal", 1.0)],
)
def test_dequantised_densities_bound_the_exact_mass_of_bins(x64, name, scale):
    made = {
        "uniform": dequantise.uniform(BINS),
        "truncated_normal": dequantise.truncated_normal(0.03, BINS),
        "logistic_normal": dequantise.logistic_normal(jnp.zeros(1), jnp.full((1,), 0.5), BINS),
    }
    n, values = 2000, jnp.linspace(-1.0, 1.0, BINS)
    x = jnp.repeat(values, n)[:, None]
    data, exact = _bins(scale)
    out = _bound(jax.random.key(0), made[name], x, _bits(data), 8)
    assert_allclose(out.total, out.density + out.dequantisation + out.gain, rtol=1e-9)
    assert float(out.gain.max()) <= 1e-12
    many, one = (np.asarray(each).reshape(BINS, n) for each in (out.total, out.total - out.gain))
    for each in (one, many):
        assert (each.mean(1) > exact - 5 * each.std(1) / np.sqrt(n) - 1e-4).all()
    if scale > 1 and name == "uniform":
        assert_allclose(one.mean(1), exact, atol=2e-3)
        return
    assert (many.mean(1) - exact).mean() < 0.5 * (one.mean(1) - exact).mean()


@pytest.mark.parametrize("name", ["truncated_normal", "logistic_normal", "uniform"])
def test_log_q_is_the_density_of_what_is_drawn(x64, name):
    """The entropy of q by its own log density is that by a histogram; and E[1/q] is the width."""
    made = {
        "truncated_normal": dequantise.truncated_normal(0.05, BINS),
        "logistic_normal": dequantise.logistic_normal(jnp.full(1, 0.3), jnp.full((1,), 0.1), BINS),
        "uniform": dequantise.uniform(BINS),
    }[name]
    x = jnp.full((200_000, 1), 0.2)
    drawn, log_q = jax.jit(made)(jax.random.key(0), x)
    w = 2 / (BINS - 1)
    u = np.asarray(drawn[:, 0] - 0.2) / w
    assert u.min() >= -0.5 and u.max() <= 0.5
    share, _ = np.histogram(u, 50, (-0.5, 0.5))
    density = share / len(u) * 50 / w
    at = np.clip(((u + 0.5) * 50).astype(int), 0, 49)
    mean = np.bincount(at, np.exp(log_q), minlength=50) / np.maximum(share, 1)
    well = share > 2000
    assert well.sum() > 20
    assert_allclose(mean[well], density[well], rtol=0.12)


def test_a_variational_dequantiser_learns_the_shape_of_its_bins(x64):
    """A network of two lines, trained by the bound: better than uniform, and still a bound."""
    data, exact = _bins()
    values = jnp.linspace(-1.0, 1.0, BINS)[:, None]

    def apply(params, x):
        row = jnp.round((x[:, 0] + 1) * (BINS - 1) / 2).astype(int)
        return params["mean"][row][:, None], params["log_std"][row][:, None]

    params = {"mean": jnp.zeros(BINS), "log_std": jnp.full(BINS, 0.5)}
    tx = optax.adam(0.03)
    x = jnp.repeat(values, 32, 0)

    def step(state, key):
        params, moments = state
        loss = lambda p: dequantise.objective(
            key, dequantise.variational(apply, p, BINS), x, _bits(data)
        ).mean()
        updates, moments = tx.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    keys = jax.random.split(jax.random.key(0), 400)
    (params, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, keys))((params, tx.init(params)))
    many = jnp.repeat(values, 2000, 0)
    mean = lambda q: np.asarray(_bound(jax.random.key(1), q, many, _bits(data), 1).total).reshape(
        BINS, -1
    )
    learned = mean(dequantise.variational(apply, params, BINS))
    plain = mean(dequantise.uniform(BINS))
    assert (learned.mean(1) > exact - 5 * learned.std(1) / np.sqrt(2000) - 1e-4).all()
    gap = lambda each: (each.mean(1) - exact).mean()
    assert gap(learned) < 0.3 * gap(plain)


def test_8_bit_units():
    """A density of 1/2 on [-1, 1] is 7 bits of 256 values, up to the half bins outside."""
    flat = lambda key, x: jnp.ones(x.shape[0])
    out = dequantise.bound(jax.random.key(0), dequantise.uniform(), jnp.zeros((3, 4)), flat)
    assert_allclose(out.total, 1 + np.log2(127.5), rtol=1e-6)


def test_one_call_a_draw_and_one_program():
    calls = []

    def denoise(x, level):
        jax.debug.callback(lambda: calls.append(1))
        return Prediction(x, x)

    @functools.partial(jax.jit, static_argnames="n")
    def run(key, end, n):
        linear = process.Schedule(lambda t: end - 20 * t, lambda lam: (end - lam) / 20)
        made = Process(linear, PATHS["vp"])
        decoder = continuous_bound.gaussian_direct()
        return continuous_bound.continuous_bound(
            key, denoise, jnp.zeros((2, 3)), made, n, decoder
        ).total

    for end in (9.0, 10.0):
        run(jax.random.key(0), end, 5).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == 10 and run._cache_size() == 1


def test_wrong_arguments_are_sentences():
    key, x0, made = jax.random.key(0), jnp.zeros((1, 2)), _process()
    with pytest.raises(ValueError, match="n = 0 draws"):
        continuous_bound.continuous_bound(key, _exact_denoise(_data()), x0, made, 0)
    with pytest.raises(ValueError, match="steps = 0"):
        continuous_bound.stepwise_bound(key, _exact_denoise(_data()), x0, made, 0, 1)
    with pytest.raises(ValueError, match="k = 0"):
        levels = made.at_log_snr(jnp.linspace(-9.0, 9.0, 3))
        importance_bound.importance_weighted_bound(key, _exact_denoise(_data()), x0, levels, 0)
    with pytest.raises(ValueError, match="k = 0"):
        dequantise.bound(key, dequantise.uniform(), x0, lambda key, x: x, 0)
    with pytest.raises(ValueError, match="bins = 1"):
        dequantise.uniform(1)
