import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.core import process, schedules
from diffusion_jax.core.process import Process

MAKE = {
    "linear": schedules.linear,
    "scaled_linear": schedules.scaled_linear,
    "cosine_table": schedules.cosine_table,
    "short_table": lambda: schedules.discrete([0.1, 0.2, 0.5]),
    "cosine": schedules.cosine,
    "cosine_shifted": lambda: schedules.cosine(shift=-2.0),
    "sigmoid": schedules.sigmoid,
    "sigmoid_tau": lambda: schedules.sigmoid(0.0, 3.0, 0.7),
    "laplace": schedules.laplace,
    "laplace_off_centre": lambda: schedules.laplace(mu=1.0, b=2.0),
    "edm": schedules.edm,
    "rectified_flow": schedules.rectified_flow,
    "shifted": lambda: schedules.shifted(schedules.rectified_flow(), 1.5),
    "zero_terminal": lambda: schedules.zero_terminal_snr(schedules.linear()),
    "zero_terminal_cosine": lambda: schedules.zero_terminal_snr(schedules.cosine()),
}
_rate = jax.jit(schedules.elbo_rate, static_argnums=0)

INFINITE_AT_0 = {"rectified_flow", "shifted"}
INFINITE_AT_1 = {"rectified_flow", "shifted", "zero_terminal", "zero_terminal_cosine"}


def _times(name):
    steps = MAKE[name]().steps
    first = 1 / steps if steps else 0.0
    return np.linspace(first, 1, 101)


def _interior(name):
    return _times(name)[1:-1] if name in INFINITE_AT_1 else _times(name)


@pytest.mark.parametrize("name", MAKE)
def test_log_snr_falls_and_inverse_inverts_it(x64, name):
    schedule, t = MAKE[name](), _interior(name)
    log_snr = jax.jit(schedule.log_snr)(jnp.asarray(t))
    assert (np.diff(log_snr) < 0).all()
    assert_allclose(jax.jit(schedule.inverse)(log_snr), t, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", MAKE)
def test_float32_agrees_with_float64_to_the_ends(name):
    t = _times(name).astype(np.float32)
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(MAKE[name]().log_snr)(jnp.asarray(t.astype(np.float64))))
    schedule = MAKE[name]()
    single = jax.jit(schedule.log_snr)(jnp.asarray(t))
    assert single.dtype == jnp.float32
    # Relative where λ is large, absolute near its zero; the input's own rounding counts too.
    assert_allclose(single, exact, rtol=1e-4, atol=1e-4)
    finite = np.isfinite(exact)
    assert_allclose(jax.jit(schedule.inverse)(single[finite]), t[finite], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", MAKE)
def test_ends_are_finite_where_promised(name):
    schedule = MAKE[name]()
    ends = jax.jit(schedule.log_snr)(jnp.array([0.0, 1.0]))
    assert_array_equal(np.isfinite(ends), [name not in INFINITE_AT_0, name not in INFINITE_AT_1])
    level = jax.jit(Process(schedule, process.vp).at)(jnp.array([0.0, 1.0]))
    assert np.isfinite(level.alpha).all() and np.isfinite(level.sigma).all()
    times = jax.jit(schedule.inverse)(ends)
    assert_allclose(times, [1 / schedule.steps if schedule.steps else 0, 1], atol=1e-4)


@pytest.mark.parametrize("name", MAKE)
def test_the_rate_is_the_slope_of_log_snr(x64, name):
    here, t = Process(MAKE[name](), process.vp), jnp.asarray(_times(name)[5:-5:10] + 1.3e-5)
    h = 1e-6
    slope = (jax.jit(here.schedule.log_snr)(t + h) - jax.jit(here.schedule.log_snr)(t - h)) / (
        2 * h
    )
    assert_allclose(_rate(here, t), -slope, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(set(MAKE) - INFINITE_AT_0 - INFINITE_AT_1))
def test_the_rate_is_finite_and_positive_to_the_ends_in_float32(name):
    rate = _rate(Process(MAKE[name](), process.vp), jnp.asarray(_times(name)))
    assert np.isfinite(rate).all()
    assert (np.asarray(rate) > 0).all()


def test_the_rate_of_a_table_is_its_step_to_the_level_before(x64):
    schedule = schedules.linear(1000)
    t = jnp.arange(1, 1001) / 1000
    log_snr = np.asarray(jax.jit(schedule.log_snr)(t))
    rate = _rate(Process(schedule, process.vp), t)
    assert_allclose(rate[1:], -np.diff(log_snr) * 1000, rtol=1e-9)
    assert_allclose(rate[0], rate[1])  # the first level has none before it


@pytest.mark.parametrize(
    "betas", [schedules.linear_betas(), schedules.scaled_linear_betas(), schedules.cosine_betas()]
)
def test_a_table_has_the_cumulative_products_of_its_betas(betas):
    bar = np.cumprod(1 - betas)
    t = np.arange(1, len(betas) + 1) / len(betas)
    with jax.enable_x64(True):
        level = jax.jit(Process(schedules.discrete(betas), process.vp).at)(jnp.asarray(t))
        assert_allclose(level.alpha**2, bar, rtol=1e-9)
        assert_allclose(level.sigma**2, 1 - bar, rtol=1e-9)
    level = jax.jit(Process(schedules.discrete(betas), process.vp).at)(jnp.asarray(t))
    assert_allclose(level.alpha, bar**0.5, rtol=1e-5)
    assert_allclose(level.sigma, (1 - bar) ** 0.5, rtol=1e-5)


def test_published_tables():
    linear, scaled, cosine = (
        f() for f in (schedules.linear_betas, schedules.scaled_linear_betas, schedules.cosine_betas)
    )
    assert_allclose([linear[0], linear[-1], len(linear)], [1e-4, 0.02, 1000])
    assert_allclose(np.diff(linear), np.diff(linear)[0])
    assert_allclose([scaled[0], scaled[-1], len(scaled)], [0.00085, 0.012, 1000])
    assert_allclose(np.diff(np.sqrt(scaled)), np.diff(np.sqrt(scaled))[0])
    f = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    assert_allclose(np.cumprod(1 - cosine)[499], f(0.5) / f(0), rtol=1e-9)
    assert cosine[-1] == 0.999
    assert (cosine[:-1] < 0.999).all()


@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_every_step_of_a_table_is_hit_exactly_in_float32(steps):
    betas = np.linspace(1e-4, 2e-2, steps)
    log_bar = np.cumsum(np.log1p(-betas))
    expected = (log_bar - np.log(-np.expm1(log_bar))).astype(np.float32)
    for t in (np.arange(1, steps + 1) / steps, np.linspace(1 / steps, 1, steps)):
        got = jax.jit(schedules.discrete(betas).log_snr)(jnp.asarray(t, jnp.float32))
        assert_array_equal(got, expected)


def test_a_table_is_linear_between_steps_and_constant_below_the_first(x64):
    schedule = schedules.discrete([0.1, 0.2, 0.5])
    a, b, c = jax.jit(schedule.log_snr)(jnp.array([1 / 3, 2 / 3, 1.0]))
    got = jax.jit(schedule.log_snr)(jnp.array([0.0, 0.2, 0.5, 2 / 3 + 0.1 / 3]))
    assert_allclose(got, [a, a, (a + b) / 2, 0.9 * b + 0.1 * c], rtol=1e-12)


def test_a_table_may_end_without_signal():
    here = Process(schedules.discrete([0.1, 0.5, 1.0]), process.vp)
    level = jax.jit(here.at)(jnp.array([1 / 3, 2 / 3, 0.9, 1.0]))
    assert_allclose(level.alpha**2, [0.9, 0.45, 0, 0], rtol=1e-6)
    assert_allclose(
        jax.jit(here.schedule.inverse)(level.log_snr[jnp.array([0, 1, 3])]), [1 / 3, 2 / 3, 1]
    )


@pytest.mark.parametrize(
    ("betas", "says"),
    [
        ([0.1, 0.0, 0.2], r"betas\[1\] = 0 "),
        ([0.1, 1.0, 0.2], r"betas\[1\] = 1 "),
        ([0.1, 1.5], r"betas\[1\] = 1.5 "),
        ([0.1, float("nan"), 0.2], r"betas\[1\] = nan "),
        ([], "at least one"),
        (np.array([[0.1]]), "list"),
    ],
)
def test_a_bad_table_is_named(betas, says):
    with pytest.raises(ValueError, match=says):
        schedules.discrete(betas)


def test_cosine_is_the_squared_cosine(x64):
    t = jnp.linspace(0.05, 0.95, 7)
    got = jax.jit(Process(schedules.cosine(low=-40.0, high=40.0), process.vp).at)(t)
    assert_allclose(got.alpha, np.cos(np.pi / 2 * t), rtol=1e-6)
    ends = jax.jit(schedules.cosine(shift=-2.0, low=-10.0, high=12.0).log_snr)(
        jnp.array([0.0, 1.0])
    )
    assert_allclose(ends, [10, -12], rtol=1e-9)


def test_sigmoid_is_the_papers_alpha_bar(x64):
    start, end, tau = -3.0, 3.0, 0.9
    logistic = lambda u: 1 / (1 + np.exp(-u))
    schedule = schedules.sigmoid(start, end, tau)
    t = np.linspace(0.01, 0.99, 9)
    v = start + (end - start) * t
    bar = (logistic(end / tau) - logistic(v / tau)) / (logistic(end / tau) - logistic(start / tau))
    # The schedule covers the part of [start, end] where λ is within ±15, nearly all of it.
    log_snr = np.log(bar / (1 - bar))
    assert_allclose(jax.jit(schedule.log_snr)(jnp.asarray(t)), log_snr, rtol=1e-4, atol=1e-12)
    assert_allclose(jax.jit(schedule.log_snr)(jnp.array([0.0, 1.0])), [15, -15], rtol=1e-6)


def test_laplace_quantiles(x64):
    mu, b = 0.4, 0.5
    schedule = schedules.laplace(mu, b, low=-30.0, high=30.0)
    log_snr = np.array([-1.0, 0.1, 0.4, 0.7, 2.0])
    above = np.where(
        log_snr > mu, np.exp(-(log_snr - mu) / b) / 2, 1 - np.exp((log_snr - mu) / b) / 2
    )  # P(λ > log_snr)
    assert_allclose(jax.jit(schedule.inverse)(jnp.asarray(log_snr)), above, rtol=1e-9)
    ends = jax.jit(schedules.laplace(mu, b).log_snr)(jnp.array([0.0, 1.0]))
    assert_allclose(ends, [15, -15], rtol=1e-6)


def test_edm_sigmas():
    n, rho = 18, 7
    i = np.arange(n)
    paper = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    got = jax.jit(Process(schedules.edm(), process.ve).at)(jnp.asarray(1 - i / (n - 1)))
    assert_allclose(got.sigma, paper, rtol=2e-5)
    assert_array_equal(got.alpha, 1)


def test_rectified_flow_is_a_straight_line():
    t = jnp.linspace(0, 1, 11)
    level = jax.jit(Process(schedules.rectified_flow(), process.rectified).at)(t)
    assert_allclose(level.alpha, 1 - t, atol=1e-6)
    assert_allclose(level.sigma, t, atol=1e-6)


def test_shift_of_rectified_flow_is_the_flow_matching_time_shift(x64):
    t, m = jnp.linspace(0.1, 0.9, 5), 3.0
    shifted = schedules.shifted(schedules.rectified_flow(), -2 * np.log(m))
    level = jax.jit(Process(shifted, process.rectified).at)(t)
    assert_allclose(level.sigma, m * t / (1 + (m - 1) * t), rtol=1e-12)


def test_zero_terminal_snr_is_algorithm_1():
    betas = schedules.linear_betas()
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    t = np.arange(1, 1001) / 1000
    with jax.enable_x64(True):
        schedule = schedules.zero_terminal_snr(schedules.linear())
        level = jax.jit(Process(schedule, process.vp).at)(jnp.asarray(t))
        assert_allclose(level.alpha, root, rtol=1e-9, atol=1e-15)
    schedule = schedules.zero_terminal_snr(schedules.linear())
    assert schedule.steps == 1000
    for at in (Process(schedule, process.vp).at, jax.jit(Process(schedule, process.vp).at)):
        level = at(jnp.asarray(t))
        assert level.alpha[-1] == 0
        assert level.sigma[-1] == 1
        assert_allclose(level.alpha, root, rtol=1e-3, atol=1e-7)
        assert_allclose(level.sigma, np.sqrt(1 - root**2), rtol=1e-5)
        assert_allclose(
            level.log_snr[0], jax.jit(schedules.linear().log_snr)(jnp.asarray(t))[0], rtol=1e-6
        )


def test_every_schedule_of_the_table_is_made_by_its_defaults():
    for name, make in schedules.SCHEDULES.items():
        schedule = make([0.1, 0.2]) if name == "discrete" else make()
        assert np.isfinite(jax.jit(schedule.log_snr)(jnp.array([0.5]))).all(), name
