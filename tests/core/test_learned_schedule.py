"""The learned schedule: monotone, invertible, and trained for the variance of the bound."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import continuous_bound, learned_schedule, oracles
from diffusion_jax.core.process import PATHS, Process, Schedule
from diffusion_jax.core.types import NoiseLevel

LOW, HIGH = -10.0, 8.0
LEARNED = learned_schedule.learned(LOW, HIGH, width=16)


def _bent():
    """Parameters far from the first."""
    params = LEARNED.init()
    noise = lambda path, x: (
        x + 1.5 * jax.random.normal(jax.random.key(len(str(path))), jnp.shape(x))
    )
    return {**params, "interior": jax.tree_util.tree_map_with_path(noise, params["interior"])}


def test_before_training_it_is_almost_linear():
    t = jnp.linspace(0.0, 1.0, 21)
    log_snr = jax.jit(lambda t: LEARNED.schedule(LEARNED.init()).log_snr(t))(t)
    assert_allclose(log_snr, HIGH + (LOW - HIGH) * t, atol=0.5)
    assert_allclose(log_snr[jnp.array([0, -1])], [HIGH, LOW], rtol=1e-6)


@pytest.mark.parametrize("make", [LEARNED.init, _bent])
def test_it_falls_and_its_inverse_is_one(x64, make):
    schedule = LEARNED.schedule(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), make()))
    t = jnp.linspace(0.0, 1.0, 101)
    log_snr = jax.jit(schedule.log_snr)(t)
    assert (jnp.diff(log_snr) < 0).all()
    assert_allclose(jax.jit(schedule.inverse)(log_snr), t, atol=1e-8)
    assert_allclose(schedule.inverse(jnp.array([99.0, -99.0])), [0.0, 1.0])
    of_t = jax.vmap(jax.grad(schedule.log_snr))(t[1:-1])
    of_log_snr = jax.vmap(jax.grad(schedule.inverse))(log_snr[1:-1])
    assert_allclose(of_t * of_log_snr, 1.0, rtol=1e-6)


def test_the_inverse_has_the_derivatives_of_the_implicit_function(x64):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), _bent())
    at = lambda params: LEARNED.schedule(params).inverse(jnp.asarray(1.0))
    direction = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
    move = lambda h: jax.tree.map(lambda x, d: x + h * d, params, direction)
    slope = jax.jvp(at, (params,), (direction,))[1]
    assert_allclose(slope, (at(move(1e-5)) - at(move(-1e-5))) / 2e-5, rtol=1e-6)


def test_the_split_gradient_is_that_of_the_mean_and_of_the_square(x64):
    """Against autodiff of both objectives, each by its own pass."""
    x = jnp.linspace(0.1, 2.0, 7)
    losses = lambda a, rows: (a * x * rows[0]) ** 2 + jnp.exp(rows[1] * x)
    rows = lambda p: (jnp.sin(p * x), p**2 * x)
    a, p = jnp.asarray(0.7), jnp.asarray(0.4)
    split = learned_schedule.with_variance_gradient(losses)

    def objective(a, p, q):
        return jnp.mean(split(a, rows(p), rows(q)))

    assert_allclose(objective(a, p, p), losses(a, rows(p)).mean(), rtol=1e-12)
    of_a, of_p, of_q = jax.grad(objective, (0, 1, 2))(a, p, p)
    mean, square = (
        lambda a, p, power=power: jnp.mean(losses(a, rows(p)) ** power) for power in (1, 2)
    )
    assert_allclose((of_a, of_p), jax.grad(mean, (0, 1))(a, p), rtol=1e-10)
    assert_allclose(of_q, jax.grad(square, 1)(a, p) / (2 * mean(a, p)), rtol=1e-10)


def test_the_network_runs_once_forward_and_once_backward():
    calls = []

    @jax.custom_vjp
    def network(x):
        calls.append("forward")
        return x

    def forward(x):
        jax.debug.callback(lambda: calls.append("forward"))
        return x, ()

    def backward(_, g):
        jax.debug.callback(lambda: calls.append("backward"))
        return (g,)

    network.defvjp(forward, backward)
    split = learned_schedule.with_variance_gradient(lambda a, rows: (a * network(rows)) ** 2)
    of = jax.jit(jax.grad(lambda p: jnp.mean(split(p, p * jnp.ones(3), p * jnp.ones(3)))))
    of(1.0).block_until_ready()
    calls.clear()
    of(2.0).block_until_ready()
    jax.effects_barrier()
    assert sorted(calls) == ["backward", "forward"]


DATA = oracles.mixture([1, 2], [[-1.0, 0.5], [1.0, 0.0]], [0.1, 0.3])
_denoise = lambda x, level: oracles.predict(DATA, x, level)


def _draw_of_the_bound(params, key, n=512):
    """One draw of the diffusion term for each of n examples, with the split gradients."""
    of_x, of_t, of_eps = jax.random.split(key, 3)
    x0, t = oracles.sample(of_x, DATA, n), jax.random.uniform(of_t, (n,))
    eps = jax.random.normal(of_eps, x0.shape)

    def losses(_, rows):
        log_snr, slope = rows
        level = NoiseLevel(t, log_snr, *PATHS["vp"](log_snr))
        return continuous_bound.diffusion_term(_denoise, x0, eps, level, -slope)

    rows = lambda p: jax.jvp(LEARNED.schedule(p).log_snr, (t,), (jnp.ones_like(t),))
    ends, interior = map(rows, learned_schedule.split(params))
    return learned_schedule.with_variance_gradient(losses)((), ends, interior)


def test_training_the_interior_lowers_the_variance_and_leaves_the_bound_as_it_is():
    tx = optax.adam(2e-2)

    def step(state, key):
        params, moments = state
        gradient = jax.grad(lambda p: jnp.mean(_draw_of_the_bound(p, key)))(params)
        gradient = {**gradient, "ends": jax.tree.map(jnp.zeros_like, gradient["ends"])}
        updates, moments = tx.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), None

    params, keys = LEARNED.init(), jax.random.split(jax.random.key(0), 400)
    trained = jax.jit(lambda s: jax.lax.scan(step, s, keys))((params, tx.init(params)))[0][0]

    # n = 40,000 draws of one t each, by the estimator itself, over the data.
    x0 = oracles.sample(jax.random.key(1), DATA, 40_000)

    def steps(params):
        process = Process(schedule_of(params), PATHS["vp"])
        return continuous_bound.continuous_bound(
            jax.random.key(2),
            _denoise,
            x0,
            process,
            1,
            continuous_bound.gaussian_direct(),
            continuous_bound.uniform,
            continuous_bound.by_schedule,
        ).steps[0]

    linear = Schedule(lambda t: HIGH + (LOW - HIGH) * t, lambda lam: (HIGH - lam) / (HIGH - LOW))
    schedule_of = lambda params: linear if params is None else LEARNED.schedule(params)
    before, after = (np.asarray(jax.jit(steps)(each), np.float64) for each in (None, trained))
    error = np.sqrt((before.var() + after.var()) / len(before))
    assert abs(before.mean() - after.mean()) < 4 * error
    assert after.var() < 0.5 * before.var()


def test_wrong_arguments_are_sentences():
    with pytest.raises(ValueError, match="low must be below high"):
        learned_schedule.learned(3.0, 3.0)
    with pytest.raises(ValueError, match="at least 1 unit"):
        learned_schedule.learned(width=0)
