"""IMM: kernel and loss written out, the flow as its minimum, middle levels; and points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from numpy.testing import assert_allclose

from diffusion_jax.core import oracles, process, proposals, schedules, targets
from diffusion_jax.core.process import Process
from diffusion_jax.core.types import Solver
from diffusion_jax.recipes.few_step import consistency, moment_matching, two_times

WAVY = lambda x: jnp.sin(2 * x) + 0.3 * x[:, ::-1] ** 2
EXACT = Solver(
    lambda x: (),
    lambda key, denoise, x, now, nxt, state: (oracles.flow_map(toy.gaussian(), x, now, nxt), state),
)
ALONG_THE_FLOW = consistency.teacher_step(toy.gaussian_teacher, EXACT)
ONE = lambda here, now: jnp.ones_like(now.alpha)


def _batch(n=256):
    return {"image": oracles.sample(jax.random.key(4), toy.gaussian(), n)}


def _loss(model, key=1, **options):
    options = {
        "particles": 8,
        "middle_level": moment_matching.less_time(0.2),
        "weight": ONE,
        **options,
    }
    recipe = moment_matching.moment_matching(model, lambda *a: {}, **options)

    def loss(theta, average=0.0):
        context = toy.context(0, {"net": jnp.asarray(average, jnp.float64)})
        return recipe.loss({"net": theta}, context, _batch(), jax.random.key(key))[0]

    return loss


@pytest.mark.parametrize(
    ("path", "target"), [("rectified", "flow"), ("vp", "v"), ("rectified", "x0")]
)
def test_the_flow_is_the_minimum_on_its_trajectories(x64, path, target):
    loss = _loss(toy.two_time_model(path, target), transition=ALONG_THE_FLOW)
    toy.assert_truth_is_the_minimum(loss, fixed=1e-12)


def test_mmd_is_the_sum_over_pairs(x64):
    a, b = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 5, 4)))
    width = np.array([0.2, 0.5, 1.0])
    k = lambda a, b, w: np.exp(-np.sqrt(((a - b) ** 2).sum()) / (4 * w))
    want = [
        sum(k(p, q, w) for p in x for q in x) / 25
        + sum(k(p, q, w) for p in y for q in y) / 25
        - 2 * sum(k(p, q, w) for p in x for q in y) / 25
        for x, y, w in zip(a, b, width, strict=True)
    ]
    assert_allclose(moment_matching.squared_mmd(a, b, width), want, rtol=1e-6)
    gradient = jax.grad(lambda a: moment_matching.squared_mmd(a, a, width).sum())(jnp.asarray(a))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("target", ["own", "averaged"])
def test_loss_and_gradient_are_the_papers(x64, target):
    """In DDIM's terms on the rectified path; the gradient by differences of one side."""
    theta, of_average, gap, groups = 0.2, 0.05, 0.2, 32
    params = {"own": consistency.online_target, "averaged": consistency.ema_target}[target]
    model = toy.two_time_model(bump=WAVY)
    loss = _loss(model, target=params, weight=moment_matching.imm_weight(4.0, 2))
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.float64(theta), of_average)

    here, x0 = model.process, _batch()["image"]
    keys = jax.random.split(jax.random.key(1), 7)
    now, end = two_times.uniform_end(proposals.uniform())(keys[3], groups, here)
    eps = jax.random.normal(keys[4], x0.shape, x0.dtype)
    t, s = now.t, end.t
    r = jnp.maximum(t - gap, s)
    row = lambda a: jnp.repeat(a, 8)
    column = lambda a: row(a)[:, None]
    x_t = column(1 - t) * x0 + column(t) * eps
    # DDIM(x_t, x0; r) of their equation 3.
    x_r = column((1 - r) - r / t * (1 - t)) * x0 + column(r / t) * x_t
    lam = 2 * jnp.log((1 - t) / t)
    weight = 0.5 * jax.nn.sigmoid(4.0 - lam) * 2 / (t * (1 - t)) * (1 - t) ** 2
    weight = weight / ((1 - t) ** 2 + t**2)

    def f(theta, x, t):
        p = oracles.average(toy.gaussian(), x, here.at(row(t)), here.at(row(s)))
        velocity = p.eps - p.x0 + theta * WAVY(x)
        return (x + column(s - t) * velocity).reshape(groups, 8, 2)

    @jax.jit
    def written(theta, of_target):
        a, b = f(theta, x_t, t), f(of_target, x_r, r)
        return jnp.mean(weight * moment_matching.squared_mmd(a, b, t - s))

    of_target = theta if target == "own" else of_average
    assert np.isfinite([value, gradient]).all()
    assert_allclose(value, written(theta, of_target), rtol=1e-6)
    h = 1e-5
    slope = (written(theta + h, of_target) - written(theta - h, of_target)) / (2 * h)
    assert_allclose(gradient, slope, rtol=1e-5)


def test_with_the_same_noise_the_truth_is_the_minimum_in_the_mean(x64):
    """Of many particles and a small gap, as pairs i = i and the gap pull by themselves."""
    model = toy.two_time_model(bump=jnp.tanh)
    recipe = moment_matching.moment_matching(
        model, lambda *a: {}, moment_matching.less_time(0.05), 64, weight=ONE,
    )  # fmt: skip

    @jax.jit
    def gradients(theta):
        def one(key):
            x_key, loss_key = jax.random.split(key)
            batch = {"image": oracles.sample(x_key, toy.gaussian(), 2048)}
            loss = lambda theta: recipe.loss({"net": theta}, toy.context(), batch, loss_key)[0]
            return jax.grad(loss)(theta)

        return jax.lax.map(one, jax.random.split(jax.random.key(0), 16))

    of = lambda theta: np.asarray(gradients(jnp.float64(theta)))
    at_truth = of(0.0)
    error = at_truth.std() / np.sqrt(len(at_truth))
    assert abs(at_truth.mean()) < 4 * error, (at_truth.mean(), error)
    for theta in (-0.3, 0.3):
        assert of(theta).mean() * np.sign(theta) > 8 * error, (of(theta).mean(), error)


@pytest.mark.parametrize("name", ["flow", "v", "edm"])
def test_c_out_is_how_far_the_network_moves_x(x64, name):
    row = targets.TARGETS[name]()
    x = jnp.array([[0.3, -0.4], [1.0, 0.5]])
    for path in ("rectified", "vp"):
        here = toy.rectified(path)
        now, end = here.at(jnp.array([0.9, 0.4])), here.at(jnp.array([0.2, 0.1]))

        def moved(out, now=now, end=end):
            return moment_matching.transfer(
                targets.predict(row, jnp.full((2, 2), out), x, now), end
            )

        got = moment_matching.c_out(row, now, end)
        assert_allclose(got, jax.jvp(moved, (0.0,), (1.0,))[1][:, 0], rtol=1e-9)
        if (path, name) == ("rectified", "flow"):
            assert_allclose(got, end.t - now.t, rtol=1e-9)


def test_middle_levels_are_as_stated(x64):
    here = Process(schedules.edm(), process.vp)
    s = lambda level: np.asarray(level.sigma / level.alpha)
    now, end = here.at(jnp.array([0.9, 0.5, 0.2])), here.at(jnp.array([0.1, 0.4, 0.19]))
    r = moment_matching.less_noise(0.3)(here, now, end)
    assert_allclose(s(r), np.maximum(s(now) - 0.3, s(end)), rtol=1e-6)
    assert s(r)[0] > s(end)[0] and r.t[2] == end.t[2]
    r = moment_matching.less_time(0.15)(here, now, process.clean(end))
    assert_allclose(r.t, [0.75, 0.35, 0.05], atol=1e-6)


def test_groups_share_their_levels_and_must_fill_the_batch():
    seen = []

    def net(params, x, time, cond, key=None):
        seen.append((time, cond["end"]))
        return jnp.zeros_like(x)

    here = toy.rectified()
    batch, model = {"image": jnp.zeros((12, 2))}, toy.model_of(net, here, targets.flow())

    def loss(particles):
        recipe = moment_matching.moment_matching(
            model, lambda *a: {}, moment_matching.less_time(0.1), particles
        )
        return recipe.loss({"net": {}}, toy.context(), batch, jax.random.key(0))

    loss(4)
    for each in (*seen[0], *seen[1]):
        groups = np.asarray(each).reshape(3, 4)
        assert (groups == groups[:, :1]).all() and len(np.unique(groups)) == 3
    with pytest.raises(ValueError, match="particles=5 must divide the batch of 12"):
        loss(5)


@pytest.mark.whole
def test_points_in_one_and_two_steps():
    """From scratch, without a teacher."""
    net, init = toy.mlp(scalars=("end",))
    model = toy.flow_model(net)
    times = two_times.uniform_end(proposals.uniform(), 0.25)
    recipe = moment_matching.moment_matching(
        model,
        init,
        moment_matching.less_time(0.1),
        16,
        times,
        weight=lambda here, now: jnp.ones_like(now.t),
    )
    params = toy.train(recipe, 800, rate=4e-3)
    one, two = toy.distances_in(model, params, (1.0, 0.0), (1.0, 0.5))
    plain = toy.distance_of_the_mean()
    print(one, two, plain)
    assert one < 0.1 and two < 0.1 and one < 0.25 * plain, (one, two, plain)
