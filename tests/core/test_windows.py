"""Windows over a larger canvas: the law of what is drawn, coverage, and what windows are shown."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import exact_moments, flow_maps, guidance, oracles, sampling, schedules
from diffusion_jax.core.guidance import windows
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.types import Prediction


def _levels(log_snr):
    process = Process(schedules.cosine(), PATHS["vp"])
    return jax.jit(lambda: process.at_log_snr(jnp.asarray(log_snr)))()


def _window(rho=0.9):
    """The exact denoiser of any stretch of a stationary row, correlation rho between neighbours."""

    def denoise(x, level, end=None):
        del end
        d = x.shape[1]
        covariance = rho ** np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
        return oracles.predict(oracles.mixture([1.0], [np.zeros(d)], [covariance]), x, level)

    return denoise


N, SIZE = 48, 16


@functools.partial(jax.jit, static_argnums=(0, 1))
def _way(cover, denoiser):
    """The matrix of DDIM from noise to the sample, 60 levels."""
    levels = _levels(np.linspace(-10, 8, 60))
    denoise = guidance.tiled(denoiser(), cover())
    return sampling.sample(jax.random.key(0), ddim(), denoise, jnp.eye(N), levels).T


def _law(cover, denoiser=_window):
    """(least correlation of neighbours, least variance, KL to the row's law) of what is drawn."""
    way = np.asarray(_way(cover, denoiser))
    covariance = way @ way.T
    variance = np.diag(covariance)
    neighbours = np.diag(covariance, 1) / np.sqrt(variance[1:] * variance[:-1])
    right = 0.9 ** np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    apart = exact_moments.gaussian_kl(np.zeros(N), covariance, np.zeros(N), right)
    return neighbours.min(), variance.min(), apart


@pytest.mark.parametrize(
    ("stride", "law"),
    [(16, (0.0, 0.926, 6.31)), (8, (0.630, 0.769, 1.57)), (4, (0.797, 0.782, 0.71)),
     (1, (0.813, 0.759, 0.25))],
)  # fmt: skip
def test_what_averaging_does_to_a_stationary_row(x64, stride, law):
    """0.9 between neighbours is right, and a variance of 1; no overlap, no correlation."""
    got = _law(lambda: windows.covering([N], [SIZE], [stride]))
    assert_allclose(got, law, rtol=0.02, atol=1e-3)


def test_smooth_weights_and_larger_windows_are_nearer_and_moves_help_without_overlap(x64):
    assert_allclose(
        _law(lambda: windows.covering([N], [SIZE], [8], windows.hann)),
        (0.883, 0.857, 0.15),
        rtol=0.02,
    )
    assert_allclose(
        _law(lambda: windows.covering([N], [32], [16], windows.hann)),
        (0.897, 0.911, 0.0753),
        rtol=0.05,
    )
    assert _law(lambda: windows.covering([N], [SIZE], [8], windows.gaussian(0.2)))[2] < 0.17
    for seed in (0, 1):
        moved = lambda seed=seed: windows.jittered(jax.random.key(seed), [N], [SIZE], [16])
        assert _law(moved)[2] < 0.7


@pytest.mark.parametrize("wrap", [False, True])
def test_any_move_covers_the_canvas_by_windows_of_their_size(wrap):
    level = _levels(np.linspace(-3, 3, 40))
    for length, size, stride in ((48, 16, 12), (17, 16, 5), (16, 16, 16), (23, 7, 7)):
        at = windows.jittered(jax.random.key(1), [length], [size], [stride], None, [wrap])
        starts_at = jax.vmap(lambda level, at=at: at(level).starts)
        starts = np.asarray(jax.jit(starts_at)(level))[..., 0]
        still = windows.covering([length], [size], [stride], None, [wrap]).starts
        assert starts.shape[1] - still.shape[0] == (0 if wrap or length == size else 1)
        for row in (*starts, np.asarray(still)[:, 0]):
            seen = (row[:, None] + np.arange(size)) % length
            assert set(seen.ravel()) == set(range(length))
            assert wrap or row.max() + size <= length
        if length == 48:
            assert len(np.unique(starts, axis=0)) > 3
    for bad in (([8], [9], [1]), ([8], [4], [5]), ([8], [4], [0])):
        with pytest.raises(ValueError, match="1 <= stride <= size <= length"):
            windows.covering(*bad)


def _local(x, level, end=None):
    """A nonlinear network that sees its window's edges, of images [b, h, w, c]."""
    seen = jnp.roll(x, 1, axis=2) * jnp.linspace(0.5, 1.0, x.shape[2])[:, None] + x.mean(
        (1, 2), keepdims=True
    )
    alpha = level.alpha if end is None else level.alpha + end.alpha
    x0 = jnp.tanh(seen * alpha)
    eps = (x - level.alpha * x0) / level.sigma
    return Prediction(x0, eps, jnp.concatenate([x0, eps], -1))


def _image(h=6, w=10, c=2):
    return jax.random.normal(jax.random.key(0), (3, h, w, c))


def test_one_window_is_the_denoiser_and_predictions_stay_consistent():
    x, level, end = _image(), _levels(0.3), _levels(1.7)
    whole = jax.jit(guidance.tiled(_local, windows.covering([6, 10], [6, 10], [6, 10])))
    for arguments in ((x, level), (x, level, end)):
        got, wanted = whole(*arguments), _local(*arguments)
        for a, b in zip(got, wanted, strict=True):
            assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    smooth = guidance.tiled(_local, windows.covering([6, 10], [6, 10], [6, 10], windows.hann))
    assert_allclose(smooth(x, level).x0, _local(x, level).x0, rtol=1e-5)
    parts = guidance.tiled(_local, windows.covering([6, 10], [4, 5], [2, 3], windows.hann))
    got = jax.jit(parts)(x, level)
    assert_allclose(level.alpha * got.x0 + level.sigma * got.eps, x, atol=1e-5)
    assert_allclose(got.aux[..., :2], got.x0, rtol=1e-5)
    assert np.abs(got.x0 - _local(x, level).x0).max() > 0.05
    # By hand: every window's prediction, weighed and added up.
    weight = (
        np.outer(np.sin(np.pi * (np.arange(4) + 0.5) / 4), np.sin(np.pi * (np.arange(5) + 0.5) / 5))
        ** 2
    )
    total, weights = np.zeros(x.shape), np.zeros((6, 10, 1))
    for i in (0, 2):
        for j in (0, 3, 5):
            x0 = np.asarray(_local(x[:, i : i + 4, j : j + 5], level).x0)
            total[:, i : i + 4, j : j + 5] += weight[..., None] * x0
            weights[i : i + 4, j : j + 5] += weight[..., None]
    assert_allclose(got.x0, total / weights, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(7, 2\) do not fit into a canvas of \(6, 10\)"):
        guidance.tiled(_local, windows.covering([7, 9], [7, 2], [7, 2]))(x, level)


def test_a_panorama_that_goes_round_has_no_beginning():
    x, level = _image(4, 12), _levels(0.3)
    around = guidance.tiled(
        _local, windows.covering([4, 12], [4, 6], [4, 3], windows.hann, [False, True])
    )
    run = jax.jit(lambda x: around(x, level).x0)
    for shift in (3, 6, 9):
        assert_allclose(run(jnp.roll(x, shift, axis=2)), jnp.roll(run(x), shift, axis=2), atol=1e-6)
    ends = guidance.tiled(_local, windows.covering([4, 12], [4, 6], [4, 3], windows.hann))
    turned = jnp.roll(ends(jnp.roll(x, 3, axis=2), level).x0, -3, axis=2)
    assert np.abs(turned - ends(x, level).x0).max() > 0.05


def test_windows_may_move_without_a_new_program():
    x, level = _image(), _levels(0.3)
    weights = (windows.flat(6), windows.flat(5))

    @jax.jit
    def run(starts):
        return guidance.tiled(_local, guidance.Windows(starts, weights))(x, level).x0

    one, two = (run(jnp.array([[0, 0], [0, i], [0, 5]])) for i in (2, 4))
    assert np.abs(one - two).max() > 0.01 and run._cache_size() == 1


def test_conditions_are_cut_with_their_window():
    """A picture at twice the resolution, where each window is, and pixels' own levels."""
    x = _image(6, 10, 1)
    hint = jnp.arange(3 * 12 * 20.0).reshape(3, 12, 20, 1)
    starts = jnp.array([[0, 0], [2, 0], [2, 8], [0, 8], [0, 4], [2, 4]])
    over = guidance.Windows(starts, (windows.flat(4), windows.flat(5)))
    level = _levels(np.linspace(-3, 3, 180).reshape(3, 6, 10, 1))

    def denoise_of(cut):
        def denoise(x, now):
            fine = cut(hint, 2)
            assert fine.shape == (3, 8, 10, 1) and now.alpha.shape == (3, 4, 5, 1)
            x0 = x + fine[:, ::2, ::2] + now.alpha
            return Prediction(x0, x + cut.start[0] * 100.0 + cut.start[1])

        return denoise

    got = guidance.tiled_by(denoise_of, over)(x, level)
    assert_allclose(got.x0, x + hint[:, ::2, ::2] + level.alpha, rtol=1e-5)
    # Row 0 is seen from 0, row 5 from 2, rows 2 and 3 from both; column 0 from 0 and from 8.
    rows = np.array([0, 0, 1, 1, 2, 2])[:, None] * 100.0
    columns = np.array([4, 4, 4, 0, 2, 4, 4, 4, 6, 8])
    got = got.eps[..., 0] - x[..., 0]
    assert_allclose(got, np.broadcast_to(rows + columns, (3, 6, 10)), atol=1e-3)
    per_row = _levels(np.linspace(-3, 3, 3).reshape(3, 1, 1, 1))
    small = guidance.Windows(jnp.array([[0, 0], [2, 5], [0, 5], [2, 0]]), over.weights)
    plain = lambda x, now: Prediction(x * now.alpha, x)
    got = guidance.tiled(plain, small)(x, per_row)
    assert_allclose(got.x0, x * per_row.alpha, rtol=1e-5)
    with pytest.raises(ValueError, match=r"must be \[b, 18, 30, ...\], got \(3, 12, 20, 1\)"):
        guidance.tiled_by(lambda cut: lambda x, now: Prediction(cut(hint, 3), x), small)(x, level)


def test_jumps_end_where_they_are_told():
    """A flow map of windows, one for all: the end reaches it, and levels of their own are cut."""
    x, now, end = _image(), _levels(np.linspace(-2, 0, 60).reshape(1, 6, 10)), _levels(1.0)

    def jump(x, now, end=None):
        return Prediction(x * end.alpha, x * now.sigma[..., None])

    got = guidance.tiled(jump, windows.covering([6, 10], [4, 5], [2, 3]))(x, now, end)
    assert_allclose(got.x0, x * end.alpha, rtol=1e-5)
    assert_allclose(got.eps, x * now.sigma[..., None], rtol=1e-5)
    assert_allclose(flow_maps.transfer(got, end), end.alpha * got.x0 + end.sigma * got.eps)
