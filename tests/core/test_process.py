import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.core import process, schedules
from diffusion_jax.core.process import PATHS, Process, corrupt, posterior, step_forward, transition
from diffusion_jax.core.types import NoiseLevel

LOG_SNR = np.linspace(-14.0, 14.0, 29)


step_forward, transition, posterior = (jax.jit(f) for f in (step_forward, transition, posterior))
_paths = {name: jax.jit(path) for name, path in PATHS.items()}


def _level(log_snr, path="vp"):
    log_snr = jnp.asarray(np.asarray(log_snr), jnp.result_type(float))
    return NoiseLevel(log_snr, log_snr, *_paths[path](log_snr))


@pytest.mark.parametrize(
    ("x", "beta", "eps", "expected"), [(0.8, 0.1, -0.3, 0.664), (0.5, 0.04, 1.5, 0.790)]
)
def test_worked_steps(x, beta, eps, expected):
    got = step_forward(jnp.array([x]), jnp.array([eps]), jnp.asarray(beta))
    assert_allclose(got, [expected], atol=5e-4)


def test_step_forward_takes_a_beta_per_example_and_any_rank():
    x, eps = jnp.ones((2, 3, 4, 1)), 2 * jnp.ones((2, 3, 4, 1))
    got = step_forward(x, eps, jnp.array([0.0, 1.0]))
    assert_array_equal(got[0], x[0])
    assert_array_equal(got[1], eps[1])


def test_unit_variance_stays_unit_along_the_chain(x64):
    # Var x_t = (coefficient of x)² Var x_{t-1} + (coefficient of eps)², read off by linearity.
    one, zero = jnp.ones(1), jnp.zeros(1)
    variance = 1.0
    for beta in schedules.linear_betas(50, 1e-4, 0.3):
        beta = jnp.asarray(beta)
        shrink, bump = (float(step_forward(*x, beta)[0]) for x in ((one, zero), (zero, one)))
        variance = shrink**2 * variance + bump**2
        assert_allclose(variance, 1, rtol=1e-13)


def test_the_chain_of_single_steps_has_the_mean_and_variance_of_the_closed_form(x64):
    betas = schedules.linear_betas(50, 1e-4, 0.3)
    level = jax.jit(Process(schedules.discrete(betas), process.vp).at)(jnp.arange(1, 51) / 50)
    mean, variance = jnp.ones(1), 0.0
    one, zero = jnp.ones(1), jnp.zeros(1)
    for i, beta in enumerate(betas):
        beta = jnp.asarray(beta)
        shrink, bump = (float(step_forward(*x, beta)[0]) for x in ((one, zero), (zero, one)))
        mean, variance = step_forward(mean, zero, beta), shrink**2 * variance + bump**2
        assert_allclose(np.asarray(mean)[0], np.asarray(level.alpha)[i], rtol=1e-12)
        assert_allclose(variance, np.asarray(level.sigma)[i] ** 2, rtol=1e-12)


def test_the_chain_of_single_steps_is_distributed_as_the_closed_form():
    n, betas = 20_000, schedules.linear_betas(20, 0.01, 0.3)
    level = jax.jit(Process(schedules.discrete(betas), process.vp).at)(jnp.asarray(1.0))
    key = jax.random.key(0)

    def body(x, inputs):
        beta, key = inputs
        return step_forward(x, jax.random.normal(key, x.shape), beta), None

    x, _ = jax.lax.scan(
        body, jnp.full(n, 1.7), (jnp.asarray(betas, jnp.float32), jax.random.split(key, 20))
    )
    direct = corrupt(jnp.full(n, 1.7), jax.random.normal(key, (n,)), level)
    for sample in (x, direct):
        mean, std = 1.7 * float(level.alpha), float(level.sigma)
        assert abs(sample.mean() - mean) < 4 * std / n**0.5
        assert abs(sample.std() - std) < 4 * std / (2 * n) ** 0.5
        inside = np.mean(np.abs(sample - mean) < std)  # 68.27% of a Gaussian
        assert abs(inside - 0.6827) < 4 * (0.6827 * 0.3173 / n) ** 0.5


@pytest.mark.parametrize("path", PATHS)
def test_every_path_has_its_log_snr_and_its_constraint(x64, path):
    level = _level(LOG_SNR, path)
    assert_allclose(
        2 * np.log(np.asarray(level.alpha) / np.asarray(level.sigma)),
        LOG_SNR,
        rtol=1e-10,
        atol=1e-10,
    )
    alpha, sigma = np.asarray(level.alpha), np.asarray(level.sigma)
    constraint = {
        "vp": alpha**2 + sigma**2,
        "ve": alpha,
        "rectified": alpha + sigma,
        "subvp": alpha**2 + sigma,
    }[path]
    assert_allclose(constraint, 1, rtol=1e-13)


@pytest.mark.parametrize("path", PATHS)
def test_paths_in_float32_match_float64_and_are_finite_at_the_ends(path):
    log_snr = np.linspace(-40, 40, 81)
    with jax.enable_x64(True):
        exact = _level(log_snr, path)
    single = _level(log_snr, path)
    assert single.alpha.dtype == single.sigma.dtype == jnp.float32
    assert_allclose(single.alpha, exact.alpha, rtol=3e-6)
    assert_allclose(single.sigma, exact.sigma, rtol=3e-6)
    if path != "ve":  # without a bound on sigma, infinite noise is infinite
        ends = _level([-np.inf, np.inf], path)
        assert_array_equal(ends.alpha, [0, 1])
        assert_array_equal(ends.sigma, [1, 0])


@pytest.mark.parametrize("path", PATHS)
def test_transition_composes_to_the_closed_form(x64, path):
    # q(x_t | x_s) after q(x_s | x0) is q(x_t | x0): alpha_ts² sigma_s² + forward = sigma_t².
    now, nxt = _level([-3.0, -1.0, 2.0], path), _level([-1.0, 4.0, 2.5], path)
    c = transition(now, nxt)
    alpha_ts = np.asarray(now.alpha) / np.asarray(nxt.alpha)
    got = alpha_ts**2 * np.asarray(nxt.sigma) ** 2 + np.asarray(c.forward_variance)
    assert_allclose(got, np.asarray(now.sigma) ** 2, rtol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_posterior_is_gaussian_conditioning(x64, path):
    """Against conditioning the joint Gaussian of (x_s, x_t) given x0 by linear algebra."""
    now, nxt = _level(-1.3, path), _level(0.9, path)
    a, s, b, r = (float(v) for v in (now.alpha, now.sigma, nxt.alpha, nxt.sigma))
    a_ts = a / b
    forward = s**2 - a_ts**2 * r**2
    cov = np.array([[r**2, a_ts * r**2], [a_ts * r**2, a_ts**2 * r**2 + forward]])
    x0, x = 0.7, -0.4
    gain = cov[0, 1] / cov[1, 1]
    mean, variance = posterior(jnp.array([x]), jnp.array([x0]), now, nxt)
    assert_allclose(mean, [b * x0 + gain * (x - a * x0)], rtol=1e-12)
    assert_allclose(variance, cov[0, 0] - gain * cov[1, 0], rtol=1e-12)


def test_posterior_is_bayes_rule_on_a_grid(x64):
    now, nxt = _level(-1.3), _level(0.9)
    x0, x = 0.7, -0.4
    xs = np.linspace(-6, 6, 20_001)
    a_ts = float(now.alpha / nxt.alpha)
    forward = float(now.sigma) ** 2 - (a_ts * float(nxt.sigma)) ** 2
    log_p = -((xs - float(nxt.alpha) * x0) ** 2) / (2 * float(nxt.sigma) ** 2)
    log_p -= (x - a_ts * xs) ** 2 / (2 * forward)
    p = np.exp(log_p) / np.exp(log_p).sum()
    mean, variance = posterior(jnp.array([x]), jnp.array([x0]), now, nxt)
    assert_allclose(mean[0], (p * xs).sum(), rtol=1e-8)
    assert_allclose(variance, (p * (xs - mean[0]) ** 2).sum(), rtol=1e-8)


def test_posterior_has_the_coefficients_of_the_ddpm_paper(x64):
    betas = schedules.linear_betas(10, 0.01, 0.4)
    bar = np.cumprod(1 - betas)
    levels = jax.jit(Process(schedules.discrete(betas), process.vp).at)(jnp.arange(1, 11) / 10)
    levels = jax.tree.map(np.asarray, levels)
    at = lambda i: jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), levels)
    for i in range(1, 10):
        c = transition(at(i), at(i - 1))
        small = betas[i] * (1 - bar[i - 1]) / (1 - bar[i])
        assert_allclose(c.forward_variance, betas[i], rtol=1e-10)
        assert_allclose(c.variance, small, rtol=1e-10)
        assert_allclose(c.of_x0, np.sqrt(bar[i - 1]) * betas[i] / (1 - bar[i]), rtol=1e-10)
        assert_allclose(c.of_x, np.sqrt(1 - betas[i]) * (1 - bar[i - 1]) / (1 - bar[i]), rtol=1e-10)


def test_transition_keeps_its_digits_between_close_levels_in_float32():
    nxt = np.array([-12.0, 0.0, 12.0])
    now = np.asarray(nxt - 1e-3, np.float32).astype(np.float64)
    with jax.enable_x64(True):
        exact = transition(_level(now), _level(nxt))
    single = transition(_level(now), _level(nxt))
    for name in exact._fields:
        assert_allclose(getattr(single, name), getattr(exact, name), rtol=2e-6)


def test_transition_at_the_ends_of_time():
    middle, noise = _level(0.5), _level(-np.inf)
    from_noise = transition(noise, middle)  # q(x_s | x0)
    assert_allclose(from_noise.of_x, 0)
    assert_allclose(from_noise.of_x0, middle.alpha)
    assert_allclose(from_noise.variance, middle.sigma**2)
    clean = process.clean(middle)
    to_clean = transition(middle, clean)  # x0 itself
    assert (to_clean.of_x, to_clean.of_x0, to_clean.variance) == (0, 1, 0)
    assert_allclose(to_clean.forward_variance, middle.sigma**2, rtol=1e-6)
    for end in (clean, noise):
        still = transition(end, end)
        assert (still.of_x, still.of_x0, still.variance, still.forward_variance) == (1, 0, 0, 0)


def test_corrupt_takes_a_level_per_example_and_any_rank():
    level = _level([0.0, -np.inf])
    x0, eps = jnp.full((2, 3, 2, 1), 3.0), jnp.full((2, 3, 2, 1), 5.0)
    got = corrupt(x0, eps, level)
    assert got.shape == x0.shape
    assert_allclose(got[0], (3 + 5) / np.sqrt(2), rtol=1e-6)
    assert_array_equal(got[1], eps[1])
    embedding = corrupt(x0[:, 0, 0], eps[:, 0, 0], _level(0.0))
    assert_allclose(embedding, (3 + 5) / np.sqrt(2), rtol=1e-6)


def test_quantise_goes_to_the_next_level_of_a_table():
    table = Process(schedules.linear(10), process.vp)
    t = jnp.array([0.0, 1e-6, 0.1, 0.1001, 0.55, 0.99, 1.0])
    assert_allclose(table.quantise(t), [0.1, 0.1, 0.1, 0.2, 0.6, 1.0, 1.0], rtol=1e-6)
    assert_array_equal(Process(schedules.cosine(), process.vp).quantise(t), t)


def test_quantise_draws_each_level_equally_often():
    table = Process(schedules.linear(1000), process.vp)
    t = (jnp.arange(20_000) + 0.5) / 20_000
    index = np.rint(np.asarray(table.quantise(t)) * 1000).astype(int)
    assert_array_equal(np.bincount(index, minlength=1001)[1:], 20)


def test_at_and_at_log_snr_agree_and_give_float32():
    here = Process(schedules.cosine(), process.subvp)
    level = here.at(jnp.array([0.1, 0.6]))
    back = here.at_log_snr(level.log_snr)
    for a, b in zip(level, back, strict=True):
        assert a.dtype == jnp.float32
        assert_allclose(a, b, rtol=1e-5)
