"""Continuous-time consistency: tangent, minimum, both velocities, every path; and points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from numpy.testing import assert_allclose

from diffusion_jax.core import flow_maps, oracles, process, proposals, schedules, targets
from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.recipes.few_step import continuous_consistency

pytestmark = pytest.mark.optimized  # its students are trained

SD = 0.5
GAUSSIAN = ([1.0], [[0.4, -0.2]], [[[0.3, 0.1], [0.1, 0.2]]])


def _data():
    return oracles.mixture(*GAUSSIAN)


def _edm(path="ve"):
    return Process(schedules.edm(), process.PATHS[path])


def _to_clean(x, level, cond):
    return oracles.average(_data(), x, level, process.clean(level))


TEACHER = continuous_consistency.teacher_velocity(
    lambda frozen, cond: lambda x, level: oracles.predict(_data(), x, level)
)
CURVED = lambda x: jnp.sin(3 * x) + 0.5 * x[:, ::-1] ** 2 / (1 + jnp.sum(x**2, -1, keepdims=True))


def _model(path="ve", target=None, bump=jnp.ones_like):
    here, row = _edm(path), target or targets.trigflow(SD)
    return toy.model_of(toy.oracle_net(here, row, _to_clean, bump), here, row)


def _recipe(model, velocity=TEACHER, **options):
    options = {"warm_up": 0, "sigma_data": SD, **options}
    return continuous_consistency.continuous_consistency(
        model, lambda *a: {}, velocity, proposals.log_normal(-0.8, 1.0), **options
    )


def _loss(recipe, n=256, key=1, step=0):
    batch = {"image": oracles.sample(jax.random.key(4), _data(), n)}
    kernel = {"kernel": jnp.zeros(8)}

    @jax.jit
    def loss(theta, weight=kernel, step=step):
        params = {"net": theta, "weight": weight}
        return recipe.loss(params, toy.context(step), batch, jax.random.key(key))[0]

    return loss


@pytest.mark.parametrize("path", ["ve", "vp", "rectified"])
def test_the_tangent_is_the_slope_of_f_along_the_flow(x64, path):
    """cos t·df/dt of a curved network by finite differences along the exact trajectory."""
    here, data = _edm(path), _data()
    mix = lambda level: jnp.tanh(level.log_snr / 3)[:, None]

    def network(x, level):
        y = x / jnp.hypot(level.sigma, SD * level.alpha)[:, None]
        return CURVED(y) * mix(level) + 0.3 * y

    t = jnp.array([0.1, 0.4, 0.9, 1.3, 1.5])
    level_of = lambda t: here.at_log_snr(-2 * jnp.log(SD * jnp.tan(t)))
    level = level_of(t)
    x = jax.random.normal(jax.random.key(0), (5, 2)) * jnp.hypot(level.sigma, level.alpha)[:, None]

    def f(t_new):
        to = level_of(t_new)
        moved = oracles.flow_map(data, x, level, to)
        x_t = SD * moved / jnp.hypot(to.sigma, SD * to.alpha)[:, None]
        return jnp.cos(t_new)[:, None] * x_t - jnp.sin(t_new)[:, None] * SD * network(moved, to)

    h = 1e-5
    want = jnp.cos(t)[:, None] * (f(t + h) - f(t - h)) / (2 * h)
    true = oracles.predict(data, x, level)
    rate = SD * targets.express(targets.trigflow(SD), true.x0, true.eps, level)
    now, g = continuous_consistency.tangent(network, here, x, level, rate, SD)
    assert_allclose(now, network(x, level), rtol=1e-10)
    assert_allclose(g, want, rtol=1e-5, atol=1e-8)
    # r leaves out all but -cos² t·(sd·F - dx/dt).
    _, steady = continuous_consistency.tangent(network, here, x, level, rate, SD, 0.0)
    assert_allclose(steady, -(jnp.cos(t)[:, None] ** 2) * (SD * now - rate), rtol=1e-9)


def test_trigflow_is_what_the_paper_says(x64):
    """f = cos t·x_t - sin t·sd·F on every path, and the conversion of targets into it."""
    t = jnp.array([0.2, 0.8, 1.4])
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4))
    cos, sin = jnp.cos(t)[:, None], jnp.sin(t)[:, None]
    want = cos * eps - sin * x0 / SD
    for path in ("ve", "vp", "rectified", "subvp"):
        level = _edm(path).at_log_snr(-2 * jnp.log(SD * jnp.tan(t)))
        x = process.corrupt(x0, eps, level)
        assert_allclose(targets.express(targets.trigflow(SD), x0, eps, level), want, rtol=1e-9)
        for name in ("v", "eps", "x0", "flow", "edm"):
            row = targets.TARGETS[name]()
            out = targets.express(row, x0, eps, level)
            got = targets.convert(row, targets.trigflow(SD), jnp.tile(out, 2), x, level)
            assert_allclose(got, want, rtol=1e-7, atol=1e-9)
    level = _edm("vp").at_log_snr(-2 * jnp.log(jnp.tan(t)))
    as_v, as_trig = (
        targets.express(row, x0, eps, level) for row in (targets.v(), targets.trigflow(1.0))
    )
    assert_allclose(as_trig, as_v, rtol=1e-10)


@pytest.mark.parametrize(
    ("path", "target"), [("ve", targets.edm(SD)), ("vp", targets.v()), ("rectified", None)]
)
def test_the_flow_to_clean_data_is_the_minimum(x64, path, target):
    sign = -1.0 if path == "ve" else 1.0  # EDM's F is minus TrigFlow's: any sign will do
    model = _model(path, target, lambda x: sign * jnp.ones_like(x))
    loss = _loss(_recipe(model))
    toy.assert_truth_is_the_minimum(loss, fixed=1e-15, slope=1e-7)


def test_the_loss_is_one_on_every_path(x64):
    values = []
    for path in ("ve", "vp", "rectified"):
        here = _edm(path)

        def net(params, x, time, cond, key=None, here=here):
            level = here.at_log_snr(time)
            y = x / jnp.hypot(level.sigma, SD * level.alpha)[:, None]
            return params["net"] * CURVED(y)

        loss = _loss(_recipe(toy.model_of(net, here, targets.trigflow(SD))))
        values.append(jax.value_and_grad(loss)(jnp.float64(0.7)))
    for other in values[1:]:
        assert_allclose(other, values[0], rtol=1e-8)


def test_the_gradient_is_minus_twice_the_tangent(x64):
    """-2/D·E[normalised g · dF/dθ]: F⁻ and g are constants, whatever θ is."""
    theta, key = jnp.float64(0.4), jax.random.key(1)
    model = _model(bump=CURVED)
    got = jax.grad(_loss(_recipe(model)))(theta)
    keys = jax.random.split(key, 6)
    x0 = oracles.sample(jax.random.key(4), _data(), 256)
    level, _ = proposals.log_normal(-0.8, 1.0).draw(keys[3], 256, model.process, ())
    x = process.corrupt(x0, jax.random.normal(keys[4], x0.shape, x0.dtype), level)
    true = oracles.predict(_data(), x, level)
    rate = SD * targets.express(targets.trigflow(SD), true.x0, true.eps, level)
    network = lambda x, level: model.net({"net": theta}, x, level.log_snr, {})
    _, g = continuous_consistency.tangent(network, model.process, x, level, rate, SD)
    unit = g / (jnp.linalg.norm(g, axis=1, keepdims=True) + 0.1)
    assert_allclose(got, -2 * jnp.mean(unit * CURVED(x)), rtol=1e-8)
    assert abs(got) > 1e-3


def test_training_has_the_mean_gradient_of_distillation(x64):
    """dx_t/dt enters the tangent linearly; a large c leaves the normalisation linear too."""
    gradients = []
    for velocity in (TEACHER, continuous_consistency.data_velocity()):
        recipe = _recipe(_model(bump=jnp.sin), velocity, c=1e6)

        @jax.jit
        def gradient(key, recipe=recipe):
            x_key, loss_key = jax.random.split(key)
            batch = {"image": oracles.sample(x_key, _data(), 4096)}
            params = lambda theta: {"net": theta, "weight": {"kernel": jnp.zeros(8)}}
            loss = lambda theta: recipe.loss(params(theta), toy.context(), batch, loss_key)[0]
            return 1e6 * jax.grad(loss)(jnp.float64(0.5))

        gradients.append(jax.lax.map(gradient, jax.random.split(jax.random.key(0), 32)))
    gap = np.asarray(gradients[0] - gradients[1])
    error = gap.std() / np.sqrt(len(gap))
    assert abs(gap.mean()) < 4 * error
    assert error < 0.05 * abs(np.mean(gradients[0]))


def test_the_weight_learns_the_log_of_the_error_and_r_warms_up(x64):
    model = _model(bump=CURVED)
    both = jax.jit(jax.value_and_grad(_loss(_recipe(model, warm_up=100)), argnums=(0, 1)))
    theta, zero = jnp.float64(0.4), {"kernel": jnp.zeros(8)}
    done, (slope, of_kernel) = both(theta, zero, jnp.int32(100))
    # Of L/e^u + u at u = 0 the slope in u is 1 - L: downhill by a step along it, to first order.
    of_kernel = of_kernel["kernel"]
    size = jnp.linalg.norm(of_kernel)
    moved, (smaller, _) = both(theta, {"kernel": -1e-5 * of_kernel / size}, jnp.int32(100))
    assert_allclose((moved - done) / 1e-5, -size, rtol=1e-3)
    assert size > 1e-3 and smaller != slope

    steps = [float(both(theta, zero, jnp.int32(s))[1][0]) for s in (0, 50, 100, 500)]
    assert steps[2] == steps[3] and len(set(steps)) == 3
    at_once = jax.jit(jax.grad(_loss(_recipe(model))))(theta)
    assert_allclose(steps[2], at_once, rtol=1e-10)


POINTS = {
    "sCD": continuous_consistency.teacher_velocity(lambda frozen, cond: _toy_denoise),
    "sCT": continuous_consistency.data_velocity(),
}


def _toy_denoise(x, level):
    return oracles.predict(toy.data(), x, level)


@pytest.mark.whole
@pytest.mark.parametrize("name", POINTS)
def test_points_in_one_and_two_steps(name):
    here = _edm()
    net, init = toy.mlp()
    model = toy.edm_model(net, here)
    proposal = proposals.log_normal(-0.8, 1.6)
    recipe = continuous_consistency.continuous_consistency(
        model, init, POINTS[name], proposal, SD, 300
    )
    params = toy.train(recipe, 1500)
    student = flow_maps.to_clean(lambda x, level: targets.denoiser(model, params)(x, level, {}))
    times = lambda *s: here.at_log_snr(-2 * jnp.log(jnp.array(s)))
    one = toy.distance(toy.draw(student, SOLVERS["jump"](here, 1.0), times(80.0)))
    two = toy.distance(toy.draw(student, SOLVERS["jump"](here, 1.0), times(80.0, 0.6)))
    plain = toy.distance(toy.draw(_toy_denoise, SOLVERS["ddim"](), times(80.0)))
    print(name, one, two, plain)
    assert one < 0.12 and two < 0.12 and one < 0.35 * plain, (one, two, plain)
