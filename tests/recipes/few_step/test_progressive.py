"""Progressive and guidance distillation compared with the teacher, step for step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from numpy.testing import assert_allclose

from diffusion_jax.core import (
    grids,
    losses,
    oracles,
    process,
    proposals,
    schedules,
    targets,
    weighting,
)
from diffusion_jax.core.guidance import condition
from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers import ddim
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Prediction
from diffusion_jax.recipes.diffusion import diffusion, regression
from diffusion_jax.recipes.few_step import teachers
from diffusion_jax.recipes.few_step.guidance_distillation import guidance_distillation
from diffusion_jax.recipes.few_step.progressive import draw_student_step, progressive

pytestmark = pytest.mark.optimized  # its students are trained

N = 3


def _mixture():
    return oracles.mixture([1, 2], [[-0.8, 0.3], [0.6, -0.4]], [0.1, 0.2])


def _batch(n=64):
    x = oracles.sample(jax.random.key(4), _mixture(), n)
    return {"image": x, "label": jnp.arange(n) % 2}


def two_half_steps(here, n):
    """The x0 of algorithm 2, written out from the paper, as the truth of a network of one time."""

    def ddim_step(x, now, end):
        x0, eps, _ = oracles.predict(_mixture(), x, now)
        return end.alpha[:, None] * x0 + end.sigma[:, None] * eps

    def truth(x, now, cond):
        t = jnp.round(now.t * n) / n
        last = t < 1.5 / n
        middle, end = here.at(t - 0.5 / n), here.at(jnp.where(last, 0.5, t - 1 / n))
        end = jax.tree.map(lambda a, c: jnp.where(last, c, a), end, process.clean(end))
        x_end = ddim_step(ddim_step(x, now, middle), middle, end)
        shrink = (end.sigma / now.sigma)[:, None]
        x0 = (x_end - shrink * x) / (end.alpha[:, None] - shrink * now.alpha[:, None])
        return Prediction(x0, (x - now.alpha[:, None] * x0) / now.sigma[:, None])

    return truth


@pytest.mark.parametrize("path", ["vp", "rectified"])
@pytest.mark.parametrize("target", ["v", "x0"])
def test_the_truth_is_the_secant_of_two_teacher_steps(x64, path, target):
    here = Process(schedules.cosine(), process.PATHS[path])
    row = targets.TARGETS[target]()
    model = toy.model_of(toy.oracle_net(here, row, two_half_steps(here, N)), here, row)
    teacher = lambda frozen, cond: lambda x, level: oracles.predict(_mixture(), x, level)
    recipe = progressive(model, teacher, lambda *a: {})
    frozen = {"steps": jnp.int32(N)}
    loss = lambda theta: recipe.loss(
        {"net": theta}, toy.context(frozen=frozen), _batch(), jax.random.key(0)
    )[0]
    toy.assert_truth_is_the_minimum(loss)
    # And of another N it is not: it is N that says which steps.
    other = recipe.loss(
        {"net": jnp.float64(0)},
        toy.context(frozen={"steps": jnp.int32(N - 1)}),
        _batch(),
        jax.random.key(0),
    )[0]
    assert other > 1e-6


def test_the_loss_is_the_weighted_error_of_x0(x64):
    """max(SNR, 1)·(theta·bump)² for a network of x0, with the levels of the same key."""
    here, row = Process(schedules.cosine(), process.vp), targets.x0()
    truth = two_half_steps(here, N)
    net = toy.oracle_net(here, row, truth, bump=jnp.ones_like)
    teacher = lambda frozen, cond: lambda x, level: oracles.predict(_mixture(), x, level)
    recipe = progressive(toy.model_of(net, here, row), teacher, lambda *a: {})
    key, frozen = jax.random.key(3), {"steps": jnp.int32(N)}
    got = recipe.loss({"net": jnp.float64(0.1)}, toy.context(frozen=frozen), _batch(), key)[0]
    now, _, _ = draw_student_step(jax.random.split(key, 7)[3], 64, here, jnp.int32(N))
    want = jnp.mean(0.01 * jnp.maximum((now.alpha / now.sigma) ** 2, 1))
    assert_allclose(got, want, rtol=1e-8)


def test_another_distance_is_of_f_times_the_root_of_its_weight(x64):
    here, row = Process(schedules.cosine(), process.vp), targets.x0()
    net = toy.oracle_net(here, row, two_half_steps(here, N), bump=jnp.ones_like)
    teacher = lambda frozen, cond: lambda x, level: oracles.predict(_mixture(), x, level)
    recipe = progressive(
        toy.model_of(net, here, row), teacher, lambda *a: {}, distance=losses.absolute()
    )
    key, frozen = jax.random.key(3), {"steps": jnp.int32(N)}
    got = recipe.loss({"net": jnp.float64(0.1)}, toy.context(frozen=frozen), _batch(), key)[0]
    now, _, _ = draw_student_step(jax.random.split(key, 7)[3], 64, here, jnp.int32(N))
    assert_allclose(got, jnp.mean(0.1 * jnp.maximum(now.alpha / now.sigma, 1)), rtol=1e-8)


def test_steps_are_those_of_the_trailing_grid_for_any_n():
    here = Process(schedules.cosine(), process.vp)
    drawn = jax.jit(lambda n: draw_student_step(jax.random.key(0), 400, here, n))
    for n in (1, 2, 4):
        now, middle, end = drawn(jnp.int32(n))
        fine = np.append(np.asarray(grids.trailing(here, 2 * n).t), 0.0)
        steps = {(float(fine[2 * k]), float(fine[2 * k + 1]), float(fine[2 * k + 2])) for k in
                 range(n)}  # fmt: skip
        got = {tuple(np.round(row, 5).tolist()) for row in zip(now.t, middle.t, end.t, strict=True)}
        assert got == {tuple(np.round(row, 5).tolist()) for row in steps}
        assert (end.sigma[end.t == 0] == 0).all()
    assert drawn._cache_size() == 1


def test_a_guided_teacher_is_matched_at_every_scale(x64):
    here, row = Process(schedules.cosine(), process.vp), targets.v()
    data = _mixture()

    def guided(x, level, cond):
        w = cond["guidance_scale"][:, None]
        own = oracles.denoiser(data)(x, level, {"label": cond["label"]})
        null = oracles.predict(data, x, level)
        return Prediction(*(n + w * (c - n) for c, n in zip(own[:2], null[:2], strict=True)))

    def plain(params, x, time, cond, key=None):
        assert "guidance_scale" not in cond
        level = here.at_log_snr(time)
        return targets.express(row, *oracles.denoiser(data)(x, level, cond)[:2], level)

    student = toy.model_of(toy.oracle_net(here, row, guided), here, row, labels=True)
    teacher = teachers.guided(toy.model_of(plain, here, row, labels=True))
    recipe = guidance_distillation(
        student,
        teacher,
        lambda *a: {},
        proposals.uniform(),
        extra_cond=teachers.guidance_scales(1.0, 4.0),
    )
    frozen = {"teacher": {"net": {}}, "steps": jnp.int32(2)}
    loss = lambda theta: recipe.loss(
        {"net": theta}, toy.context(frozen=frozen), _batch(), jax.random.key(0)
    )[0]
    toy.assert_truth_is_the_minimum(loss)

    # Stage two: the student is a teacher that is told the scale.
    seen = []

    def told(params, x, time, cond, key=None):
        seen.append(cond["guidance_scale"])
        return jnp.zeros_like(x)

    both = toy.model_of(told, here, row, labels=True)
    second = progressive(
        both, teachers.unguided(both), lambda *a: {}, extra_cond=teachers.guidance_scales(2.0, 3.0)
    )
    second.loss({"net": 0.0}, toy.context(frozen=frozen), _batch(), jax.random.key(0))
    assert len(seen) == 3 and all((s >= 2).all() and (s <= 3).all() for s in seen)
    assert_allclose(seen[0], seen[-1])
    made = guidance_distillation(
        both, teacher, lambda key, x, cond: cond, proposals.uniform()
    ).init(jax.random.key(0), _batch())
    assert set(made["net"]) == {"label", "guidance_scale"}


def test_scales_in_the_wrong_order_are_named():
    with pytest.raises(ValueError, match=r"from 5.0 to 1.0"):
        teachers.guidance_scales(5.0, 1.0)


@pytest.mark.whole
def test_points_in_four_two_and_one_steps():
    """Trained from scratch: the teacher, then students of 8, 4, 2 and 1 steps, one program."""
    here = Process(schedules.cosine(), process.vp)
    net, init = toy.mlp()
    model = toy.v_model(net, here)
    first = diffusion(model, init, proposals.uniform(), [regression(weighting.simple())])
    params = {"net": toy.train(first, 1000)["net"]}
    far = lambda params, n: toy.distance(
        toy.draw(condition(denoiser(model, params), {}), ddim(), grids.trailing(here, n))
    )
    teacher, plain = far(params, 16), {n: far(params, n) for n in (1, 4)}
    recipe = progressive(model, teachers.unguided(model), init)
    got, before = {}, toy._run._cache_size()
    for n in (8, 4, 2, 1):
        frozen = {"teacher": params, "steps": jnp.int32(n)}
        params = toy.train(recipe, 150, frozen, start_from=params, rate=1e-3)
        got[n] = far(params, n)
    assert toy._run._cache_size() == before + 1  # one program for all stages
    assert got[4] < 2 * teacher and got[1] < 3 * teacher, (teacher, got)
    assert got[1] < 0.5 * plain[1] and got[4] < plain[4], (plain, got)
