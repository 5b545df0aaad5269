"""CTM: the flow map is the minimum, the loss written out, solver levels; and points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from numpy.testing import assert_allclose

from diffusion_jax.core import oracles, process, proposals
from diffusion_jax.core.types import Solver
from diffusion_jax.recipes.few_step import consistency, trajectory, two_times
from diffusion_jax.recipes.few_step.continuous_consistency import teacher_velocity

WAVY = lambda x: jnp.sin(2 * x) + 0.3 * x[:, ::-1] ** 2
TAUGHT = teacher_velocity(toy.gaussian_teacher)
EXACT = Solver(
    lambda x: (),
    lambda key, denoise, x, now, nxt, state: (oracles.flow_map(toy.gaussian(), x, now, nxt), state),
)


def _batch(n=256):
    return {"image": oracles.sample(jax.random.key(4), toy.gaussian(), n)}


def _reported(model, **options):
    options = {"solver": EXACT, "steps": 2, "velocity": TAUGHT, **options}
    recipe = trajectory.trajectory(model, lambda *a: {}, toy.gaussian_teacher, **options)

    def loss(theta, average=0.0):
        context = toy.context(0, {"net": jnp.asarray(average, jnp.float64)})
        return recipe.loss({"net": theta}, context, _batch(), jax.random.key(1))

    return loss


@pytest.mark.parametrize(
    ("path", "target", "matching"),
    [("rectified", "flow", 1.0), ("rectified", "x0", 0.0), ("vp", "v", 0.0), ("ve", "edm", 1.0)],
)
def test_the_flow_is_the_minimum(x64, path, target, matching):
    loss = _reported(toy.two_time_model(path, target), denoising_weight=matching)
    toy.assert_truth_is_the_minimum(lambda theta: loss(theta)[0])


def test_with_a_solver_the_minimum_is_as_near_as_its_steps_are(x64):
    """Heun's error falls with the square of its steps, the squared loss with their fourth power."""
    value = lambda steps: float(
        jax.jit(_reported(toy.two_time_model(), solver=None, steps=steps, denoising_weight=0.0))(
            0.0
        )[0]
    )
    slope = np.log2(value(4) / value(16)) / 2
    assert abs(slope - 4) < 0.5, slope


@pytest.mark.parametrize("target", ["own", "averaged"])
def test_loss_and_gradient_are_the_papers(x64, target):
    """In G = (s/t)·x + (1 - s/t)·g of the rectified path's t; the gradient by differences."""
    theta, of_average, matching = 0.2, 0.05, 0.7
    params = {"own": consistency.online_target, "averaged": consistency.ema_target}[target]
    model = toy.two_time_model(bump=WAVY)
    loss = _reported(model, target=params, velocity=None, denoising_weight=matching)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, report), gradient = run(jnp.float64(theta), of_average)

    here, x0 = model.process, _batch()["image"]
    keys = jax.random.split(jax.random.key(1), 7)
    now, end = two_times.uniform_end(proposals.uniform(), 0.1)(keys[3], 256, here)
    u = trajectory.solver_levels(jax.random.fold_in(keys[3], 1), here, now, end, 2)
    u = jax.tree.map(lambda leaf: leaf[-1], u)
    eps = jax.random.normal(keys[4], x0.shape, x0.dtype)
    t, s = now.t[:, None], end.t[:, None]
    x_t = (1 - t) * x0 + t * eps
    x_u = oracles.flow_map(toy.gaussian(), x_t, now, u)

    def g(theta, x, level, to):
        p = oracles.average(toy.gaussian(), x, level, to)
        return x - level.t[:, None] * (p.eps - p.x0 + theta * WAVY(x))

    def G(theta, x, level, to):
        """Of x/alpha and sigma/alpha, which is the paper's path, and back."""
        y, ratio = x / (1 - level.t)[:, None], (to.sigma / to.alpha * level.alpha / level.sigma)
        there = ratio[:, None] * y + (1 - ratio)[:, None] * g(theta, x, level, to)
        return there * to.alpha[:, None]

    @jax.jit
    def written(theta, fixed):
        last = jax.tree.map(lambda a: jnp.where(end.t > 0, a, 0.5), end)  # any: there g is x
        clean = lambda x: jnp.where(s > 0, g(fixed, x, last, process.clean(end)), x)
        ours, theirs = clean(G(theta, x_t, now, end)), clean(G(fixed, x_u, u, end))
        return jnp.mean((ours - theirs) ** 2), jnp.mean((x0 - g(theta, x_t, now, now)) ** 2)

    fixed = theta if target == "own" else of_average
    total = lambda theta: jnp.array(written(theta, fixed)) @ jnp.array([1.0, matching])
    meeting, denoising = written(theta, fixed)
    assert_allclose(report.metrics["consistency"], meeting, rtol=1e-6)
    assert_allclose(report.metrics["denoising"], denoising, rtol=1e-6)
    assert np.isfinite([value, gradient]).all()
    assert_allclose(value, meeting + matching * denoising, rtol=1e-6)
    h = 1e-5
    assert_allclose(gradient, (total(theta + h) - total(theta - h)) / (2 * h), rtol=1e-5)


def test_extra_conditions_reach_the_teacher_and_both_students():
    """As (key, number of examples), beside the batch's own condition."""
    seen = []

    def extra(key, n):
        return {"guidance_scale": 2.0 + jnp.arange(n, dtype=jnp.float32)}

    def net(params, x, time, cond, key=None):
        seen.append(("net", cond["guidance_scale"].shape))
        return params["net"] * x

    def teacher(frozen, cond):
        seen.append(("teacher", cond["guidance_scale"].shape))
        return toy.gaussian_teacher(frozen, cond)

    model = toy.model_of(net, toy.rectified(), toy.two_time_model().target)
    recipe = trajectory.trajectory(
        model, lambda *a: {}, teacher, solver=EXACT, steps=2, extra_cond=extra
    )
    context = toy.context(0, {"net": jnp.float32(0.5)})
    loss = lambda theta: recipe.loss({"net": theta}, context, _batch(8), jax.random.key(1))[0]
    assert np.isfinite(jax.jit(loss)(jnp.float32(0.3)))
    assert {name for name, _ in seen} == {"net", "teacher"}
    assert {shape for _, shape in seen} == {(8,)}


def test_solver_levels_are_uniform_down_to_u():
    here = toy.rectified()
    now, end = here.at(jnp.full((2000,), 0.8)), process.clean(here.at(jnp.full((2000,), 0.4)))
    way = trajectory.solver_levels(jax.random.key(0), here, now, end, 4)
    assert way.t.shape == (5, 2000) and (way.t[0] == now.t).all()
    assert_allclose(np.diff(way.t, 2, axis=0), 0, atol=1e-6)
    u = np.asarray(way.t[-1])
    assert abs(u.mean() - 0.4) < 0.02 and u.min() >= 0 and u.max() <= 0.8


@pytest.mark.whole
def test_points_in_one_and_two_steps():
    """From scratch, taught by the exact denoiser."""
    net, init = toy.mlp(scalars=("end",))
    model = toy.flow_model(net)
    exact = lambda x, level: oracles.predict(toy.data(), x, level)
    recipe = trajectory.trajectory(
        model,
        init,
        lambda frozen, cond: exact,
        two_times.uniform_end(proposals.uniform(), 0.3),
        steps=2,
    )
    params = toy.train(recipe, 700, rate=4e-3)
    one, two = toy.distances_in(model, params, (1.0, 0.0), (1.0, 0.5))
    plain = toy.distance_of_the_mean()
    print(one, two, plain)
    assert one < 0.1 and two < 0.1 and one < 0.25 * plain, (one, two, plain)
