"""Consistency losses where the flow is known: minimum, gradient, levels, weights; and on points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from numpy.testing import assert_allclose

from diffusion_jax.core import ema, flow_maps, losses, oracles, process, schedules, targets
from diffusion_jax.core.bounds import clip_to, no_clip
from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Solver
from diffusion_jax.recipes.few_step import consistency, level_pairs

pytestmark = pytest.mark.optimized  # its students are trained

GAUSSIAN = ([1.0], [[0.4, -0.2]], [[[0.3, 0.1], [0.1, 0.2]]])
DDIM, HEUN = SOLVERS["ddim"](), SOLVERS["heun"]()


def _data():
    return oracles.mixture(*GAUSSIAN)


def _edm(path="ve"):
    return Process(schedules.edm(), process.PATHS[path])


def _to_clean(x, level, cond):
    """The consistency function of the Gaussian."""
    return oracles.average(_data(), x, level, process.clean(level))


def _exact_teacher(frozen, cond):
    return lambda x, level: oracles.predict(_data(), x, level)


# A solver that follows the flow without error.
EXACT = Solver(
    lambda x: (),
    lambda key, denoise, x, now, nxt, state: (oracles.flow_map(_data(), x, now, nxt), state),
)


def _recipe(setting, path="ve", target="edm", bump=lambda x: jnp.cos(2 * x), clip=no_clip):
    here, row = _edm(path), targets.TARGETS[target]()
    model = toy.model_of(toy.oracle_net(here, row, _to_clean, bump), here, row)
    return consistency.consistency(model, lambda *a: {}, setting, clip=clip)


def _loss(recipe, n=256, key=1, step=0):
    batch = {"image": oracles.sample(jax.random.key(4), _data(), n)}

    @jax.jit
    def loss(theta, target=0.0):
        context = toy.context(step, {"net": jnp.asarray(target, jnp.float64)})
        return recipe.loss({"net": theta}, context, batch, jax.random.key(key))[0]

    return loss


def _distilled(solver, levels=18, target=consistency.ema_target):
    setting = consistency.distillation(_exact_teacher, levels=levels)
    return setting._replace(
        transition=consistency.teacher_step(_exact_teacher, solver), target=target
    )


@pytest.mark.parametrize(
    ("path", "target"), [("ve", "edm"), ("vp", "v"), ("rectified", "x0"), ("vp", "eps")]
)
def test_the_flow_to_clean_data_is_the_minimum_of_distillation(x64, path, target):
    toy.assert_truth_is_the_minimum(_loss(_recipe(_distilled(EXACT), path, target)))


@pytest.mark.parametrize(("solver", "order"), [(DDIM, 2), (HEUN, 3)])
def test_with_a_solver_the_minimum_is_as_near_as_its_step_is(x64, solver, order):
    """One step errs by h^(order), the squared loss by its square."""
    value = lambda n: float(_loss(_recipe(_distilled(solver, n)), 2000)(jnp.float64(0.0)))
    slope = np.log2(value(65) / value(129)) / 2
    assert abs(slope - order) < 0.25, slope


def test_clipping_ignores_errors_beyond_the_range(x64):
    """f of the student is off by theta everywhere, but clipped to the range."""
    of = lambda high: _loss(
        _recipe(_distilled(EXACT), clip=clip_to(-9.0, high), bump=jnp.ones_like)
    )
    theta, far = jnp.float64(0.3), -4.0  # below all of the data, so that all is shown as -4
    assert float(of(far)(theta)) == 0.0 and float(jax.grad(of(far))(theta)) == 0.0
    assert_allclose(of(9.0)(theta), _loss(_recipe(_distilled(EXACT), bump=jnp.ones_like))(theta))


def test_only_one_side_has_a_gradient(x64):
    """The same for the online target and for a moving average that equals it."""
    theta = jnp.float64(0.3)
    of_own = _loss(_recipe(_distilled(EXACT, target=consistency.online_target)))
    of_average = _loss(_recipe(_distilled(EXACT)))
    assert_allclose(of_own(theta), of_average(theta, theta), rtol=1e-12)
    gradient = jax.grad(of_own)(theta)
    h = 1e-5
    one_sided = (of_average(theta + h, theta) - of_average(theta - h, theta)) / (2 * h)
    two_sided = (of_own(theta + h) - of_own(theta - h)) / (2 * h)
    assert_allclose(gradient, one_sided, rtol=1e-7)
    assert abs(gradient - two_sided) > 0.1 * abs(gradient)
    assert float(jax.grad(lambda t: of_average(theta, t))(theta)) == 0.0


def test_training_has_the_mean_gradient_of_distillation(x64):
    """Song et al. 2023, theorem 2; exactly, where f is linear in x and the solver is DDIM."""
    count = level_pairs.constant(8)
    no_teacher = consistency.training(10)._replace(
        levels=level_pairs.uniform(count), target=consistency.online_target
    )
    teacher = _distilled(DDIM, 8, consistency.online_target)
    gradients = []
    for setting in (no_teacher, teacher):
        recipe = _recipe(setting, bump=lambda x: x)  # linear too

        @jax.jit
        def gradient(key, recipe=recipe):
            x_key, loss_key = jax.random.split(key)
            batch = {"image": oracles.sample(x_key, _data(), 4096)}
            loss = lambda theta: recipe.loss({"net": theta}, toy.context(), batch, loss_key)[0]
            return jax.grad(loss)(jnp.float64(0.2))

        gradients.append(jax.lax.map(gradient, jax.random.split(jax.random.key(0), 32)))
    gap = np.asarray(gradients[0] - gradients[1])
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))
    assert gap.std() / np.sqrt(len(gap)) < 0.05 * abs(np.mean(gradients[1]))


@pytest.mark.parametrize("name", ["squared", "absolute", "pseudo_huber"])
def test_the_loss_is_the_weighted_distance(x64, name):
    """f off by theta·(1, 1) at every point: w·d, of the levels that the key draws."""
    distance = losses.DISTANCES[name]()
    setting = consistency.improved(1000)._replace(
        transition=consistency.teacher_step(_exact_teacher, EXACT),
        distance=distance,
        target=consistency.ema_target,
    )
    got = _loss(_recipe(setting, target="x0", bump=jnp.ones_like))(jnp.float64(0.1))
    now, nxt = setting.levels(jax.random.split(jax.random.key(1), 7)[3], 256, _edm(), jnp.int32(0))
    c = 0.00054 * np.sqrt(2)
    d = {"squared": 0.01, "absolute": 0.1, "pseudo_huber": np.sqrt(0.02 + c**2) - c}[name]
    assert_allclose(got, d * np.mean(1 / (now.sigma - nxt.sigma)), rtol=1e-6)


def test_distances_near_zero():
    a, b = jnp.ones((3, 4)), jnp.ones((3, 4)) + 1e-4
    assert_allclose(losses.pseudo_huber(0.5)(a, b), 4e-8 / (np.sqrt(0.25 + 4e-8) + 0.5), rtol=1e-3)
    assert_allclose(losses.pseudo_huber(0.0)(a, b), 2e-4, rtol=1e-3)
    for c in (0.0, 0.1):
        gradient = jax.grad(lambda a, c=c: losses.pseudo_huber(c)(a, jnp.ones((3, 4))).sum())(a)
        assert (gradient == 0).all()


def test_numbers_of_levels_are_the_papers():
    root = jax.jit(jax.vmap(level_pairs.square_root(800, 2, 150)))(jnp.array([0, 200, 800, 900]))
    assert root.tolist() == [2, int(np.ceil(np.sqrt(0.25 * (151**2 - 4) + 4) - 1)) + 1, 151, 151]
    # K' = ⌊800/(7 + 1)⌋: eight stages of 100 steps.
    steps = jnp.array([0, 99, 100, 700, 799, 2000])
    doubled = jax.jit(jax.vmap(level_pairs.doubling(800)))(steps)
    assert doubled.tolist() == [11, 11, 21, 1281, 1281, 1281]
    rate = ema.averaged(consistency.ema_rate(level_pairs.square_root(800), 2, 0.9))
    state = rate.update(rate.init({"w": jnp.float32(0)}), {"w": jnp.float32(1)}, jnp.int32(0))
    assert_allclose(state["w"], 1 - 0.9, rtol=1e-5)  # μ(0) = μ0, as N(0) = s0
    # Later too, and by intervals as the authors' code has it: N(200) = 76 levels.
    at = lambda of, *given: float(of(level_pairs.square_root(800), *given)(jnp.int32(200)))
    assert_allclose(at(consistency.ema_rate, 3, 0.95), 1 - 0.95 ** (3 / 76), rtol=1e-4)
    assert_allclose(at(consistency.ema_rate), 1 - 0.9 ** (2 / 76), rtol=1e-4)
    for name, levels in (("consistency", 11), ("consistency_of_intervals", 10)):
        average = consistency.EMAS[name](90, 3, 20, 0.8)
        n = level_pairs.square_root(90, 3, 20)(jnp.int32(22))
        state = average.update({"w": jnp.float32(0)}, {"w": jnp.float32(1)}, jnp.int32(22))
        assert int(n) == 11
        assert_allclose(state["w"], 1 - 0.8 ** (3 / levels), rtol=1e-4)
    assert_allclose(at(consistency.ema_rate_of_intervals), 1 - 0.9 ** (2 / 75), rtol=1e-4)
    assert_allclose(at(consistency.ema_rate_of_intervals, 3, 0.95), 1 - 0.95 ** (3 / 75), rtol=1e-4)


def test_pairs_are_neighbours_on_the_grid_of_karras_as_often_as_stated():
    here, n = _edm(), 40_000
    key = jax.random.key(0)
    grid = (0.002 ** (1 / 7) + np.arange(11) / 10 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    for draw, mass in (
        (level_pairs.log_normal(level_pairs.doubling(100)), None),
        (level_pairs.uniform(level_pairs.constant(11)), np.full(10, 0.1)),
    ):
        now, nxt = jax.jit(lambda k, d=draw: d(k, n, here, jnp.int32(0)))(key)
        index = np.searchsorted(grid, np.asarray(nxt.sigma) * 1.001) - 1
        assert_allclose(nxt.sigma, grid[index], rtol=1e-3)
        assert_allclose(now.sigma, grid[index + 1], rtol=1e-3)
        if mass is None:  # equation 6, with erf
            z = (np.log(grid) + 1.1) / (np.sqrt(2) * 2.0)
            mass = np.diff(np.asarray(jax.scipy.special.erf(z)))
            mass = mass / mass.sum()
        share = np.bincount(index, minlength=10) / n
        assert (np.abs(share - mass) < 5 * np.sqrt(mass / n)).all()


def test_pairs_of_a_table_are_its_levels():
    here = Process(schedules.linear(), process.vp)
    now, nxt = level_pairs.uniform(level_pairs.constant(51))(
        jax.random.key(0), 500, here, jnp.int32(0)
    )
    low = np.round(np.asarray(nxt.t) * 1000)
    assert set(low) == {1, *range(20, 1000, 20)}
    assert_allclose(np.round(np.asarray(now.t) * 1000), np.where(low == 1, 20, low + 20))


def test_easing_closes_the_gap_by_stages():
    draw = jax.jit(
        lambda step: level_pairs.easing(100)(jax.random.key(0), 2000, _edm("rectified"), step)
    )
    for step, a in ((0, 1), (99, 1), (100, 2), (450, 5)):
        now, nxt = draw(jnp.int32(step))
        t, r = (np.asarray(level.sigma / level.alpha) for level in (now, nxt))
        want = np.maximum(t * (1 - (1 + 8 * np.exp(-t) / (1 + np.exp(-t))) / 2**a), 0)
        assert_allclose(r, want, rtol=1e-3, atol=1e-5)
        log_t = np.log(t)
        assert abs(log_t.mean() + 1.1) < 0.2 and abs(log_t.std() - 2) < 0.15
        assert ((r == 0).mean() > 0.3) == (a <= 2)
    assert draw._cache_size() == 1


def test_easing_from_clean_data_is_regression_on_it(x64):
    """In the first stage f at nxt = clean is x itself: the target is x0."""
    setting = consistency.easy(10**6)._replace(
        levels=lambda key, b, here, step: (lambda now: (now, process.clean(now)))(
            here.at(jnp.linspace(0.1, 0.9, b))
        ),
        distance=losses.squared(),
        weight=consistency.uniform_weight,
    )
    recipe = _recipe(setting, target="x0")
    key = jax.random.key(1)
    got = _loss(recipe)(jnp.float64(0.0))
    x0 = oracles.sample(jax.random.key(4), _data(), 256)
    eps = jax.random.normal(jax.random.split(key, 7)[4], x0.shape, x0.dtype)
    now = _edm().at(jnp.linspace(0.1, 0.9, 256))
    f = _to_clean(process.corrupt(x0, eps, now), now, {}).x0
    assert_allclose(got, jnp.mean((f - x0) ** 2), rtol=1e-10)


def test_both_sides_of_the_loss_have_one_dropout_mask(x64):
    keys = []

    def net(params, x, time, cond, key=None):
        keys.append(jax.random.key_data(key))
        return params["net"] * x

    model = toy.model_of(net, _edm(), targets.v())
    with jax.disable_jit():
        _loss(consistency.consistency(model, lambda *a: {}, consistency.improved(100)))(
            jnp.float64(0.5)
        )
    assert len(keys) == 2 and (keys[0] == keys[1]).all()


POINTS = {
    "distillation": (consistency.distillation(lambda frozen, cond: _toy_denoise, "heun"), 1000),
    "training": (consistency.training(1000, 2, 40), 1000),
    "improved": (consistency.improved(1000, 10, 80, 0.03), 1000),
    "easy": (consistency.easy(250, 2.0, 8.0, 1.0), 1500),
}


def _toy_denoise(x, level):
    return oracles.predict(toy.data(), x, level)


@pytest.mark.whole
@pytest.mark.parametrize("name", POINTS)
def test_points_in_one_and_two_steps(name):
    """From scratch, beside DDIM of the exact denoiser."""
    here = _edm()
    net, init = toy.mlp()
    model = toy.edm_model(net, here)
    setting, steps = POINTS[name]
    params = toy.train(consistency.consistency(model, init, setting), steps)
    student = flow_maps.to_clean(lambda x, level: targets.denoiser(model, params)(x, level, {}))
    times = lambda *s: here.at_log_snr(-2 * jnp.log(jnp.array(s)))
    one = toy.distance(toy.draw(student, SOLVERS["jump"](here, 1.0), times(80.0)))
    two = toy.distance(toy.draw(student, SOLVERS["jump"](here, 1.0), times(80.0, 0.6)))
    plain = toy.distance(toy.draw(_toy_denoise, DDIM, times(80.0)))
    print(name, one, two, plain)
    assert one < 0.12 and two < 0.12 and one < 0.35 * plain, (one, two, plain)
