import functools

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


H = 1e-6  # half the step of finite differences


@functools.cache
def _facts(name, bits):
    """Of one schedule in one precision, by one program: times and what is true there."""
    with jax.enable_x64(bits == 64):
        schedule = MAKE[name]()
        here = Process(schedule, process.vp)
        first = 1 / schedule.steps if schedule.steps else 0.0

        @jax.jit
        def facts(t, ends, between):
            log_snr = schedule.log_snr(t)
            return {
                "t": t,
                "log_snr": log_snr,
                "inverse": schedule.inverse(log_snr),
                "rate": schedules.elbo_rate(here, t),
                "ends": here.at(ends),
                "ends_inverse": schedule.inverse(schedule.log_snr(ends)),
                "slope": (schedule.log_snr(between + H) - schedule.log_snr(between - H)) / (2 * H),
                "slope_rate": schedules.elbo_rate(here, between),
            }

        t = np.linspace(first, 1, 101).astype(np.float32)  # the same numbers in either precision
        times = (jnp.asarray(v, f"float{bits}") for v in (t, [0.0, 1.0], t[5:-5:10] + 1.3e-5))
        return jax.tree.map(np.asarray, facts(*times)) | {"first": first}


def _inside(name):
    return slice(1, -1) if name in INFINITE_AT_1 else slice(None)


@pytest.mark.parametrize("name", MAKE)
def test_log_snr_falls_and_inverse_inverts_it(name):
    facts, inside = _facts(name, 64), _inside(name)
    assert (np.diff(facts["log_snr"]) < 0).all()
    assert_allclose(facts["inverse"][inside], facts["t"][inside], rtol=5e-8)  # t is of float32


@pytest.mark.parametrize("name", MAKE)
def test_float32_agrees_with_float64_to_the_ends(name):
    exact, single = _facts(name, 64), _facts(name, 32)
    assert single["log_snr"].dtype == np.float32
    # Relative where λ is large, absolute near its zero; the input's own rounding counts too.
    assert_allclose(single["log_snr"], exact["log_snr"], rtol=1e-4, atol=1e-4)
    assert_allclose(single["inverse"], exact["t"], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", MAKE)
def test_ends_are_finite_where_promised(name):
    facts = _facts(name, 32)
    finite = [name not in INFINITE_AT_0, name not in INFINITE_AT_1]
    assert_array_equal(np.isfinite(facts["ends"].log_snr), finite)
    assert np.isfinite(facts["ends"].alpha).all() and np.isfinite(facts["ends"].sigma).all()
    assert_allclose(facts["ends_inverse"], [facts["first"], 1], atol=1e-4)


@pytest.mark.parametrize("name", MAKE)
def test_the_rate_is_the_slope_of_log_snr_and_finite_to_the_ends(name):
    assert_allclose(_facts(name, 64)["slope_rate"], -_facts(name, 64)["slope"], rtol=1e-5)
    if name not in INFINITE_AT_0 | INFINITE_AT_1:
        rate = _facts(name, 32)["rate"]
        assert np.isfinite(rate).all()
        assert (rate > 0).all()


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
