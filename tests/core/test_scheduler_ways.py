"""What diffusers' schedulers do otherwise than the papers: their curves, strides and last steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import grids, sampling, schedules
from diffusion_jax.core.guidance import POSTS
from diffusion_jax.core.process import Process, clean, vp
from diffusion_jax.core.solvers import NAMED, SOLVERS
from diffusion_jax.core.types import Prediction

PROCESS = Process(schedules.scaled_linear(), vp)
SIGMAS = np.sqrt(1 / np.cumprod(1 - schedules.scaled_linear_betas()) - 1)


def denoise(x, level):
    """Any smooth function of x and of the time that is told."""
    x0 = jnp.tanh(x + jnp.sin(20 * level.t))
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def told(levels):
    return np.asarray(levels.t) * 1000 - 1


def s_of(levels):
    return np.exp(-np.asarray(levels.log_snr) / 2)


def test_curves_run_between_the_ends_that_are_asked_for():
    karras = grids.GRIDS["curve"](PROCESS, 9, "karras")
    ramp = np.linspace(SIGMAS[-1] ** (1 / 7), SIGMAS[0] ** (1 / 7), 9) ** 7
    assert_allclose(s_of(karras), ramp, rtol=1e-4)
    even = grids.GRIDS["curve"](PROCESS, 9, "exponential", "leading", offset=2)
    assert_allclose(s_of(even), np.geomspace(SIGMAS[8 * 111 + 2], SIGMAS[2], 9), rtol=1e-4)
    assert_allclose(told(even)[[0, -1]], [890, 2], atol=1e-3)
    given = grids.GRIDS["curve"](PROCESS, 5, "beta", s_min=0.2, s_max=7.0)
    assert_allclose(s_of(given)[[0, 2, -1]], [7.0, 3.6, 0.2], rtol=1e-4)  # symmetric: the median
    between = np.interp(np.log(s_of(given)), np.log(SIGMAS), np.arange(1000))
    assert_allclose(told(given), between, atol=2e-2)


@pytest.mark.parametrize(
    ("how", "of"),
    [
        ("rounded", lambda index, s: np.round(index)),
        ("cut", lambda index, s: np.floor(index)),
        ("log", lambda index, s: np.log(s) / 4),
    ],
)
def test_the_time_that_is_told_may_differ_from_the_level(how, of):
    exact = grids.GRIDS["curve"](PROCESS, 7, "karras")
    other = grids.GRIDS["curve"](PROCESS, 7, "karras", told=how)
    assert (other.log_snr == exact.log_snr).all() and (other.sigma == exact.sigma).all()
    assert_allclose(told(other), of(told(exact), s_of(exact)), atol=1e-3)


def test_a_table_that_is_just_short_of_its_last_step_tells_the_one_before_when_cut():
    for short, first in ((False, 999), (True, 998)):
        levels = grids.GRIDS["curve"](PROCESS, 7, "karras", told="cut", short=short)
        assert_allclose(told(levels)[0], first, atol=1e-3)


def test_levels_even_in_log_sigma_with_times_of_another_spacing():
    levels = grids.GRIDS["log_linear"](PROCESS, 4, "trailing")
    assert_allclose(s_of(levels), np.geomspace(SIGMAS[-1], SIGMAS[0], 5)[:-1], rtol=1e-4)
    assert_allclose(told(levels), [999, 749, 499, 249], atol=1e-3)
    logs = grids.GRIDS["log_told"](PROCESS, 4, "trailing")
    assert_allclose(told(logs), np.log(SIGMAS[[999, 749, 499, 249]]) / 4, atol=1e-3)
    both = grids.GRIDS["log_linear"](PROCESS, 4, "trailing", log=True)
    assert_allclose(told(both), np.log(s_of(levels)) / 4, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": "straight"}, "shape='straight'"),
        ({"ends": "middle"}, "ends='middle'"),
        ({"told": "up"}, "told='up'"),
    ],
)
def test_a_curve_that_is_unknown_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        grids.GRIDS["curve"](PROCESS, 5, **arguments)
    with pytest.raises(ValueError, match="this schedule is continuous"):
        grids.GRIDS["curve"](Process(schedules.cosine(), vp), 5)


@pytest.mark.parametrize("name", ["leading", "linspace", "trailing", "fractional_linspace"])
@pytest.mark.parametrize("n", [999, 1000])
def test_up_to_as_many_steps_as_the_table_has_the_levels_fall(name, n):
    given = {"offset": 1} if name == "leading" else {}
    levels = grids.GRIDS[name](PROCESS, n, **given)
    assert (np.diff(levels.t) < 0).all() and levels.t[0] <= 1


@pytest.mark.parametrize("name", ["dpm_leading", "dpm_linspace"])
def test_one_part_more_than_levels_is_refused(name):
    assert (np.diff(grids.GRIDS[name](PROCESS, 999).t) < 0).all()
    with pytest.raises(ValueError, match=f"sampler.steps = 1000 .* {name}, .* at most 999"):
        grids.GRIDS[name](PROCESS, 1000)
    cut = grids.GRIDS[name](PROCESS, 4, last=600)
    assert_allclose(told(cut), {"dpm_leading": [480, 360, 240, 120],
                                "dpm_linspace": [599, 449, 300, 150]}[name], atol=1e-3)  # fmt: skip


def drawn(solver, levels, end=None, stepped=False):
    x = jax.random.normal(jax.random.key(1), (1, 4))
    return sampling.sample(jax.random.key(0), solver, denoise, x, levels, end, stepped)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "unipc", "lms"])
def test_a_last_step_by_the_solver_is_x0_where_its_order_is_1(name):
    """All but LMS, which is of finite length in sigma, see the clean level infinitely far away."""
    levels = grids.leading(PROCESS, 5)
    solver = SOLVERS[name]() if name != "heun" else SOLVERS["ddim"]()
    plain, stepped = drawn(solver, levels), drawn(solver, levels, stepped=True)
    assert np.allclose(plain, stepped, rtol=1e-5) == (name != "lms")
    assert np.isfinite(stepped).all()


def test_strides_on_leading_levels_are_the_levels():
    levels, end = grids.leading(PROCESS, 5, 1), PROCESS.at(0.001)
    given = {"process": PROCESS, "steps": 5}
    own = drawn(NAMED["scheduler_ddim"](**given), levels, end, stepped=True)
    assert_allclose(own, drawn(SOLVERS["ddim"](), levels, end), rtol=1e-5)
    own = drawn(NAMED["scheduler_pndm"](**given), levels, end, stepped=True)
    plms = drawn(SOLVERS["plms"](), levels, end, stepped=True)
    assert_allclose(own, plms, rtol=1e-4)
    # Elsewhere it takes x for that of the next level, which it is not.
    other = grids.linspace(PROCESS, 5)
    own = drawn(NAMED["scheduler_ddim"](**given), other, end, stepped=True)
    assert not np.allclose(own, drawn(SOLVERS["ddim"](), other, end), rtol=1e-2)


def test_orders_fall_towards_the_end_of_short_runs_alone():
    for n, falls in ((14, True), (15, False)):
        levels = grids.trailing(PROCESS, n)
        make = lambda lower, levels=levels: NAMED["scheduler_dpm"](
            levels, order=3, lower_order_final=lower
        )
        assert (
            np.allclose(drawn(make(True), levels), drawn(make(False), levels), rtol=1e-6) != falls
        )
    # A part of a grid ends as the whole does.
    whole = grids.trailing(PROCESS, 14)
    part = grids.truncate(whole, 0.3)
    both = (NAMED["scheduler_dpm"](whole, order=3, lower_order_final=low) for low in (True, False))
    assert not np.allclose(*(drawn(solver, part) for solver in both), rtol=1e-6)


def test_unknown_averages_and_too_few_steps_are_named():
    with pytest.raises(ValueError, match="average='x0'"):
        NAMED["scheduler_pndm"](PROCESS, 5, "x0")
    with pytest.raises(ValueError, match=r"sampler\.steps = 3 is too few"):
        NAMED["scheduler_pndm"](PROCESS, 3, runge_kutta=True)


def test_bounds_may_leave_eps_and_have_a_largest_size():
    level, x = PROCESS.at(0.5), jnp.array([[3.0, -2.0, 0.5, 9.0]])
    wild = lambda x, level: Prediction(x, 0.3 * x)
    kept = POSTS["clip"](-1.0, 2.0, keep_eps=True)(wild)(x, level)
    assert_allclose(kept.x0, [[2.0, -1.0, 0.5, 2.0]])
    assert_allclose(kept.eps, 0.3 * x)
    assert not np.allclose(POSTS["clip"](-1.0, 2.0)(wild)(x, level).eps, 0.3 * x)
    most = POSTS["dynamic_threshold"](1.0, 1.0, 4.0)(wild)(x, level)
    assert_allclose(most.x0, [[0.75, -0.5, 0.125, 1.0]], rtol=1e-6)


def test_lms_reaches_the_clean_level():
    """eps a cubic in s is integrated exactly, down to s = 0."""
    s = np.array([3.0, 2.0, 1.2, 0.7, 0.3])
    levels = PROCESS.at_log_snr(jnp.asarray(-2 * np.log(s)))
    cubic = lambda s: 1 - 2 * s + 0.5 * s**2 - 0.1 * s**3
    whole = lambda s: s - s**2 + s**3 / 6 - 0.025 * s**4

    def exact(x, level):
        ratio = level.sigma / level.alpha
        eps = jnp.full_like(x, cubic(ratio))
        return Prediction(x / level.alpha - ratio * eps, eps)

    solver, y = SOLVERS["lms"](), jnp.zeros((1, 2))
    start = [jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in range(5)]
    state = solver.init(y)
    for now, nxt in zip(start, [*start[1:], clean(start[0])], strict=True):
        at = now.alpha * (whole(now.sigma / now.alpha) - whole(3.0))  # on the exact way
        x, state = solver.step(jax.random.key(0), exact, jnp.full((1, 2), at), now, nxt, state)
    assert_allclose(x, -whole(3.0), rtol=1e-4)
