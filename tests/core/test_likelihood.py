import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import grids, importance_bound, likelihood, oracles, schedules, step_draws
from diffusion_jax.core.losses import variational_term
from diffusion_jax.core.process import PATHS, Process, transition, vp
from diffusion_jax.core.sampling import pairs
from diffusion_jax.core.solvers.ancestral import fixed_large, fixed_small, learned_range
from diffusion_jax.core.types import Prediction

GAUSSIAN = likelihood.gaussian_log_likelihood
_MIXTURE = oracles.mixture([1, 2], [[-1.0, 0.5], [1.0, 0.0]], [0.1, 0.3])
_SCHEDULES = {
    "cosine": schedules.cosine(),
    "linear": schedules.linear(200, 5e-4, 0.1),
    "rectified": schedules.rectified_flow(),
}

_FUNCTIONS = ("denoise", "variance", "decoder")
_bound = jax.jit(likelihood.variational_bound, static_argnames=_FUNCTIONS)
_estimate = jax.jit(likelihood.estimate_bound, static_argnames=("n", *_FUNCTIONS))
_term = jax.jit(variational_term, static_argnames="variance")
_likelihood = jax.jit(likelihood.discretised_log_likelihood)
_standard_error = jax.jit(likelihood.standard_error)


def _exact(data):
    return lambda x, level: oracles.predict(data, x, level)


def _levels(steps, end=0.5, path="vp"):
    betas = schedules.linear_betas(steps, 0.01 / steps, end)
    process = Process(schedules.discrete(betas), PATHS[path])
    return jax.jit(lambda: grids.trailing(process, steps))()


def _mean_bound(data, x0, levels, variance, n=4000):
    """The bound on -log2 p(x0)/D of one point, by many draws of the noise, and its error."""
    points = jnp.tile(x0, (n, 1))
    bound = jax.jit(
        lambda key: likelihood.variational_bound(
            key, _exact(data), points, levels, variance, GAUSSIAN
        )
    )(jax.random.key(0))
    return bound, float(bound.total.mean()), float(_standard_error(bound.total))


def test_the_bound_is_exact_where_the_reverse_is():
    """x0 ~ N(0, I): p(x_s | x_t) is Gaussian with exactly the forward variance (vp)."""

    def forward(now, nxt, prediction, before=None):
        return jnp.log(transition(now, nxt).forward_variance)

    data = oracles.mixture([1.0], [[0.0, 0.0]], [1.0])
    x0 = jnp.array([0.7, -1.4])
    _, mean, error = _mean_bound(data, x0, _levels(8), forward)
    exact = -float(oracles.log_prob(data, x0[None])[0]) / 2 / np.log(2)
    assert error < 0.02
    assert abs(mean - exact) < 4 * error


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_it_bounds_the_density_of_a_mixture_and_tightens_with_the_number_of_steps(variance):
    data = oracles.mixture([1, 2], [[-1.0, 0.5], [1.0, 0.0]], [0.1, 0.3])
    x0 = jnp.array([0.8, 0.3])
    exact = -float(oracles.log_prob(data, x0[None])[0]) / 2 / np.log(2)
    gaps = []
    for steps in (4, 64):
        _, mean, error = _mean_bound(data, x0, _levels(steps, 0.9 if steps == 4 else 0.2), variance)
        assert mean > exact - 3 * error
        gaps.append(mean - exact)
    assert gaps[1] < 0.5 * gaps[0]


def test_terms_add_up_and_have_their_closed_forms(x64):
    levels, x0 = _levels(6), jnp.array([[0.3, -0.9, 0.5], [0.0, 0.1, 0.2]])
    denoise = lambda x, level: Prediction(jnp.zeros_like(x), jnp.zeros_like(x))
    bound = _bound(jax.random.key(0), denoise, x0, levels, fixed_small, GAUSSIAN)
    assert bound.steps.shape == (5, 2)
    assert_allclose(bound.total, bound.prior + bound.steps.sum(0) + bound.decoder, rtol=1e-12)
    a2, s2 = np.asarray(levels.alpha) ** 2, np.asarray(levels.sigma) ** 2
    square = np.mean(np.asarray(x0) ** 2, -1)
    prior = 0.5 * (s2[0] + a2[0] * square - 1 - np.log(s2[0]))
    assert_allclose(bound.prior, prior / np.log(2), rtol=1e-10)
    # With x0 predicted as 0 each KL is ½(SNR_s - SNR_t)·x0² (Kingma et al. 2021, eq. 14).
    snr = a2 / s2
    steps = 0.5 * (snr[1:] - snr[:-1])[:, None] * square / np.log(2)
    assert_allclose(bound.steps, steps, rtol=1e-10)
    first = s2[-1] * (1 - snr[-2] / snr[-1])  # β̃ of the step before, for that to the clean level
    decoder = 0.5 * (square / first + np.log(2 * np.pi * first))
    assert_allclose(bound.decoder, decoder / np.log(2), rtol=1e-10)
    alone = jax.tree.map(lambda leaf: leaf[-1:], levels)  # no step before: half of β
    bound = _bound(jax.random.key(0), denoise, x0, alone, fixed_small, GAUSSIAN)
    decoder = 0.5 * (2 * square / s2[-1] + np.log(np.pi * s2[-1]))
    assert_allclose(bound.decoder, decoder / np.log(2), rtol=1e-10)


def _cdf(x):
    return 0.5 * (1 + np.vectorize(math.erf)(x / 2**0.5))


def test_the_decoder_of_1000_steps_has_the_published_first_variance(x64):
    """posterior_variance[1] of Ho et al. 2020's table, for both; log β_1 to it, if learned."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    first = betas[1] * (1 - bar[0]) / (1 - bar[1])
    levels = grids.trailing(Process(schedules.linear(), vp), 1000)
    two = jax.tree.map(lambda leaf: leaf[-2:], levels)
    x0, off = np.array([[3.0, 200.0, 0.0, 255.0]]) / 127.5 - 1, 0.011
    f = 0.25

    def denoise(x, level):
        moved = jnp.full_like(x, x0 + off)
        return Prediction(moved, x, jnp.full_like(x, 2 * f - 1))

    def wanted(variance):
        low, high = (np.where(x0 * s == 1, s * 1e9, x0 + s / 255) for s in (-1, 1))
        mass = _cdf((high - x0 - off) / variance**0.5) - _cdf((low - x0 - off) / variance**0.5)
        return -np.mean(np.log2(mass))

    of = {
        fixed_small: first,
        fixed_large: first,
        learned_range: betas[0] ** f * first ** (1 - f),
    }
    for variance, value in of.items():
        bound = likelihood.variational_bound(
            jax.random.key(0), denoise, jnp.asarray(x0), two, variance
        )
        assert_allclose(bound.decoder, wanted(value), rtol=1e-6)
    weighted = importance_bound.importance_weighted_bound
    one = [weighted(jax.random.key(0), denoise, jnp.asarray(x0), two, 1, v) for v in list(of)[:2]]
    assert np.isfinite([leaf.total for leaf in one]).all()


def test_a_perfect_model_pays_for_the_decoder_alone():
    levels = _levels(6, end=0.999)
    x0 = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1)) / 127.5 - 1)
    x0 = x0.astype(jnp.float32)
    bound = _bound(jax.random.key(0), lambda x, level: Prediction(x0, x), x0, levels)
    assert_allclose(bound.steps, 0, atol=1e-6)
    assert (np.asarray(bound.prior) < 0.01).all()
    assert (np.asarray(bound.decoder) >= 0).all()  # a probability, not a density


def test_no_knowledge_of_8_bit_data_costs_about_8_bits():
    """A flat N(0, huge) at the decoder spreads its mass over the bins."""
    x0 = jnp.asarray(np.arange(256, dtype=np.float32) / 127.5 - 1)
    # Uniform within [-1, 1] is best met by std 1/sqrt(3): H = 8 bits + KL(uniform || Gaussian).
    log_var = jnp.log(jnp.asarray(1 / 3))
    bits = -_likelihood(x0, jnp.zeros(()), log_var) / np.log(2)
    kl = 0.5 * np.log2(2 * np.pi * np.e / 3) - 1
    assert abs(float(bits.mean()) - (8 + kl)) < 0.1


def test_steps_are_the_terms_of_the_training_loss(x64):
    """One step of the grid in bits is ``losses.variational_term`` in nats, same noise."""
    levels, x0 = _levels(2), jnp.array([[0.3, -0.9], [0.0, 0.1]])
    seen = []

    def denoise(x, level):
        jax.debug.callback(lambda x: seen.append(x), x, ordered=True)
        return Prediction(0.5 * x, x)

    bound = _bound(jax.random.key(0), denoise, x0, levels)
    jax.effects_barrier()
    now, nxt = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in (0, 1))
    x = jnp.asarray(seen[0])
    prediction = Prediction(0.5 * x, x)
    nats = _term(x0, x, prediction, now, nxt, fixed_small)
    assert_allclose(bound.steps[0] * np.log(2), nats, rtol=1e-10)


def test_learned_variance_is_read_from_aux(x64):
    levels, x0 = _levels(4), jnp.array([[0.3, -0.9], [0.0, 0.1]])

    @functools.partial(jax.jit, static_argnames="variance")
    def bound(coefficient, variance):
        def denoise(x, level):
            return Prediction(0.5 * x, x, aux=jnp.full_like(x, coefficient))

        key = jax.random.key(0)
        return likelihood.variational_bound(key, denoise, x0, levels, variance, GAUSSIAN)

    small, large = bound(0.0, fixed_small), bound(0.0, fixed_large)
    assert_allclose(bound(-1.0, learned_range).total, small.total, rtol=1e-10)
    assert_allclose(bound(1.0, learned_range).steps, large.steps, rtol=1e-10)
    assert np.abs(bound(0.0, learned_range).total - small.total).min() > 1e-3


@pytest.mark.parametrize("n", [3, 5])
def test_the_subsample_is_unbiased(n):
    levels = _levels(8)
    x0 = jnp.asarray(np.broadcast_to(np.array([0.3, -0.9], np.float32), (20_000, 2)))
    denoise = lambda x, level: Prediction(jnp.zeros_like(x), jnp.zeros_like(x))
    full = _bound(jax.random.key(0), denoise, x0[:1], levels, fixed_small, GAUSSIAN)
    few = _estimate(jax.random.key(1), denoise, x0, levels, n, fixed_small, GAUSSIAN)
    assert few.steps.shape == (n, len(x0))
    error = _standard_error(few.total)
    assert abs(few.total.mean() - full.total[0]) < 4 * error
    assert_allclose(few.prior[0], full.prior[0], rtol=1e-5)
    assert_allclose(few.decoder[0], full.decoder[0], rtol=1e-5)


def test_the_subsample_of_all_steps_is_the_bound_itself():
    levels, x0 = _levels(8), jnp.array([[0.3, -0.9], [0.0, 0.1]])
    given = (jax.random.key(0), _exact(_MIXTURE), x0, levels)
    full = _bound(*given, fixed_small, GAUSSIAN)
    for n in (7, 100):
        few = _estimate(*given, n, fixed_small, GAUSSIAN)
        jax.tree.map(np.testing.assert_array_equal, few, full)
    with pytest.raises(ValueError, match="n = 0"):
        likelihood.estimate_bound(jax.random.key(0), _exact(None), jnp.zeros((1, 2)), _levels(4), 0)
    index = step_draws.stratified(jax.random.key(0), 7, 5, 7)
    assert_allclose(index, np.broadcast_to(np.arange(7)[:, None], (7, 5)))


@pytest.mark.parametrize("n", [1, 6, 30, 63])
@pytest.mark.parametrize("path", ["vp", "ve"])
def test_steps_are_distinct_and_taken_with_their_chance(n, path):
    levels = grids.trailing(Process(schedules.rectified_flow(), PATHS[path]), 64)  # λ = -inf first
    chances = step_draws.chances(*pairs(levels)[:2], n)
    assert float(chances.min()) >= n / 63 / 4 - 1e-6 and float(chances.max()) <= 1
    assert_allclose(chances.sum(), n, rtol=1e-5)
    u = (jnp.arange(20_000) + 0.5) / 20_000
    index = np.asarray(step_draws.systematic(u, chances, n))
    assert (np.diff(index, axis=0) > 0).all()
    assert_allclose(np.bincount(index.ravel(), minlength=63) / len(u), chances, atol=2e-4)


@pytest.mark.parametrize("name", ["cosine", "linear", "rectified"])
def test_steps_by_their_chance_vary_less_than_uniform_ones(name):
    """Of the exact denoiser's terms, one for each step, summed by n of them."""
    n, many = 16, 20_000
    levels = grids.trailing(Process(_SCHEDULES[name], PATHS["vp"]), 200)
    x0 = oracles.sample(jax.random.key(1), _MIXTURE, 500)
    bound = _bound(jax.random.key(0), _exact(_MIXTURE), x0, levels, fixed_small, GAUSSIAN)
    terms = bound.steps.mean(1)
    chances = step_draws.chances(*pairs(levels)[:2], n)
    index = step_draws.systematic(jax.random.uniform(jax.random.key(2), (many,)), chances, n)
    drawn = (terms[index] / chances[index]).sum(0)
    uniform = step_draws.stratified(jax.random.key(3), n, many, len(terms))
    plain = terms[uniform].sum(0) * len(terms) / n
    assert abs(drawn.mean() - terms.sum()) < 4 * _standard_error(drawn) + 1e-5
    assert plain.var() > 100 * drawn.var()


@pytest.mark.parametrize(
    ("name", "variance"),
    [("cosine", fixed_small), ("linear", fixed_large), ("rectified", fixed_small)],
)
def test_the_estimate_of_the_exact_denoiser_has_the_mean_of_all_terms(name, variance):
    levels = grids.trailing(Process(_SCHEDULES[name], PATHS["vp"]), 50)
    x0 = jnp.tile(jnp.array([[0.8, 0.3]]), (10_000, 1))
    settings = (_exact(_MIXTURE), x0, levels)
    full = _bound(jax.random.key(0), *settings, variance, GAUSSIAN)
    few = _estimate(jax.random.key(1), *settings, 8, variance, GAUSSIAN)
    errors = [_standard_error(each.total) for each in (full, few)]
    assert abs(few.total.mean() - full.total.mean()) < 3 * np.hypot(*errors)
    assert errors[1] < 1.5 * errors[0]  # most of the spread is the noise's, not the draw's


def test_examples_draw_their_steps_independently():
    """So the standard error over examples is the spread over keys."""
    levels = grids.trailing(Process(_SCHEDULES["cosine"], PATHS["vp"]), 50)
    x0 = jnp.tile(jnp.array([[0.8, 0.3]]), (20, 1))
    keys = jax.random.split(jax.random.key(0), 2000)
    run = lambda key: (
        likelihood.estimate_bound(key, _exact(_MIXTURE), x0, levels, 4, fixed_small, GAUSSIAN).total
    )
    total = jax.jit(jax.vmap(run))(keys)
    reported = np.sqrt(np.mean(np.var(total, axis=1, ddof=1)) / 20)
    assert_allclose(np.std(total.mean(1)), reported, rtol=0.1)


def test_standard_error():
    values = jnp.array([1.0, 2.0, 3.0, 6.0])
    assert_allclose(likelihood.standard_error(values), np.std(values, ddof=1) / 2, rtol=1e-6)


def test_one_network_call_a_level_and_no_new_program_for_new_levels():
    calls = []

    def denoise(x, level):
        jax.debug.callback(lambda: calls.append(1))
        return Prediction(x, x)

    bound = jax.jit(
        lambda key, x0, levels: likelihood.variational_bound(key, denoise, x0, levels).total
    )
    for end in (0.5, 0.3):
        bound(jax.random.key(0), jnp.zeros((2, 3)), _levels(6, end)).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == 12
    assert bound._cache_size() == 1
