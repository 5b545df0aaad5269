import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from diffusion_jax.core import ema
from diffusion_jax.core.types import Recipe, Report
from diffusion_jax.train.state import new_state
from diffusion_jax.train.step import make_step


def _regression(params, context, batch, key):
    """No draws, so that the batch can be cut anywhere."""
    loss = jnp.mean((tiny.forward(params, batch["x"]) - batch["x"]) ** 2)
    return loss, Report({"mean": jnp.mean(batch["x"])}, context.carry + 1)


FIXED = Recipe(tiny.RECIPE.init, _regression, tiny.RECIPE.carry)
BATCHES = [{"x": jnp.asarray(next(tiny.batches(i))["x"])} for i in range(4)]


@functools.cache
def _fresh(recipe=tiny.RECIPE, tx=None):
    return new_state(recipe, tx or tiny.optimiser(), tiny.EMA, jax.random.key(0), BATCHES[0])


def _step(recipe=tiny.RECIPE, tx=None, **options):
    return jax.jit(make_step(recipe, tx or tiny.optimiser(), tiny.EMA, 0, **options))


STEP = _step()


def _assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_one_step_in_closed_form():
    """L = ‖p‖²/2 at p = (3, 4): the gradient is p, and SGD at rate 0.1 shrinks it by 0.9."""
    loss = lambda params, context, batch, key: (0.5 * jnp.sum(params**2), Report({}))
    recipe = Recipe(lambda key, batch: jnp.array([3.0, 4.0]), loss)
    tx, average = optax.sgd(0.1), ema.constant(0.75)
    state = new_state(recipe, tx, average, jax.random.key(0), {})
    step = jax.jit(make_step(recipe, tx, average, 0, learning_rate=lambda step: 0.1 + step))
    state, metrics = step(state, {}, {})
    np.testing.assert_allclose(state.params, [2.7, 3.6], rtol=1e-6)
    np.testing.assert_allclose(state.ema, [0.75 * 3 + 0.25 * 2.7, 0.75 * 4 + 0.25 * 3.6], rtol=1e-6)
    expected = {
        "loss": 12.5,
        "grad_norm": 5.0,
        "param_norm": 4.5,
        "learning_rate": 0.1,
        "finite": 1,
    }
    assert {k: pytest.approx(float(v)) for k, v in metrics.items()} == expected
    assert int(state.step) == 1


def test_accumulated_gradients_are_those_of_the_whole_batch():
    # SGD, as Adam's first step would hide the gradient's scale.
    tx = optax.sgd(0.5)
    whole, seen = _step(FIXED, tx)(_fresh(FIXED, tx), {}, BATCHES[0])
    parts, seen_in_parts = _step(FIXED, tx, accumulate=4)(_fresh(FIXED, tx), {}, BATCHES[0])
    _assert_close(whole.params, parts.params, rtol=1e-5, atol=1e-7)
    _assert_close(seen, seen_in_parts, rtol=1e-5, atol=1e-7)
    assert (float(whole.carry), float(parts.carry)) == (1, 4)


def test_micro_batches_have_keys_of_their_own_made_from_seed_and_step():
    draw = lambda params, context, batch, key: (
        jax.random.uniform(key) + 0 * params, Report({"first": batch["x"][0]}, context.carry)
    )  # fmt: skip
    recipe = Recipe(lambda key, batch: jnp.zeros(()), draw)
    tx = optax.sgd(0.1)
    state = new_state(recipe, tx, tiny.EMA, jax.random.key(0), {})._replace(step=jnp.int32(7))
    batch = {"x": jnp.arange(6.0)}
    of = lambda n: jax.jit(make_step(recipe, tx, tiny.EMA, 5, n))(state, {}, batch)[1]
    key = jax.random.fold_in(jax.random.key(5), 7)
    np.testing.assert_allclose(of(1)["loss"], jax.random.uniform(key), rtol=1e-6)
    keys = jax.random.split(key, 3)
    wanted = np.mean([jax.random.uniform(k) for k in keys])
    seen = of(3)
    np.testing.assert_allclose(seen["loss"], wanted, rtol=1e-6)
    assert float(seen["first"]) == 1.0  # micro-batches are strided: they start with 0, 1 and 2


def test_an_optimiser_and_an_average_get_the_step_and_the_settled_parameters():
    settle = lambda params, carry: params + 10 * carry
    loss = lambda params, context, batch, key: (
        params * context.ema * context.frozen["f"], Report({}, context.carry + 1)
    )  # fmt: skip
    recipe = Recipe(lambda key, batch: jnp.float32(2.0), loss, lambda: jnp.zeros(()), settle)
    by_step = optax.GradientTransformationExtraArgs(
        lambda params: (), lambda updates, state, params, step: (-step * updates, state)
    )
    average = ema.warmup(0.9)
    state = new_state(recipe, by_step, average, jax.random.key(0), {})
    state = state._replace(step=jnp.int32(3), ema=jnp.float32(4.0))
    after, metrics = jax.jit(make_step(recipe, by_step, average, 0))(state, {"f": 5.0}, {})
    # d loss / d params = 4·5; the step is 3; the settled carry is 1.
    np.testing.assert_allclose(after.params, 2 - 3 * 20 + 10)
    rate = 9 / 13  # 1 - (1 + k)/(10 + k) at k = 3
    np.testing.assert_allclose(after.ema, 4 + rate * (-48 - 4), rtol=1e-6)
    assert (int(after.step), float(after.carry), float(metrics["loss"])) == (4, 1, 40)


def test_accumulation_must_divide_the_batch():
    with pytest.raises(ValueError, match=r"config\.train\.accumulate = 3 does not divide .* 16"):
        _step(accumulate=3)(_fresh(), {}, BATCHES[0])


def test_steps_of_one_dispatch_are_the_steps_one_by_one():
    state, losses = _fresh(), []
    for batch in BATCHES:
        state, metrics = STEP(state, {}, batch)
        losses.append(float(metrics["loss"]))
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *BATCHES)
    together, metrics = _step(steps_per_call=4)(_fresh(), {}, stacked)
    _assert_close(together, state, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    np.testing.assert_array_equal(metrics["seen"], [0, 1, 2, 3])


def test_draws_depend_on_seed_and_step_alone():
    other = jax.jit(make_step(tiny.RECIPE, tiny.optimiser(), tiny.EMA, seed=1))
    state = _fresh()
    loss = lambda step, state: float(step(state, {}, BATCHES[0])[1]["loss"])
    assert loss(STEP, state) == loss(STEP, state)
    assert loss(STEP, state) != loss(other, state)
    assert loss(STEP, state) != loss(STEP, state._replace(step=jnp.int32(1)))


def test_what_is_not_finite_changes_nothing_then_or_later():
    good, _ = STEP(_fresh(), {}, BATCHES[0])
    bad, metrics = STEP(good, {}, {"x": BATCHES[1]["x"].at[0, 0].set(jnp.nan)})
    assert not bool(metrics["finite"]) and np.isnan(metrics["loss"])
    after, metrics = STEP(bad, {}, BATCHES[2])  # was on its way when the flag came down
    assert not bool(metrics["finite"]) and np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, after, good._replace(finite=np.array(False)))


def test_a_gradient_that_is_not_finite_is_caught_under_a_finite_loss():
    """d sqrt(p)/dp is infinite at p = 0."""
    loss = lambda params, context, batch, key: (jnp.sqrt(params), Report({}))
    recipe = Recipe(lambda key, batch: jnp.zeros(()), loss)
    tx = optax.sgd(0.1)
    state = new_state(recipe, tx, tiny.EMA, jax.random.key(0), {})
    state, metrics = _step(recipe, tx)(state, {}, {})
    assert float(metrics["loss"]) == 0 and not bool(metrics["finite"])
    assert float(state.params) == 0 and int(state.step) == 0
