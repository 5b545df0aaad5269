"""What must hold of every solver: any trip, any shape, from pure noise, and one compilation."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import flow_maps, grids, oracles, sampling, schedules
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers import SOLVERS, noising
from diffusion_jax.core.types import NoiseLevel, Prediction

LONGEST = 8
STOCHASTIC = {
    "ddpm", "euler_ancestral", "edm", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde",
    "dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver", "er_sde", "langevin", "consistency",
}  # fmt: skip
# Steps of these need sigma and alpha that are not 0 at both of their ends.
NOT_FROM_PURE_NOISE = {"edict"}


def _process(schedule=None, path="vp"):
    return Process(schedule or schedules.cosine(), PATHS[path])


def _data():
    return oracles.mixture([1, 2], [[-0.8, 0.3], [0.6, -0.4]], [0.5, 0.4])


@flow_maps.to_clean
def _denoise(x, level):
    return oracles.predict(_data(), x, level)


def _solver(name, process, **arguments):
    parameters = inspect.signature(SOLVERS[name]).parameters
    if "process" in parameters:
        arguments["process"] = process
    if "steps" in parameters:
        arguments["steps"] = LONGEST
    return SOLVERS[name](**arguments)


@functools.lru_cache
def _runner(name):
    """(key, x, levels) -> sample, for up to LONGEST levels: one program."""
    solver = noising.skipping(_solver(name, _process()))
    return jax.jit(lambda key, x, levels: sampling.sample(key, solver, _denoise, x, levels))


def _levels(*log_snr):
    levels = jax.jit(lambda: _process().at_log_snr(jnp.array(log_snr)))()
    return grids.pad(levels, LONGEST)


def _noise(*shape):
    return jax.random.normal(jax.random.key(7), shape)


@pytest.mark.parametrize("name", SOLVERS)
def test_any_trip_in_one_program(name):
    """Zero and one step, start in the middle, and (for solvers of the ODE) up and down again."""
    run, x, key = _runner(name), _noise(3, 2), jax.random.key(0)
    zero = run(key, x, _levels(-2.0))
    if name != "edm":  # whose last step, too, adds noise
        assert_allclose(zero, _denoise(x, _process().at_log_snr(-2.0)).x0, rtol=1e-4, atol=1e-5)
    trips = [(-2.0, 1.0), (-6.0, -2.0, 0.0, 3.0, 6.0), (0.5, 2.0, 7.0)]
    if name not in NOT_FROM_PURE_NOISE:  # alpha = 0: a first step of the first order
        trips.append((-np.inf, -2.0, 0.0, 2.0, 5.0))
    for trip in trips:
        sample = run(key, x, _levels(*trip))
        assert sample.shape == x.shape and np.isfinite(sample).all()
        assert np.abs(sample).max() < 8
    around = run(key, x, _levels(0.0, 2.0, 0.0, -1.0, 3.0))
    assert np.isfinite(around).all()
    assert run._cache_size() == 1
    beside = jnp.concatenate([x[:1], 1.5 - x[1:]])  # an example depends on no other
    near = 1e-3 if name == "adaptive" else 1e-6  # whose steps are those of the hardest
    assert_allclose(run(key, beside, _levels(*trip))[0], sample[0], rtol=near, atol=near)
    other = run(jax.random.key(1), x, _levels(-2.0, 1.0))
    differs = np.abs(other - run(key, x, _levels(-2.0, 1.0))).max() > 1e-4
    assert differs == (name in STOCHASTIC)


@pytest.mark.parametrize("name", ["dpmpp_sde", "unipc", "heun", "dpm_2_ancestral", "langevin"])
@pytest.mark.parametrize("path", ["rectified", "subvp"])
def test_sampling_starts_from_zero_terminal_snr(name, path):
    schedule = schedules.zero_terminal_snr(schedules.linear())
    process = _process(schedule, path)
    levels = jax.jit(lambda: grids.trailing(process, 5))()
    assert levels.alpha[0] == 0
    solver = _solver(name, process)
    sample = jax.jit(lambda key, x: sampling.sample(key, solver, _denoise, x, levels))(
        jax.random.key(0), _noise(6, 2)
    )
    assert np.isfinite(sample).all()
    assert np.abs(sample).max() < 8


@pytest.mark.parametrize("shape", [(1,), (1, 2, 2, 2, 1)])
def test_data_of_any_rank_and_a_batch_of_one(shape):
    """A solver acts on every number alike: the rank of the data is nothing to it."""
    flat = lambda x, level: Prediction(jnp.tanh(x) * level.alpha, jnp.tanh(x) * level.sigma)
    levels = jax.jit(lambda: grids.karras(_process(), 6))()
    for name in ("unipc", "pndm", "dpmpp_2s_ancestral", "adaptive"):
        solver = _solver(name, _process())
        run = jax.jit(lambda x, s=solver: sampling.sample(jax.random.key(0), s, flat, x, levels))
        out = run(_noise(*shape))
        assert out.shape == shape
        if name in ("unipc", "pndm"):
            assert_allclose(out.ravel(), run(_noise(*shape).reshape(1, -1)).ravel(), rtol=1e-5)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc", "heun", "pndm"])
def test_low_precision_states_stay_low_and_close(name):
    levels = jax.jit(lambda: grids.karras(_process(), 8, s_max=20.0))()
    solver = _solver(name, _process())
    run = jax.jit(lambda x: sampling.sample(jax.random.key(0), solver, _denoise, x, levels))
    x = levels.sigma[0] * _noise(4, 2)
    low, _ = jax.jit(lambda x: sampling.walk(jax.random.key(0), solver, _denoise, x, levels))(
        x.astype(jnp.bfloat16)
    )
    assert low.dtype == jnp.bfloat16
    if name not in STOCHASTIC:
        assert_allclose(low.astype(float), run(x), atol=0.1)


@pytest.mark.parametrize(
    ("name", "parameter", "values"),
    [
        ("ddim", "eta", (0.0, 0.5, 1.0)),
        ("dpmpp_2m_sde", "eta", (0.0, 0.5, 1.0)),
        ("sa_solver", "tau", (0.0, 0.5, 1.0)),
        ("edm", "s_churn", (0.0, 10.0, 40.0)),
        ("edict", "mixing", (0.1, 0.2, 0.28)),
    ],
)
def test_new_parameters_compile_nothing_and_vectorise(name, parameter, values):
    process = _process()
    levels = jax.jit(lambda: process.at_log_snr(jnp.linspace(-6.0, 6.0, 6)))()

    def run(value, key):
        solver = _solver(name, process, **{parameter: value})
        return sampling.sample(key, solver, _denoise, _noise(3, 2), levels)

    once = jax.jit(run)
    each = [once(jnp.asarray(value), jax.random.key(0)) for value in values]
    once(jnp.asarray(0.7), jax.random.key(4))
    assert once._cache_size() == 1
    assert np.abs(each[0] - each[-1]).max() > 1e-3
    many = jax.jit(jax.vmap(run, (0, None)))(jnp.array(values), jax.random.key(0))
    assert_allclose(many, np.stack(each), rtol=2e-4, atol=2e-5)
    seeds = jax.vmap(lambda key: run(jnp.asarray(values[1]), key))(
        jax.random.split(jax.random.key(0), 3)
    )
    assert np.isfinite(seeds).all()


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc", "heun", "adaptive", "er_sde"])
def test_gradients_flow_through_the_whole_sampler(x64, name):
    """d sample / d x_T by autodiff is what a small change of x_T does."""
    process = _process()
    levels = jax.jit(lambda: process.at_log_snr(jnp.linspace(-3.0, 3.0, 6)))()
    solver = _solver(name, process, **({"rtol": 1e-7, "atol": 1e-7} if name == "adaptive" else {}))
    run = jax.jit(lambda x: sampling.sample(jax.random.key(0), solver, _denoise, x, levels)[0, 0])
    x, direction = jnp.array([[0.3, -0.6]]), jnp.array([[1.0, 0.4]])
    slope = (run(x + 1e-4 * direction) - run(x - 1e-4 * direction)) / 2e-4
    assert_allclose(jnp.sum(jax.grad(run)(x) * direction), slope, rtol=1e-4)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "heun"])
def test_steps_between_equal_levels_change_nothing(name):
    """So padding is skipped work, not other results."""
    process = _process()
    run = lambda solver, levels: jax.jit(
        lambda x: sampling.sample(jax.random.key(0), solver, _denoise, x, levels)
    )(_noise(3, 2))
    levels = jax.jit(lambda: grids.trailing(process, 5))()
    solver = _solver(name, process)
    padded = run(noising.skipping(solver), grids.pad(levels, 9))
    assert_allclose(padded, run(solver, levels), rtol=1e-5, atol=1e-6)


def test_skipped_steps_call_no_network():
    calls = []

    def denoise(x, level):
        jax.debug.callback(lambda t: calls.append(float(t)), level.t)
        return Prediction(jnp.tanh(x), x)

    levels = grids.pad(jax.jit(lambda: grids.trailing(_process(), 3))(), 20)
    solver = noising.skipping(_solver("ddim", _process()))
    jax.jit(lambda x: sampling.sample(jax.random.key(0), solver, denoise, x, levels))(_noise(1, 1))
    jax.effects_barrier()
    assert len(calls) == 3


def test_noise_of_a_padded_run_is_that_of_the_plain_one():
    """Keys do not depend on the length of the grid."""
    levels = jax.jit(lambda: grids.trailing(_process(), 5))()
    solver = _solver("ddpm", _process())
    run = lambda solver, levels: jax.jit(
        lambda x: sampling.sample(jax.random.key(0), solver, _denoise, x, levels)
    )(_noise(3, 2))
    padded = run(noising.skipping(solver), grids.pad(levels, 11))
    assert_allclose(padded, run(solver, levels), rtol=1e-5, atol=1e-6)


def test_adaptive_solver_meets_its_tolerance(x64):
    process = _process()
    levels = jax.jit(lambda: process.at_log_snr(jnp.array([-4.0, 4.0])))()
    first, last = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in (0, -1))
    x = _noise(5, 2).astype(jnp.float64)
    exact = oracles.flow_map_numeric(_data(), x, first, last, 2048)
    for method, tolerance in (("tsit5", 1e-4), ("tsit5", 1e-8), ("dopri5", 1e-8), ("heun", 1e-4)):
        solver = _solver("adaptive", process, method=method, rtol=tolerance, atol=tolerance)
        run = jax.jit(lambda x, s=solver: sampling.walk(jax.random.key(0), s, _denoise, x, levels))
        assert np.abs(run(x)[0] - exact).max() < 20 * tolerance


def test_a_trajectory_keeps_chosen_points_and_ends_at_the_sample():
    levels = jax.jit(lambda: grids.trailing(_process(), 7))()
    solver, x, key = _solver("dpmpp_2m", _process()), _noise(3, 2), jax.random.key(1)
    full = sampling.trajectory(key, solver, _denoise, x, levels)
    some = sampling.trajectory(key, solver, _denoise, x, levels, (0, 3, 6))
    for whole, part in zip(full, some, strict=True):
        assert_allclose(part, whole[np.array([0, 3, 6])], rtol=1e-6)
    assert_allclose(some[1][-1], sampling.sample(key, solver, _denoise, x, levels), rtol=1e-5)


def test_ddim_inversion_comes_back_at_the_order_of_the_solver(x64):
    process = _process()

    def gap(name, n):
        levels = jax.jit(lambda: process.at_log_snr(jnp.linspace(-3.0, 4.0, n)))()
        solver, key = _solver(name, process), jax.random.key(0)

        @jax.jit
        def there_and_back(x):
            noise, _ = sampling.walk(key, solver, _denoise, x, grids.reverse(levels))
            return sampling.walk(key, solver, _denoise, noise, levels)[0]

        x = oracles.sample(jax.random.key(2), _data(), 8)
        return np.abs(there_and_back(x) - x).max()

    assert 0.8 < np.log2(gap("ddim", 65) / gap("ddim", 129)) < 1.2
    assert np.log2(gap("heun", 65) / gap("heun", 129)) > 1.8
    assert gap("heun", 129) < 0.03 * gap("ddim", 129)


def test_edict_comes_back_exactly(x64):
    process = _process()
    levels = jax.jit(lambda: process.at_log_snr(jnp.linspace(-3.0, 5.0, 30)))()
    solver, key = _solver("edict", process), jax.random.key(0)
    x = oracles.sample(jax.random.key(2), _data(), 8)

    @jax.jit
    def there_and_back(x):
        noise, state = sampling.walk(key, solver, _denoise, x, grids.reverse(levels))
        return noise, sampling.walk(key, solver, _denoise, noise, levels, state)[0]

    noise, back = there_and_back(x)
    assert_allclose(back, x, rtol=1e-9, atol=1e-9)
    # It is a solver of the same flow: near DDIM's inversion.
    other, _ = sampling.walk(key, _solver("ddim", process), _denoise, x, grids.reverse(levels))
    assert np.abs(noise - other).max() < 0.3
    assert np.abs(noise - x).max() > 0.3


def test_levels_per_example_are_not_asked_of_a_grid():
    """A grid's leaves are [n]: solvers see scalar levels."""
    levels = jax.jit(lambda: grids.trailing(_process(), 4))()
    now, nxt, last = sampling.pairs(levels)
    assert isinstance(now, NoiseLevel) and now.t.shape == nxt.t.shape == (3,)
    assert last.t.shape == ()


@pytest.mark.parametrize(("steps", "worst"), [(10, 1.9), (20, 0.5), (40, 0.16)])
def test_edict_of_few_steps_stays_near_the_exact_sample(x64, steps, worst):
    """Guided by 3 on levels from -10 to 10; 0.93 throughout errs by 23, 2.7 and 0.19."""
    process = _process()

    def denoise(x, level):
        both, one = (oracles.predict(data, x, level) for data in (_data(), _one()))
        return Prediction(*(a + 3 * (b - a) for a, b in zip(both[:2], one[:2], strict=True)))

    def end(name, n):
        levels = process.at_log_snr(jnp.linspace(-10.0, 10.0, n))
        return sampling.sample(jax.random.key(0), _solver(name, process), denoise, x, levels)

    x = jax.random.normal(jax.random.key(7), (50, 2))
    few, exact = jax.jit(lambda: (end("edict", steps), end("ddim", 1000)))()
    assert np.sqrt(np.mean((few - exact) ** 2)) < worst


def _one():
    return oracles.mixture([1], [[-0.8, 0.3]], [0.5])
