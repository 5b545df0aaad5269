"""Students in use: image to image, inpainting and measurements, by exact maps of a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from numpy.testing import assert_allclose

from diffusion_jax.apps.plan import guided
from diffusion_jax.core import flow_maps, grids, oracles, sampling, targets
from diffusion_jax.core.guidance import agreeing, known, projected
from diffusion_jax.core.noise import white
from diffusion_jax.core.process import clean, corrupt
from diffusion_jax.core.solvers.jump import jump
from diffusion_jax.recipes.few_step import students

N = 20_000
HERE, ROW = toy.rectified("vp"), targets.v()


def of_one_level():
    """The consistency function."""
    truth = lambda x, now, cond: oracles.average(toy.gaussian(), x, now, clean(now))
    model = toy.model_of(toy.oracle_net(HERE, ROW, truth), HERE, ROW)
    return model._replace(student=students.consistency)


def of_two_levels():
    """The map between any two."""

    def truth(x, now, cond):
        finite = jnp.isfinite(cond["end"])
        end = HERE.at_log_snr(jnp.where(finite, cond["end"], 0.0))
        end = jax.tree.map(lambda a, b: jnp.where(finite, a, b), end, clean(now))
        return oracles.average(toy.gaussian(), x, now, end)

    model = toy.two_time_model("vp", "v", truth=truth)
    return model._replace(student=students.two_levels)


STUDENTS = {"of one level": of_one_level, "of two levels": of_two_levels}
PARAMS = {"net": 0.0}


def drawn():
    return oracles.sample(jax.random.key(0), toy.gaussian(), N)


@pytest.mark.parametrize("name", STUDENTS)
def test_image_to_image_keeps_the_distribution_and_more_of_the_image_for_less_noise(x64, name):
    """An exact student maps data noised to any level to data, here in one step and in 3."""
    mean, covariance = oracles.moments(toy.gaussian())
    model, given, kept = STUDENTS[name](), drawn(), []
    for strength in (0.25, 0.75):
        levels = grids.truncate(grids.trailing(HERE, 4), strength)
        first = jax.tree.map(lambda leaf: leaf[0], levels)
        noised = corrupt(given, jax.random.normal(jax.random.key(1), given.shape), first)
        student = guided(model, PARAMS, {}, {}, None)
        made = sampling.sample(jax.random.key(2), jump(HERE, 1.0), student, noised, levels)
        assert_allclose(made.mean(0), mean, atol=0.02)
        assert_allclose(np.cov(np.asarray(made).T), covariance, atol=0.02)
        kept.append(np.corrcoef(given[:, 0], made[:, 0])[0, 1])
    assert kept[0] > 0.8 and 0.03 < kept[1] < 0.2, kept


def filled(name, project, start, noise=white, steps=8):
    """A student's samples, projected to agree with what is known."""
    student = guided(STUDENTS[name](), PARAMS, {}, {}, None)
    levels, solver = grids.karras(HERE, steps, s_min=0.05, s_max=20.0), jump(HERE, 1.0, noise)
    return sampling.sample(jax.random.key(4), solver, projected(student, project), start, levels)


@pytest.mark.parametrize("name", STUDENTS)
def test_inpainting_keeps_what_is_known_and_fills_in_what_goes_with_it(x64, name):
    """A Gaussian's map is linear: the mean goes the way of a start at the mean, without noise."""
    mean, covariance = oracles.moments(toy.gaussian())
    start, silent = jax.random.normal(jax.random.key(3), (N, 2)), lambda key, x, *_: 0 * x
    for value in (-0.6, 1.2):
        project = known(jnp.array([0.0, 1.0]), jnp.array([value, 77.0]))
        made = filled(name, project, start)
        assert_allclose(made[:, 0], value, atol=1e-9)
        exact = filled(name, project, jnp.zeros((1, 2)), silent)[0, 1]
        assert_allclose(made[:, 1].mean(), exact, atol=0.01)
        # On the way from the mean of all data to that of those with this value.
        conditional = mean[1] + covariance[0, 1] / covariance[0, 0] * (value - mean[0])
        assert 0.3 < (exact - mean[1]) / (conditional - mean[1]) < 1


def test_a_sample_agrees_with_any_linear_measurement(x64):
    measurement = jnp.full((N, 1), 0.7)
    average = lambda x0: x0.mean(-1, keepdims=True)
    project = agreeing(average, lambda y: jnp.broadcast_to(y, (len(y), 2)), measurement)
    made = filled("of one level", project, jax.random.normal(jax.random.key(3), (N, 2)))
    assert_allclose(average(made), measurement, atol=1e-9)
    assert made[:, 0].std() > 0.1


def test_a_projected_denoiser_keeps_x_and_is_still_a_denoiser(x64):
    level = HERE.at(jnp.full((N,), 0.4))
    x = drawn()
    denoise = lambda x, level: oracles.predict(toy.gaussian(), x, level)
    found = projected(flow_maps.to_clean(denoise), known(jnp.array([0.0, 1.0]), jnp.zeros((N, 2))))(
        x, level
    )
    assert_allclose(found.x0[:, 0], 0.0, atol=1e-12)
    whole = level.alpha[:, None] * found.x0 + level.sigma[:, None] * found.eps
    assert_allclose(whole, x, atol=1e-12)
