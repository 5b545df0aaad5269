"""Shortcut models: the flow map is the minimum, both terms written out, steps; and points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from numpy.testing import assert_allclose

from diffusion_jax.core import oracles
from diffusion_jax.recipes.few_step import consistency, shortcut
from diffusion_jax.recipes.few_step.continuous_consistency import data_velocity, teacher_velocity
from diffusion_jax.recipes.few_step.progressive import draw_student_step

TAUGHT = teacher_velocity(toy.gaussian_teacher)
WAVY = lambda x: jnp.sin(2 * x) + 0.3 * x[:, ::-1] ** 2


def _recipe(model, velocity=TAUGHT, **options):
    return shortcut.shortcut(model, lambda *a: {}, velocity, **options)


def _batch(n=256):
    return {"image": oracles.sample(jax.random.key(4), toy.gaussian(), n)}


def _reported(recipe):
    """(theta, theta of the average) -> (loss, Report)."""

    def loss(theta, average=0.0):
        context = toy.context(0, {"net": jnp.asarray(average, jnp.float64)})
        return recipe.loss({"net": theta}, context, _batch(), jax.random.key(1))

    return loss


@pytest.mark.parametrize(
    ("path", "target"), [("rectified", "flow"), ("vp", "v"), ("rectified", "x0")]
)
def test_the_flow_is_the_minimum(x64, path, target):
    """But for the finest half steps, which err by the square of their size."""
    recipe = _recipe(toy.two_time_model(path, target), finest=2**16, bootstrap=0.5)
    loss = lambda theta: _reported(recipe)(theta)[0]
    toy.assert_truth_is_the_minimum(loss, fixed=1e-7, slope=1e-4)


@pytest.mark.parametrize("target", ["own", "averaged"])
def test_loss_and_gradient_are_the_papers(x64, target):
    """Equation (1) in the paper's terms, for drawn velocities; only one side has a gradient."""
    theta, finest, half = 0.2, 8, 128
    params = {"own": consistency.online_target, "averaged": consistency.ema_target}[target]
    model = toy.two_time_model(bump=WAVY)
    recipe = _recipe(model, data_velocity(), finest=finest, bootstrap=0.5, target=params)
    of_average = 0.05
    run = jax.jit(jax.value_and_grad(_reported(recipe), has_aux=True))
    (value, report), gradient = run(jnp.float64(theta), of_average)

    here, x0 = model.process, _batch()["image"]
    keys = jax.random.split(jax.random.key(1), 7)
    n = shortcut.draw_step_counts(jax.random.fold_in(keys[4], 1), half, finest)
    t = draw_student_step(keys[4], half, here, n)[0].t
    level = jax.random.uniform(keys[3], (half,), minval=1e-6, maxval=1.0)
    eps = jax.random.normal(keys[5], x0.shape, x0.dtype)
    column = lambda a: a[:, None]

    @jax.jit
    def s(theta, x, t, d):
        p = oracles.average(toy.gaussian(), x, here.at(t), here.at(jnp.maximum(t - d, 0.0)))
        return p.eps - p.x0 + theta * WAVY(x)

    d = 0.5 / n
    told = jnp.where(n == finest // 2, 0.0, d)
    x = column(1 - t) * x0[:half] + column(t) * eps[:half]
    of_target = theta if target == "own" else of_average
    one = s(of_target, x, t, told)
    two = s(of_target, x - column(d) * one, t - d, told)
    errors = [s(theta, x, t, 2 * d) - (one + two) / 2]
    matched = column(1 - level) * x0[half:] + column(level) * eps[half:]
    errors.append(s(theta, matched, level, 0.0) - (eps - x0)[half:])
    error, bump = jnp.concatenate(errors), WAVY(jnp.concatenate([x, matched]))
    assert np.isfinite([value, gradient]).all()
    assert_allclose(value, jnp.mean(error**2), rtol=1e-6)
    assert_allclose(gradient, jnp.mean(2 * error * bump), rtol=1e-6)
    for name, part in (("bootstrap", errors[0]), ("matching", errors[1])):
        assert_allclose(report.metrics[name], jnp.mean(part**2), rtol=1e-6)


def test_steps_are_all_powers_of_two_alike():
    n = np.asarray(shortcut.draw_step_counts(jax.random.key(0), 7000, 128))
    values, counts = np.unique(n, return_counts=True)
    assert values.tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert (np.abs(counts - 1000) < 150).all()


@pytest.mark.parametrize(("name", "value"), [("finest", 100), ("finest", 1), ("bootstrap", 1.5)])
def test_wrong_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        shortcut.shortcut(toy.two_time_model(), lambda *a: {}, **{name: value})


@pytest.mark.whole
def test_points_in_one_and_two_steps():
    """From scratch, without a teacher."""
    net, init = toy.mlp(scalars=("end",))
    model = toy.flow_model(net)
    recipe = shortcut.shortcut(
        model, init, bootstrap=0.5, finest=32, target=consistency.online_target
    )
    params = toy.train(recipe, 800, rate=4e-3)
    one, two = toy.distances_in(model, params, (1.0, 0.0), (1.0, 0.5))
    plain = toy.distance_of_the_mean()
    print(one, two, plain)
    assert one < 0.1 and two < 0.1 and one < 0.25 * plain, (one, two, plain)
