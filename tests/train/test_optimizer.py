import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from diffusion_jax.build import training
from diffusion_jax.core import ema
from diffusion_jax.core.types import Recipe, Report
from diffusion_jax.train import optimizer as o
from diffusion_jax.train.state import new_state
from diffusion_jax.train.step import make_step


@pytest.mark.parametrize(
    ("decay", "values"),
    [
        (o.constant(), {0: 1, 50: 1, 1000: 1}),
        (o.cosine(100), {0: 1, 25: 0.5 + np.sqrt(0.125), 50: 0.5, 100: 0, 200: 0}),
        (o.cosine(100, final=0.2), {0: 1, 50: 0.6, 100: 0.2}),
        (o.linear(100, final=0.5), {0: 1, 50: 0.75, 100: 0.5, 200: 0.5}),
        (o.inverse_sqrt(50), {0: 1, 50: 1, 200: 0.5, 5000: 0.1}),
    ],
)
def test_schedules_at_known_points(decay, values):
    got = [float(decay(jnp.int32(step))) for step in values]
    np.testing.assert_allclose(got, list(values.values()), atol=1e-6)


def test_every_schedule_of_the_table_starts_at_one():
    arguments = {"constant": (), "cosine": (10,), "linear": (10,), "inverse_sqrt": (10,)}
    assert set(arguments) == set(o.SCHEDULES)
    for name, args in arguments.items():
        assert float(o.SCHEDULES[name](*args)(0)) == 1


def test_warm_up_moves_from_the_first_step_and_reaches_the_peak():
    rate = o.learning_rate(2e-3, o.constant(), warmup=4)
    got = [float(rate(step)) for step in range(6)]
    np.testing.assert_allclose(got, [5e-4, 1e-3, 1.5e-3, 2e-3, 2e-3, 2e-3], rtol=1e-6)
    assert float(o.learning_rate(2e-3, o.constant())(0)) == np.float32(2e-3)


def test_first_step_of_adamw_is_the_sign_and_the_decay_of_matrices():
    params = {"kernel": jnp.array([[2.0, -3.0]]), "bias": jnp.array([5.0])}
    grads = {"kernel": jnp.array([[0.1, -7.0]]), "bias": jnp.array([-1.0])}
    tx = o.adamw(lambda step: 0.01, eps=0.0, weight_decay=0.1)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(
        updates["kernel"], -0.01 * (np.array([[1, -1]]) + 0.1 * params["kernel"]), rtol=1e-5
    )
    np.testing.assert_allclose(updates["bias"], [0.01], rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    tx = o.adamw(lambda step: 0.01, b1=0.0, clip=5.0)
    _, state = tx.update(grads, tx.init(params), params)
    mu = optax.tree.get(state, "mu")
    np.testing.assert_allclose([mu["a"][0], mu["b"][0]], [3.0, 4.0], rtol=1e-5)


def test_three_steps_of_adamw_with_settings_of_its_own():
    """By hand in float64, with a rate that changes and a clip that bites in the second step."""
    rates = lambda step: 0.1 / (step + 1)
    tx = o.adamw(rates, b1=0.7, b2=0.95, eps=0.3, weight_decay=0.2, clip=2.0)
    params = {"kernel": np.array([[1.5, -0.5]]), "bias": np.array([0.25])}
    state = tx.init(jax.tree.map(jnp.asarray, params))
    mean, square = ({name: 0.0 for name in params} for _ in range(2))
    for step, scale in enumerate((0.4, 3.0, -1.0)):
        grads = {"kernel": scale * np.array([[1.0, 2.0]]), "bias": scale * np.array([-2.0])}
        given = jax.tree.map(jnp.asarray, grads)
        updates, state = tx.update(given, state, jax.tree.map(jnp.asarray, params))
        shrink = min(1.0, 2.0 / (3 * abs(scale)))  # the global norm is 3 times the scale
        for name, decay in (("kernel", 0.2), ("bias", 0.0)):
            g = shrink * grads[name]
            mean[name] = 0.7 * mean[name] + 0.3 * g
            square[name] = 0.95 * square[name] + 0.05 * g**2
            m, v = mean[name] / (1 - 0.7 ** (step + 1)), square[name] / (1 - 0.95 ** (step + 1))
            wanted = -rates(step) * (m / (np.sqrt(v) + 0.3) + decay * params[name])
            np.testing.assert_allclose(updates[name], wanted, rtol=1e-4)
            params[name] = params[name] + wanted


def test_the_standard_settings_are_adams_without_decay_or_clip():
    """Kingma & Ba 2015, section 2."""
    own = inspect.signature(o.adamw).parameters
    given = {name: own[name].default for name in ("b1", "b2", "eps", "weight_decay", "clip")}
    assert given == {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip": 0.0}


def test_a_rate_is_the_product_of_its_rise_and_its_fall():
    rate = o.learning_rate(0.5, o.linear(10, final=0.2), warmup=4)
    wanted = [0.5 * min((k + 1) / 4, 1) * (1 - 0.08 * min(k, 10)) for k in range(13)]
    np.testing.assert_allclose([float(rate(k)) for k in range(13)], wanted, rtol=1e-5)


def test_decay_spares_biases_and_scales_even_when_stacked():
    shapes = {
        "conv": {"kernel": (3, 3, 4, 4), "bias": (4,)},
        "stack": {"kernel": (2, 4, 4), "bias": (2, 4), "scale": (2, 4)},
        "vector": (4,),
        "embedding": (10, 4),
    }
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda s: isinstance(s, tuple))
    assert o.decayed(params) == {
        "conv": {"kernel": True, "bias": False},
        "stack": {"kernel": True, "bias": False, "scale": False},
        "vector": False,
        "embedding": True,
    }


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: o.learning_rate(0.0, o.constant()), "learning_rate"),
        (lambda: o.learning_rate(1.0, o.constant(), -1), "warmup"),
        (lambda: o.adamw(o.constant(), b1=1.0), "b1"),
        (lambda: o.adamw(o.constant(), b1=-0.1), "b1"),
        (lambda: o.adamw(o.constant(), b2=1.0), "b2"),
        (lambda: o.adamw(o.constant(), eps=-1e-9), "eps"),
        (lambda: o.adamw(o.constant(), weight_decay=-0.1), "weight_decay"),
        (lambda: o.cosine(10, final=-0.1), "schedule"),
        (lambda: o.linear(0), "schedule"),
        (lambda: o.adamw(o.constant(), clip=-1.0), "clip"),
        (lambda: o.cosine(0), "schedule"),
        (lambda: o.linear(10, final=2.0), "schedule"),
        (lambda: o.inverse_sqrt(0), "schedule"),
    ],
)
def test_values_out_of_range_name_their_field(make, field):
    with pytest.raises(ValueError, match=rf"config\.optimizer\.{field}"):
        make()


def test_groups_are_clipped_and_stepped_by_themselves():
    make = lambda factor, every: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(factor))
    tx = o.grouped(make, (("one", 1.0), ("two", 0.5)))
    params = {"one": {"w": jnp.zeros(2)}, "two": [jnp.zeros(2)]}
    grads = {"one": {"w": jnp.array([300.0, 400.0])}, "two": [jnp.array([0.3, 0.4])]}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["one"]["w"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(updates["two"][0], [-0.15, -0.2], rtol=1e-6)
    with pytest.raises(ValueError, match=r"optimizer.groups lacks 'three'"):
        tx.init({"three": jnp.zeros(1)})


def _turns(accumulated=1):
    """A step of two players, of which ``slow`` moves in the last of three."""
    make = lambda factor, every: o.adamw(lambda turn: factor * 0.01 * (turn + 1), clip=1.0)
    tx = o.grouped(make, (("slow", 1.0, 3), ("fast", 2.0)))
    loss = lambda params, context, batch, key: (
        sum(jnp.sum((p["w"] - batch["x"]) ** 2) for p in params.values()),
        Report({}),
    )
    params = {"slow": {"w": jnp.ones(2)}, "fast": {"w": jnp.ones(2)}}
    recipe = Recipe(lambda key, batch: params, loss)
    state = new_state(recipe, tx, ema.warmup(0.9), jax.random.key(0), {})
    return jax.jit(
        make_step(recipe, tx, ema.warmup(0.9), 0, accumulated, skip_nonfinite=True)
    ), state


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_group_changes_in_its_turns_alone_to_the_bit(accumulated):
    step, state = _turns(accumulated)
    for k in range(9):
        new, _ = step(state, {}, {"x": jnp.full((2, 2), float(k))})
        held = lambda s: (s.params["slow"], s.opt_state.inner_states["slow"])
        pairs = zip(*map(jax.tree.leaves, (held(state), held(new))), strict=True)
        same = [np.array_equal(a, b) for a, b in pairs]
        assert all(same) if k % 3 != 2 else not any(same), k
        assert not np.array_equal(state.params["fast"]["w"], new.params["fast"]["w"])
        state = new
    assert step._cache_size() == 1


def test_turns_follow_the_step_past_one_that_is_not_finite():
    step, state = _turns()
    for k in range(6):
        x = jnp.full((2, 2), jnp.nan if k == 1 else 0.0)
        new, _ = step(state, {}, {"x": x})
        moved = not np.array_equal(state.params["slow"]["w"], new.params["slow"]["w"])
        assert moved == (k % 3 == 2), k
        state = new


def test_a_group_sees_the_rate_of_the_runs_own_step():
    config = base.get_config()
    config.optimizer.update(warmup=6, schedule="constant()", learning_rate=0.6, eps=0.0)
    config.optimizer.groups = (("slow", 1.0, 3), ("fast", 0.5))
    tx = training.training(config)["tx"]
    params = {"slow": {"w": jnp.zeros(1)}, "fast": {"w": jnp.zeros(1)}}
    state, sizes = tx.init(params), []
    for k in range(6):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params, step=k)
        sizes.append([-float(updates[name]["w"][0]) for name in ("slow", "fast")])
    want = [[0.1 * (k + 1) * (k % 3 == 2), 0.05 * (k + 1)] for k in range(6)]
    np.testing.assert_allclose(sizes, want, rtol=1e-4)


def test_a_turn_in_less_than_one_step_is_refused():
    with pytest.raises(
        ValueError, match=r"\('net', 1\.0, 0\) is updated in the last of so many steps"
    ):
        o.grouped(lambda factor, every: optax.sgd(factor), (("net", 1.0, 0),))
