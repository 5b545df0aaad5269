"""Reflow of a Gaussian, whose second flow is known and straight; straightness; and points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from numpy.testing import assert_allclose

from diffusion_jax.core import (
    flow_maps,
    grids,
    losses,
    oracles,
    process,
    proposals,
    targets,
    weighting,
)
from diffusion_jax.core.guidance import condition
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Prediction
from diffusion_jax.recipes.few_step import reflow

DDIM, HEUN = SOLVERS["ddim"](), SOLVERS["heun"]()


def _clean_of(eps):
    """Where the Gaussian's flow takes pure noise."""
    noise = toy.rectified().at(jnp.float64(1.0))
    return oracles.flow_map(toy.gaussian(), eps, noise, process.clean(noise))


def _straight(x, level, cond):
    """The denoiser of the pairs (noise, its end), since x = alpha·(m + A·eps) + sigma·eps is
    one to one."""
    mean = _clean_of(jnp.zeros((1, 2)))[0]
    a = _clean_of(jnp.eye(2)) - mean  # symmetric
    of = lambda c: c[:, None, None]
    whole = of(level.alpha) * a + of(level.sigma) * jnp.eye(2)
    eps = jnp.linalg.solve(whole, (x - level.alpha[:, None] * mean)[..., None])[..., 0]
    return Prediction(mean + eps @ a, eps)


def _exact_jump(frozen, cond):
    """One step from noise: the x0 of the jump to clean data."""
    return lambda x, level: oracles.average(toy.gaussian(), x, level, process.clean(level))


def _loss(coupling, path="rectified", target="flow", weight=None):
    model = toy.two_time_model(path, target, truth=_straight)
    recipe = reflow.reflow(model, lambda *a: {}, coupling, proposals.uniform(), weight)
    eps = jax.random.normal(jax.random.key(3), (256, 2))
    batch = {"image": _clean_of(eps), "noise": eps}
    return lambda theta: recipe.loss({"net": theta}, toy.context(), batch, jax.random.key(1))[0]


@pytest.mark.parametrize("pairs", ["given", "solved"])
@pytest.mark.parametrize(("path", "target"), [("rectified", "flow"), ("vp", "v")])
def test_the_straight_flow_is_the_minimum(x64, pairs, path, target):
    noise = toy.rectified(path).at(jnp.ones((1,)))
    couplings = {
        "given": reflow.pairs_from_batch(),
        "solved": reflow.pairs_from_teacher(_exact_jump, DDIM, noise),
    }
    toy.assert_truth_is_the_minimum(_loss(couplings[pairs], path, target))


def test_the_loss_is_the_weighted_error_of_the_velocity(x64):
    level = toy.rectified().at(
        jax.random.uniform(
            jax.random.split(jax.random.key(1), 6)[3], (256,), minval=1e-6, maxval=1.0
        )
    )
    got = _loss(reflow.pairs_from_batch(), weight=weighting.mse("x0"))(jnp.float64(0.1))
    assert_allclose(got, 0.01 * jnp.mean(level.sigma**2), rtol=1e-8)


def test_a_distance_stands_for_the_square(x64):
    model = toy.two_time_model("rectified", "flow", truth=_straight)
    recipe = reflow.reflow(
        model,
        lambda *a: {},
        reflow.pairs_from_batch(),
        proposals.u_shaped(),
        distance=losses.absolute(),
    )
    eps = jax.random.normal(jax.random.key(3), (256, 2))
    batch = {"image": _clean_of(eps), "noise": eps}
    loss = lambda theta: recipe.loss({"net": theta}, toy.context(), batch, jax.random.key(1))[0]
    assert_allclose(loss(jnp.float64(0.1)), 0.1, rtol=1e-8)
    assert loss(jnp.float64(0.0)) < 1e-12


def test_pairs_from_teacher_are_its_samples(x64):
    """Heun's of many steps, with the condition and the frozen parameters handed on."""

    def teacher(frozen, cond):
        assert set(cond) == {"label"}
        exact = toy.gaussian_teacher(frozen, cond)
        return lambda x, level: Prediction(*(frozen["one"] * p for p in exact(x, level)[:2]))

    here = toy.rectified()
    coupling = reflow.pairs_from_teacher(teacher, HEUN, here.at(jnp.linspace(1.0, 1e-4, 65)))
    cond, zeros = {"label": jnp.zeros(64, int)}, jnp.zeros((64, 2))
    x0, eps = jax.jit(coupling)(jax.random.key(0), {"one": 1.0}, cond, {}, zeros)
    assert_allclose(x0, _clean_of(eps), atol=2e-3)
    assert abs(eps.mean()) < 0.3 and abs(eps.std() - 1) < 0.2


@pytest.mark.parametrize("path", ["rectified", "vp"])
def test_straightness_of_a_gaussian_is_its_integral(x64, path):
    """z = r(t)·z_1 with r² = (1 - t)²·c + t²: E = ∫ r'² dt - (1 - sqrt c)²; the second flow's 0."""
    c, here = 0.04, toy.rectified(path)
    data = oracles.mixture([1.0], [[0.0, 0.0]], [c])
    levels = toy.rectified().at(jnp.linspace(1.0, 1e-3, 400))
    levels = here.at_log_snr(levels.log_snr)
    x = jax.random.normal(jax.random.key(0), (16, 2))
    x = x * (levels.alpha[0] + levels.sigma[0])
    run = jax.jit(lambda f: reflow.straightness(jax.random.key(0), HEUN, f, x, levels),
                  static_argnums=0)  # fmt: skip
    t = np.linspace(0, 1, 20_001)
    rate = ((t - c * (1 - t)) / np.sqrt((1 - t) ** 2 * c + t**2)) ** 2
    want = np.trapezoid(rate, t) - (1 - np.sqrt(c)) ** 2
    got = run(lambda x, level: oracles.predict(data, x, level))
    assert_allclose(got, want * np.mean(np.asarray(x) ** 2, -1), rtol=0.02)

    row = lambda level: jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (16,)), level)
    assert run(lambda x, level: _straight(x, row(level), {})).max() < 1e-20


@pytest.mark.whole
def test_points_become_straight():
    """From scratch on pairs of the exact flow: how straight it is, one step and two."""
    here = toy.rectified()
    net, init = toy.mlp()
    model = toy.flow_model(net)
    exact = lambda x, level: oracles.predict(toy.data(), x, level)
    coupling = reflow.pairs_from_teacher(lambda frozen, cond: exact, DDIM, grids.trailing(here, 16))
    recipe = reflow.reflow(model, init, coupling, proposals.uniform())
    params = toy.train(recipe, 800, rate=4e-3)
    student = condition(targets.denoiser(model, params), {})

    @jax.jit
    def measure(key):
        x = jax.random.normal(key, (4096, 2))
        levels, noise, half = here.at(jnp.linspace(1.0, 1 / 16, 16)), here.at(1.0), here.at(0.5)
        bent = [
            reflow.straightness(key, DDIM, denoise, x, levels).mean()
            for denoise in (student, exact)
        ]
        one = student(x, noise)
        return bent, one.x0, student(flow_maps.transfer(one, half), half).x0

    (bent, before), one, two = measure(jax.random.key(9))
    one, two, plain = toy.distance(one), toy.distance(two), toy.distance_of_the_mean()
    print(one, two, plain, bent, before)
    assert bent < 0.1 * before and max(one, two) < 0.1 and one < 0.25 * plain
