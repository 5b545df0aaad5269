import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

from diffusion_jax.evaluate import distances


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _covariance(rng, d):
    root = rng.normal(size=(d, d))
    return root @ root.T


def test_gaussians_that_share_their_axes_differ_by_their_deviations(rng):
    axes = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    a, b = np.array([1.0, 2.0, 0.0, 3.0]), np.array([2.0, 0.5, 1.0, 3.0])
    mean = np.array([1.0, -2.0, 0.0, 0.5])
    distance = distances.gaussian_distance(mean, (axes * a**2) @ axes.T, (axes * b**2) @ axes.T)
    np.testing.assert_allclose(distance, (mean**2).sum() + ((a - b) ** 2).sum(), rtol=1e-10)


def test_square_root_agrees_with_scipy(rng):
    a, b = _covariance(rng, 12), _covariance(rng, 12)
    expected = np.trace(a + b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b)).real
    np.testing.assert_allclose(distances.gaussian_distance(np.zeros(12), a, b), expected, rtol=1e-8)


def test_frechet_distance_of_shifted_and_scaled_vectors(rng):
    x = rng.normal(size=(50, 5))
    shift = np.arange(5.0)
    np.testing.assert_allclose(distances.frechet_distance(x, x + shift), 30, rtol=1e-10)
    # Of x and 2x: means differ by the mean, deviations by the deviation.
    expected = (x.mean(0) ** 2).sum() + x.var(0, ddof=1).sum()
    np.testing.assert_allclose(distances.frechet_distance(x, 2 * x), expected, rtol=1e-10)


def test_frechet_distance_with_fewer_vectors_than_dimensions(rng):
    x = rng.normal(size=(10, 40)).astype(np.float32)
    assert abs(distances.frechet_distance(x, x)) < 1e-4
    np.testing.assert_allclose(distances.frechet_distance(x, x + 1), 40, rtol=1e-5)


def test_frechet_distance_of_one_dimension(rng):
    x = rng.normal(size=(20, 1))
    np.testing.assert_allclose(distances.frechet_distance(x, x + 3), 9, rtol=1e-10)


def test_kernel_distance_is_the_sum_over_pairs(rng):
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)) + 1
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3
    within = lambda z: np.mean(
        [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
    )
    across = np.mean([kernel(a, b) for a in x for b in y])
    expected = within(x) + within(y) - 2 * across
    np.testing.assert_allclose(distances.kernel_distance(x, y), expected, rtol=1e-10)


def test_kernel_distance_is_unbiased(rng):
    draws = [
        distances.kernel_distance(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)))
        for _ in range(200)
    ]
    error = np.std(draws, ddof=1) / np.sqrt(len(draws))
    assert abs(np.mean(draws)) < 4 * error
    assert min(draws) < 0 < max(draws)
    shifted = distances.kernel_distance(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)) + 2)
    assert shifted > max(draws)


def test_covariances_are_unbiased_and_their_root_is_that_of_their_product(rng):
    real, fake = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) @ rng.normal(size=(3, 3)) + 1
    mean = real.mean(0) - fake.mean(0)
    a, b = ((x - x.mean(0)).T @ (x - x.mean(0)) / (len(x) - 1) for x in (real, fake))
    wanted = mean @ mean + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert_allclose(distances.frechet_distance(real, fake), wanted, rtol=1e-8)


def test_sliced_distance_of_a_shift_is_its_mean_length_along_the_directions(rng):
    x, shift = rng.normal(size=(9, 2)), np.array([2.0, -0.5])
    angle = np.arange(4) * np.pi / 4
    wanted = np.abs(np.cos(angle) * shift[0] + np.sin(angle) * shift[1]).mean()
    got = distances.sliced_wasserstein(x, (x + shift)[::-1], directions=4)
    assert_allclose(got, wanted, rtol=1e-10)
    # Over all directions |cos| has the mean 2/π.
    round_trip = distances.sliced_wasserstein(x, x + shift)
    assert_allclose(round_trip, np.linalg.norm(shift) * 2 / np.pi, rtol=2e-3)


@pytest.mark.parametrize(("k", "radii"), [(2, [2, 1, 1, 1, 1, 1, 2]), (4, [4, 3, 2, 2, 2, 3, 4])])
def test_a_ball_reaches_to_the_neighbour_that_is_asked_for(k, radii):
    """Of whole numbers on a line; a fake on the surface is inside."""
    real = np.arange(7.0)
    fake = np.array([-radii[0], -radii[0] - 0.1, 3, 6 + radii[6], 40, 50, 60])
    each = distances.precision_recall_density_coverage(real[:, None], fake[:, None], k)
    inside = np.abs(np.subtract.outer(fake, real)) <= radii
    assert each["precision"].tolist() == [True, False, True, True, False, False, False]
    assert each["density"].tolist() == (inside.sum(1) / k).tolist()
    assert each["coverage"].tolist() == inside.any(0).tolist()


def test_figures_by_balls_on_a_line():
    real = np.array([[0.0], [1.0], [2.0], [3.0]])  # with k = 1 every radius is 1
    fake = np.array([[0.5], [10.0], [10.1], [10.3]])  # radii 9.5, 0.1, 0.1, 0.2
    each = distances.precision_recall_density_coverage(real, fake, k=1)
    assert each["precision"].tolist() == [True, False, False, False]
    assert each["recall"].tolist() == [True, True, True, True]
    assert each["density"].tolist() == [2, 0, 0, 0]
    assert each["coverage"].tolist() == [True, True, False, False]


def test_figures_by_balls_of_copies_and_of_strangers(rng):
    real = rng.normal(size=(60, 3))
    copies = distances.precision_recall_density_coverage(real, real)
    assert copies["precision"].all() and copies["recall"].all() and copies["coverage"].all()
    # Around each vector: its own ball, and those of the vectors that count it as a neighbour.
    np.testing.assert_allclose(copies["density"].mean(), (5 + 1) / 5)
    strangers = distances.precision_recall_density_coverage(real, real + 100)
    assert not any(values.any() for values in strangers.values())


def test_dropped_mode_costs_recall_and_coverage_but_not_precision(rng):
    real = np.concatenate([rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 50])
    fake = rng.normal(size=(200, 2))
    share = {
        name: values.mean()
        for name, values in distances.precision_recall_density_coverage(real, fake).items()
    }
    assert share["precision"] > 0.9
    assert share["recall"] <= 0.5 and share["coverage"] <= 0.5


@pytest.mark.parametrize("function", [distances.frechet_distance, distances.kernel_distance])
def test_vectors_that_do_not_fit_are_refused(function):
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(5, 4\)"):
        function(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="got 1 and 5"):
        function(np.zeros((1, 3)), np.zeros((5, 3)))


def test_too_few_vectors_for_neighbours_are_refused():
    with pytest.raises(ValueError, match="k = 5 neighbours"):
        distances.precision_recall_density_coverage(np.zeros((5, 2)), np.zeros((9, 2)))


def test_the_size_of_a_block_changes_nothing(rng, monkeypatch):
    real, fake = rng.normal(size=(50, 3)), rng.normal(0.5, 1, size=(41, 3))
    whole = distances.precision_recall_density_coverage(real, fake)
    kid = distances.kernel_distance(real, fake)
    monkeypatch.setattr(distances, "_ROWS", 7)
    assert_allclose(distances.kernel_distance(real, fake), kid, rtol=1e-12)
    blocks = distances.precision_recall_density_coverage(real, fake)
    assert all((blocks[name] == whole[name]).all() for name in whole)
