import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.ema import EMAS, constant, halflife, power, warmup

N = 60

RATES = {
    "constant": lambda k: 1 - 0.9,
    "warmup": lambda k: 1 - min(0.9, (1 + k) / (10 + k)),
    "halflife": lambda k: 1 - 0.5 ** (1 / min(8.0, 0.25 * k)) if k else 1.0,
    # σ_rel = 12^(-1/2) is γ = 0, the plain mean.
    "power": lambda k: 1 / (k + 1),
}
BUILT = {
    "constant": lambda: constant(0.9),
    "warmup": lambda: warmup(0.9),
    "halflife": lambda: halflife(8, ramp=0.25),
    "power": lambda: power(12**-0.5),
}


def _run(ema, trajectory):
    state = ema.init({"w": trajectory[0]})
    for k, p in enumerate(trajectory[1:]):
        state = ema.update(state, {"w": p}, jnp.int32(k))
    return np.asarray(ema.params(state)["w"])


def test_every_name_of_the_table_is_tested():
    assert set(EMAS) == set(RATES) == set(BUILT)


@pytest.mark.parametrize("name", sorted(EMAS))
def test_the_recurrence_is_the_weighted_sum(name):
    trajectory = np.random.default_rng(0).normal(size=(N + 1, 3)).astype(np.float32)
    rates = np.array([RATES[name](k) for k in range(N)])
    left = np.append(np.cumprod((1 - rates)[::-1])[::-1][1:], 1.0)
    expected = np.prod(1 - rates) * trajectory[0] + (rates * left) @ trajectory[1:]
    got = _run(BUILT[name](), [jnp.asarray(p) for p in trajectory])
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_a_halflife_halves_the_weight_of_the_start():
    trajectory = [jnp.ones(1)] + [jnp.zeros(1)] * 20
    np.testing.assert_allclose(_run(halflife(20, ramp=None), trajectory), 0.5, rtol=1e-5)


@pytest.mark.parametrize(("ema", "start"), [(warmup(0.9999), 0.1), (halflife(10**6), 0.0)])
def test_a_warm_up_forgets_the_initialisation_at_once(ema, start):
    np.testing.assert_allclose(_run(ema, [jnp.ones(1), jnp.zeros(1)]), start, atol=1e-6)


def test_bfloat16_parameters_have_a_float32_average_that_moves():
    average = _run(constant(0.9999), [jnp.ones(2, jnp.bfloat16)] + [jnp.full(2, 2.0)] * 3)
    assert average.dtype == np.float32
    np.testing.assert_allclose(average, 2 - 0.9999**3, rtol=1e-6)


def test_counters_are_copied():
    ema = constant(0.5)
    state = ema.update(ema.init({"n": jnp.int32(1)}), {"n": jnp.int32(7)}, jnp.int32(0))
    assert int(ema.params(state)["n"]) == 7


@pytest.mark.parametrize(
    "make",
    [
        lambda: constant(1.0),
        lambda: warmup(-0.1),
        lambda: halflife(0),
        lambda: halflife(5, ramp=0.0),
        lambda: power(0.3),
        lambda: power((0.1, 0.0)),
        lambda: power((0.1, 0.1)),
        lambda: power(()),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"config\.ema: "):
        make()
