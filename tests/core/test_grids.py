import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.core import grids, schedules
from diffusion_jax.core.process import PATHS, Process


def _at(process, t):
    return jax.jit(process.at)(t)


def _grid(grid, process, n):
    return jax.jit(lambda: grid(process, n))()


def _table(steps=1000):
    return Process(schedules.linear(steps), PATHS["vp"])


def _continuous():
    return Process(schedules.cosine(), PATHS["vp"])


def _steps(levels, of=1000):
    return np.rint(np.asarray(levels.t) * of).astype(int).tolist()


def test_published_subsequences():
    assert _steps(_grid(grids.trailing, _table(), 5)) == [1000, 800, 600, 400, 200]
    assert _steps(_grid(grids.leading, _table(), 5)) == [801, 601, 401, 201, 1]
    assert _steps(_grid(grids.linspace, _table(), 5)) == [1000, 750, 500, 251, 1] or _steps(
        _grid(grids.linspace, _table(), 5)
    ) == [1000, 750, 500, 250, 1]
    assert _steps(_grid(grids.trailing, _table(), 3)) == [1000, 667, 333]


@pytest.mark.parametrize("name", ["trailing", "leading", "linspace"])
def test_all_steps_are_every_level_and_one_step_is_allowed(name):
    grid = grids.GRIDS[name]
    assert _steps(_grid(grid, _table(), 1000)) == list(range(1000, 0, -1))
    assert _steps(_grid(grid, _table(10), 10), 10) == list(range(10, 0, -1))
    one = _grid(grid, _table(), 1)
    assert one.t.shape == (1,)
    assert np.isfinite(one.log_snr).all()


@pytest.mark.parametrize("name", sorted(grids.GRIDS))
@pytest.mark.parametrize("process", [_table, _continuous])
@pytest.mark.parametrize("n", [2, 7, 50])
def test_levels_fall_strictly_and_are_levels_of_the_process(name, process, n):
    levels = _grid(grids.GRIDS[name], process(), n)
    assert levels.t.shape == levels.alpha.shape == (n,)
    assert (np.diff(levels.log_snr) > 0).all()
    assert (np.diff(levels.t) < 0).all()
    again = _at(process(), levels.t)
    assert_allclose(again.alpha, levels.alpha, rtol=2e-3, atol=1e-6)


def test_continuous_times():
    assert_allclose(_grid(grids.trailing, _continuous(), 4).t, [1, 0.75, 0.5, 0.25])
    assert_allclose(_grid(grids.leading, _continuous(), 4).t, [0.875, 0.625, 0.375, 0.125])
    assert_allclose(_grid(grids.linspace, _continuous(), 5).t, [1, 0.75, 0.5, 0.25, 0])


def test_uniform_log_snr_spans_the_schedule_or_what_float32_can_tell():
    for process, span in (
        (_table(), np.asarray(_at(_table(), jnp.array([1.0, 0.001])).log_snr)),
        (_continuous(), [-15, 15]),
        (Process(schedules.rectified_flow(), PATHS["rectified"]), [-18, 18]),
    ):
        levels = _grid(grids.uniform_log_snr, process, 5)
        assert_allclose(levels.log_snr, np.linspace(*span, 5), rtol=1e-4, atol=1e-5)
        assert np.isfinite(levels.t).all()


def test_at_times_takes_any_list():
    assert_allclose(grids.at_times(_table(), np.array([0.9, 0.2])).t, [0.9, 0.2], rtol=1e-6)


@pytest.mark.parametrize(("strength", "keep"), [(1.0, 10), (0.75, 8), (0.5, 5), (0.01, 1)])
def test_truncate_keeps_the_clean_part(strength, keep):
    levels = _grid(grids.trailing, _table(), 10)
    kept = grids.truncate(levels, strength)
    for a, b in zip(kept, levels, strict=True):
        assert_array_equal(a, b[10 - keep :])


def test_bad_requests_are_named():
    for strength in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"strength = {strength}"):
            grids.truncate(_grid(grids.trailing, _table(), 10), strength)
    for grid in grids.GRIDS.values():
        with pytest.raises(ValueError, match="at least 1 step"):
            grid(_table(10), 0)
        with pytest.raises(ValueError, match="more than the 10 steps"):
            grid(_table(10), 11)
