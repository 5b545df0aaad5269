import numpy as np
import pytest

from diffusion_jax.evaluate.figures import Figure, bootstrap, mean_of, proportion, table


def test_bootstrap_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(1).normal(size=400)
    spread = bootstrap(np.mean, x, resamples=400)
    np.testing.assert_allclose(spread, x.std() / 20, rtol=0.15)


def test_bootstrap_spread_halves_with_four_times_the_samples():
    x = np.random.default_rng(2).normal(size=1600)
    few, many = (bootstrap(np.mean, x[:n], resamples=300) for n in (400, 1600))
    assert 1.6 < few / many < 2.5


def test_bootstrap_draws_each_sample_by_itself_and_repeats_with_its_seed():
    x, y = np.arange(50.0), np.arange(80.0)
    difference = lambda a, b: a.mean() - b.mean()
    expected = np.sqrt(x.var() / 50 + y.var() / 80)
    first = bootstrap(difference, x, y, resamples=400, seed=3)
    np.testing.assert_allclose(first, expected, rtol=0.15)
    assert first == bootstrap(difference, x, y, resamples=400, seed=3)
    assert first != bootstrap(difference, x, y, resamples=400, seed=4)


@pytest.mark.parametrize(("hits", "n", "smoothed"), [(8, 10, 10 / 14), (10, 10, 12 / 14)])
def test_proportion_is_uncertain_even_where_all_succeed(hits, n, smoothed):
    figure = proportion(np.arange(n) < hits)
    error = np.sqrt(smoothed * (1 - smoothed) / (n + 4))
    np.testing.assert_allclose(figure, (hits / n, error, n))


def test_a_mean_has_its_standard_error_with_the_unbiased_deviation():
    figure = mean_of(np.array([1.0, 2.0, 6.0]))
    np.testing.assert_allclose(figure, (3, np.sqrt((4 + 1 + 9) / 2) / np.sqrt(3), 3))
    assert mean_of(np.array([5.0]))[0] == 5 and np.isnan(mean_of(np.array([5.0])).spread)


def test_the_spread_is_the_unbiased_deviation_of_as_many_resamples_as_asked_for():
    values = []

    def statistic(x):
        values.append(x.mean())
        return values[-1]

    spread = bootstrap(statistic, np.array([0.0, 1.0, 5.0]), resamples=4, seed=2)
    assert len(values) == 4 and len(set(values)) > 1
    np.testing.assert_allclose(spread, np.std(values, ddof=1))


def test_table_gives_value_spread_and_count_of_each_line():
    lines = table({"a": Figure(0.5, 0.01, 100), "longer": Figure(12.0, 3.0, 7)}).splitlines()
    assert [line.split() for line in lines] == [
        ["a", "0.5", "±", "0.01", "n", "=", "100"],
        ["longer", "12", "±", "3", "n", "=", "7"],
    ]
    assert len({line.index("±") for line in lines}) == 1
