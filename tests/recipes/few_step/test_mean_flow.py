"""MeanFlow where the mean velocity is known: identity, loss, mean gradient; and points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from numpy.testing import assert_allclose

from diffusion_jax.core import flow_maps, losses, oracles, process, proposals, targets
from diffusion_jax.core.types import Prediction
from diffusion_jax.recipes.few_step import mean_flow, teachers, two_times
from diffusion_jax.recipes.few_step.continuous_consistency import data_velocity, teacher_velocity

TAUGHT = teacher_velocity(toy.gaussian_teacher)
VARIANTS = {"mean_flow": mean_flow.target_tangent, "improved": mean_flow.network_tangent}
WAVY = lambda x: jnp.sin(2 * x) + 0.3 * x[:, ::-1] ** 2


def _recipe(model, velocity=TAUGHT, **options):
    return mean_flow.mean_flow(model, lambda *a: {}, velocity, **options)


def _batch(n=256):
    return {"image": oracles.sample(jax.random.key(4), toy.gaussian(), n)}


def _loss(recipe, key=1):
    return lambda theta: recipe.loss({"net": theta}, toy.context(), _batch(), jax.random.key(key))[
        0
    ]


@pytest.mark.parametrize(
    ("variant", "path", "target"),
    [
        ("mean_flow", "rectified", "flow"),
        ("mean_flow", "vp", "v"),
        ("mean_flow", "ve", "edm"),
        ("improved", "rectified", "x0"),
    ],
)
def test_the_mean_velocity_is_the_minimum(x64, variant, path, target):
    sign = -1.0 if target in ("edm", "x0") else 1.0
    model = toy.two_time_model(path, target, lambda x: sign * jnp.ones_like(x))
    recipe = _recipe(model, tangent=VARIANTS[variant], distance=losses.squared())
    toy.assert_truth_is_the_minimum(_loss(recipe))


@pytest.mark.parametrize("path", ["rectified", "vp", "ve"])
def test_the_derivative_is_that_along_the_trajectory(x64, path):
    """Of a network that is wrong, by finite differences along the exact flow."""
    model = toy.two_time_model(path, bump=WAVY)
    here, jump = model.process, flow_maps.jumper(model, {"net": 0.5})
    t, end = jnp.array([0.05, 0.3, 0.7, 0.95]), here.at(jnp.array([0.0, 0.1, 0.7, 0.2]))
    now = here.at(t)
    x = jax.random.normal(jax.random.key(0), (4, 2)) * (now.alpha + now.sigma)[:, None]

    def u(t):
        moved = oracles.flow_map(toy.gaussian(), x, now, here.at(t))
        prediction = jump(moved, here.at(t), end, {})
        return prediction.eps - prediction.x0

    h = 1e-6
    true = oracles.predict(toy.gaussian(), x, now)
    got = mean_flow.derivative(jump, here, x, now, end, {}, true.eps - true.x0)
    assert_allclose(got[0], u(t), rtol=1e-9)
    assert_allclose(got[1], (u(t + h) - u(t - h)) / (2 * h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradient_are_the_papers(x64, variant):
    """Written out for data velocities, r = 1/3·t, with the derivative by finite differences."""
    theta, h, power, c = 0.2, 1e-5, 0.75, 0.02

    def times(key, b, here):
        t = jnp.linspace(0.1, 0.9, b)
        return here.at(t), here.at(t / 3)

    model = toy.two_time_model(bump=WAVY)
    recipe = _recipe(
        model,
        data_velocity(),
        times=times,
        tangent=VARIANTS[variant],
        distance=losses.adaptive(power, c),
    )
    value, gradient = jax.value_and_grad(_loss(recipe))(jnp.float64(theta))
    square = _recipe(
        model, data_velocity(), times=times, tangent=VARIANTS[variant], distance=losses.squared()
    ).loss({"net": jnp.float64(theta)}, toy.context(), _batch(), jax.random.key(1))
    assert_allclose(square[1].metrics["error"], square[0], rtol=1e-9)

    x0 = _batch()["image"]
    eps = jax.random.normal(jax.random.split(jax.random.key(1), 6)[4], x0.shape, x0.dtype)
    t = jnp.linspace(0.1, 0.9, len(x0))[:, None]
    z, v, here = (1 - t) * x0 + t * eps, eps - x0, model.process

    def u(z, t, r):
        p = oracles.average(toy.gaussian(), z, here.at(t[:, 0]), here.at(r[:, 0]))
        return p.eps - p.x0 + theta * WAVY(z)

    w = v if variant == "mean_flow" else u(z, t, t)
    slope = (u(z + h * w, t + h, t / 3) - u(z - h * w, t - h, t / 3)) / (2 * h)
    error = u(z, t, t / 3) - (v - (t - t / 3) * slope)
    square = jnp.sum(error**2, -1)
    weight = 1 / (square + c) ** power
    assert np.isfinite([value, gradient]).all()
    assert_allclose(value, jnp.mean(weight * square), rtol=1e-6)
    assert_allclose(gradient, jnp.mean(weight * jnp.sum(2 * error * WAVY(z), -1)), rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_drawn_velocities_the_truth_is_the_minimum_in_the_mean(x64, variant):
    """The mean gradient of many batches: zero at the truth, far from it on either side."""
    model = toy.two_time_model(bump=jnp.tanh)
    times = two_times.ordered(proposals.logit_normal(), 0.25)
    recipe = _recipe(model, data_velocity(), times=times, tangent=VARIANTS[variant])

    @jax.jit
    def gradients(theta):
        def one(key):
            x_key, loss_key = jax.random.split(key)
            batch = {"image": oracles.sample(x_key, toy.gaussian(), 4096)}
            loss = lambda theta: recipe.loss({"net": theta}, toy.context(), batch, loss_key)[0]
            return jax.grad(loss)(theta)

        return jax.lax.map(one, jax.random.split(jax.random.key(0), 24))

    of = lambda theta: np.asarray(gradients(jnp.float64(theta)))
    at_truth = of(0.0)
    error = at_truth.std() / np.sqrt(len(at_truth))
    assert abs(at_truth.mean()) < 4 * error
    for theta in (-0.1, 0.1):
        assert of(theta).mean() * np.sign(theta) > 8 * error, (of(theta).mean(), error)


def test_the_adaptive_distance_is_a_square_of_fixed_weight(x64):
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    square = np.sum((np.asarray(a) - np.asarray(b)) ** 2, (1, 2))
    distance = losses.adaptive(0.5, 0.1)
    assert_allclose(distance(a, b), square / (square + 0.1) ** 0.5, rtol=1e-12)
    gradient = jax.grad(lambda a: distance(a, b).sum())(a)
    assert_allclose(gradient, 2 * (a - b) / ((square + 0.1) ** 0.5)[:, None, None], rtol=1e-12)


MEAN = lambda label: jnp.where(label[:, None] == 99, 0.1, 0.5) * jnp.ones((1, 2))


def _moved(x, now, end, m):
    """The jump of N(m, 0.2·I)."""
    centred = oracles.mixture([1.0], [[0.0, 0.0]], [0.2])
    got = oracles.average(centred, x - now.alpha[:, None] * m, now, end)
    return Prediction(got.x0 + m, got.eps)


def _guided(scale, **options):
    """theta -> (loss, gradient) of a student that should show the flow guided by the scale.

    Gaussians of one variance as conditions: guidance by a scale is one with its mean moved.
    """
    here, row = toy.rectified(), targets.flow()

    def truth(x, now, cond):
        null = jnp.full_like(cond["label"], 99)
        m = MEAN(null) + scale(cond) * (MEAN(cond["label"]) - MEAN(null))
        return _moved(x, now, here.at_log_snr(cond["end"]), m)

    net = toy.oracle_net(here, row, truth, jnp.ones_like)
    teach = lambda frozen, cond: lambda x, level: _moved(x, level, level, MEAN(cond["label"]))
    model = toy.model_of(net, here, row, labels=True)
    recipe = _recipe(model, teacher_velocity(teach), distance=losses.squared(), **options)
    batch = {**_batch(), "label": jnp.arange(256) % 2}
    loss = lambda theta: recipe.loss({"net": theta}, toy.context(), batch, jax.random.key(1))[0]
    run = jax.jit(jax.value_and_grad(loss))
    return lambda theta: run(jnp.float64(theta))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_guided_mean_velocity_is_a_fixed_point(x64, variant):
    """Of a fixed ω = 2, κ = 0.5, the scale 4, and of each example's own scale."""
    if variant == "mean_flow":
        loss = _guided(
            lambda cond: 4.0, guidance=mean_flow.constant_guidance(2.0, 0.5), condition_dropout=0.3
        )
    else:
        scale = lambda cond: cond["guidance_scale"][:, None]
        options = {
            "guidance": mean_flow.guidance_from_cond(),
            "extra_cond": teachers.guidance_scales(1.0, 4.0),
        }
        loss = _guided(scale, tangent=mean_flow.network_tangent, condition_dropout=0.3, **options)
    value, gradient = loss(0.0)
    assert abs(value) < 1e-20 and abs(gradient) < 1e-9
    assert loss(0.1)[0] > 1e-5


def test_guidance_has_no_gradient_and_is_not_for_dropped_conditions(x64):
    """Where r = t the network off by theta has an error of ω·theta, or theta if dropped."""
    times = two_times.ordered(proposals.uniform(), 1.0)
    for dropout, omega in ((0.0, 2.0), (1.0, 1.0)):
        loss = _guided(
            lambda cond: 4.0,
            guidance=mean_flow.constant_guidance(2.0, 0.5),
            times=times,
            condition_dropout=dropout,
        )
        value, gradient = loss(0.1)
        assert_allclose(value, (omega * 0.1) ** 2, rtol=1e-9)
        assert_allclose(gradient, 2 * omega * 0.1, rtol=1e-9)


def test_times_are_drawn_as_stated():
    here, n = toy.rectified(), 20_000
    draw = jax.jit(lambda key: two_times.ordered(proposals.logit_normal(-0.4, 1.0), 0.75)(
        key, n, here
    ))  # fmt: skip
    now, end = draw(jax.random.key(0))
    t, r = np.asarray(now.t), np.asarray(end.t)
    assert (r <= t).all() and abs((r == t).mean() - 0.75) < 0.02
    apart = r < t
    both = np.log(np.concatenate([t[apart], r[apart]]) / (1 - np.concatenate([t[apart], r[apart]])))
    assert abs(both.mean() + 0.4) < 0.05 and abs(both.std() - 1) < 0.05

    clean_too = two_times.ordered(proposals.logit_normal(-0.4, 1.0), 0.5, 0.25)
    now, end = jax.jit(lambda key: clean_too(key, n, here))(jax.random.key(0))
    same, last = np.asarray(now.t == end.t), np.asarray(end.sigma == 0)
    assert abs(same.mean() - 0.5) < 0.02 and abs(last[~same].mean() - 0.25) < 0.02

    draw = jax.jit(lambda key: two_times.uniform_end(proposals.uniform(), 0.25)(key, n, here))
    now, end = draw(jax.random.key(0))
    assert abs((end.sigma == 0).mean() - 0.25) < 0.02
    share = np.asarray((end.t / now.t)[end.sigma > 0])
    assert share.max() <= 1 and abs(share.mean() - 0.5) < 0.01 and abs(share.var() - 1 / 12) < 0.01
    for wrong in (lambda: two_times.ordered(proposals.uniform(), 1.5),
                  lambda: two_times.ordered(proposals.uniform(), 0.5, 1.5),
                  lambda: two_times.uniform_end(proposals.uniform(), -1.0)):  # fmt: skip
        with pytest.raises(ValueError, match="share of the batch"):
            wrong()


@pytest.mark.whole
@pytest.mark.parametrize("variant", VARIANTS)
def test_points_in_one_and_two_steps(variant):
    """From scratch, without a teacher."""
    net, init = toy.mlp(scalars=("end",))
    model = toy.flow_model(net)
    times = two_times.ordered(proposals.logit_normal(0.0, 2.0), 0.5)
    # In two dimensions an error is as large as its spread: a weight by it would move the mean.
    recipe = mean_flow.mean_flow(
        model, init, times=times, tangent=VARIANTS[variant], distance=losses.squared()
    )
    params = toy.train(recipe, 1000, rate=4e-3)
    one, two = toy.distances_in(model, params, (1.0, 0.0), (1.0, 0.5))
    plain = toy.distance_of_the_mean()
    print(variant, one, two, plain)
    assert one < 0.08 and two < 0.08 and one < 0.2 * plain, (one, two, plain)


def test_a_clean_end_is_finite(x64):
    """A level of sigma = 0 as end leaves the derivative finite."""
    model = toy.two_time_model()
    times = lambda key, b, here: (here.at(jnp.linspace(0.1, 0.9, b)),
                                  process.clean(here.at(jnp.linspace(0.1, 0.9, b))))  # fmt: skip
    loss = jax.value_and_grad(_loss(_recipe(model, times=times, distance=losses.squared())))
    value, gradient = loss(jnp.float64(0.0))
    assert abs(value) < 1e-20 and abs(gradient) < 1e-9
