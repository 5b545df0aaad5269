import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
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
    assert _steps(_grid(grids.linspace, _table(), 5)) == [1000, 750, 501, 251, 1]
    assert _steps(_grid(grids.trailing, _table(), 3)) == [1000, 667, 333]


@pytest.mark.parametrize("name", ["trailing", "leading", "linspace"])
def test_all_steps_are_every_level_and_one_step_is_allowed(name):
    grid = grids.GRIDS[name]
    assert _steps(_grid(grid, _table(), 1000)) == list(range(1000, 0, -1))
    assert _steps(_grid(grid, _table(10), 10), 10) == list(range(10, 0, -1))
    one = _grid(grid, _table(), 1)
    assert one.t.shape == (1,)
    assert np.isfinite(one.log_snr).all()


# Of a list of the user's, of tables of levels only, up and down again, and told other times than
# their own: tested by themselves.
TOLD = {"curve", "log_told", "log_linear"}
PLAIN = sorted(set(grids.GRIDS) - {"table", "consistency", "restart"} - TOLD)


@pytest.mark.parametrize("name", PLAIN)
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


@pytest.mark.parametrize(
    ("strength", "keep"), [(1.0, 10), (0.79, 7), (0.75, 7), (0.5, 5), (0.1, 1)]
)
def test_truncate_keeps_the_clean_part(strength, keep):
    levels = _grid(grids.trailing, _table(), 10)
    kept = grids.truncate(levels, strength)
    for a, b in zip(kept, levels, strict=True):
        assert_array_equal(a, b[10 - keep :])


def test_bad_requests_are_named():
    for strength in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"strength = {strength}"):
            grids.truncate(_grid(grids.trailing, _table(), 10), strength)
    with pytest.raises(ValueError, match=r"0\.09 keeps none of 10 steps; take at least 0\.1"):
        grids.truncate(_grid(grids.trailing, _table(), 10), 0.09)
    for grid in grids.GRIDS.values():
        with pytest.raises(ValueError, match="at least 1 step"):
            grid(_table(10), 0)
        with pytest.raises(ValueError, match="more than the 10 steps"):
            grid(_table(10), 11)


def test_karras_and_its_kin_against_their_formulas(x64):
    process = Process(schedules.cosine(), PATHS["ve"])
    s = lambda levels: np.asarray(levels.sigma / levels.alpha)
    k = np.arange(8) / 7
    got = s(_grid(lambda p, n: grids.karras(p, n, 5.0, 0.02, 80.0), process, 8))
    assert_allclose(got, (80 ** (1 / 5) + k * (0.02 ** (1 / 5) - 80 ** (1 / 5))) ** 5, rtol=1e-9)
    ends = s(_grid(grids.uniform_log_snr, process, 2))
    got = s(_grid(lambda p, n: grids.polyexponential(p, n, 2.0), process, 8))
    wanted = np.exp(np.log(ends[1]) + (1 - k) ** 2 * np.log(ends[0] / ends[1]))
    assert_allclose(got, wanted, rtol=1e-9)
    own = s(_grid(lambda p, n: grids.karras(p, n), process, 5))
    assert_allclose(own[[0, -1]], ends, rtol=1e-9)


def test_beta_quantiles_are_those_of_the_distribution():
    levels = _grid(
        lambda p, n: grids.beta(p, n, 0.6, 0.6), Process(schedules.cosine(), PATHS["vp"]), 9
    )
    mass = scipy.stats.beta.cdf(np.asarray(levels.t, np.float64), 0.6, 0.6)
    assert_allclose(mass, np.linspace(1, 0, 9), atol=1e-5)
    on_table = _grid(grids.beta, _table(1000), 20).t * 1000
    assert_allclose(on_table, np.round(on_table), atol=1e-3)
    assert on_table[0] == 1000 and round(float(on_table[-1])) == 1


def test_a_table_of_levels_is_itself_at_its_own_length_and_resampled_at_others(x64):
    process = Process(schedules.cosine(), PATHS["ve"])
    s = (10.0, 3.0, 1.0, 0.05)
    at = lambda n: np.asarray(_grid(lambda p, n: grids.table(p, n, s), process, n).sigma)
    assert_allclose(at(4), s, rtol=1e-9)
    assert_allclose(at(7)[::2], s, rtol=1e-9)
    assert_allclose(at(7)[1], (10.0 * 3.0) ** 0.5, rtol=1e-9)
    for family, table in grids.TABLES.items():
        grid = lambda p, n, family=family: grids.align_your_steps(p, n, family)
        assert_allclose(_grid(grid, process, 11).sigma, table, rtol=1e-9)


def test_shift_is_that_of_flow_matching(x64):
    process = Process(schedules.rectified_flow(), PATHS["rectified"])
    plain = _grid(grids.beta, process, 6)
    moved = _grid(grids.shifted(grids.beta, 3.0), process, 6)
    u = plain.sigma
    assert_allclose(moved.sigma, 3 * u / (1 + 2 * u), rtol=1e-9)


def test_consistency_levels_skip_evenly_through_the_distillations():
    levels = _grid(grids.consistency, _table(1000), 4)
    assert_allclose(levels.t * 1000, [1000, 760, 500, 260], rtol=1e-6)


def test_padding_repeats_the_last_level_and_reversing_turns_round():
    levels = _grid(grids.trailing, _table(10), 4)
    padded = grids.pad(levels, 7)
    assert_allclose(padded.log_snr, np.r_[levels.log_snr, [levels.log_snr[-1]] * 3])
    assert_allclose(grids.reverse(levels).t, levels.t[::-1])
    with pytest.raises(ValueError, match="4 levels does not fit"):
        grids.pad(levels, 3)


def test_a_restart_grid_goes_down_over_all_its_levels():
    process = Process(schedules.cosine(), PATHS["vp"])
    levels = _grid(lambda p, n: grids.restart(p, n, 2, 0.1, 1.0, 5), process, 30)
    s = np.asarray(levels.sigma / levels.alpha)
    ups = np.flatnonzero(np.diff(s) > 0)
    assert len(ups) == 2
    assert_allclose(s[ups + 1], 1.0, rtol=1e-5)
    assert_allclose(s[[ups[0] + 5, ups[1] + 5]], 0.1, rtol=1e-4)
    assert s[ups[0]] >= 0.1 * (1 - 1e-5)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (lambda p: grids.table(p, 5, (1.0, 2.0)), "falling positive"),
        (lambda p: grids.align_your_steps(p, 5, "mine"), "known are stable_diffusion"),
        (lambda p: grids.consistency(p, 60), "at most 50 steps"),
        (lambda p: grids.restart(p, 9), "levels for the descent"),
    ],
)
def test_impossible_grids_are_sentences(grid, words):
    with pytest.raises(ValueError, match=words):
        grid(_table(1000))
