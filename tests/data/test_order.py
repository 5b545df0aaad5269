import numpy as np
import pytest

from diffusion_jax.data import order


def test_each_epoch_shows_each_example_once_in_another_order():
    n, batch = 10, 4
    steps = [order.examples(order.positions(t, batch), n, 3, True) for t in range(5)]
    first, second = np.split(np.concatenate(steps), 2)
    np.testing.assert_array_equal(np.sort(first), np.arange(n))
    np.testing.assert_array_equal(np.sort(second), np.arange(n))
    assert (first != second).any()


def test_without_shuffling_the_order_is_the_sets_own():
    np.testing.assert_array_equal(order.examples(np.arange(7), 3, 0, False), [0, 1, 2, 0, 1, 2, 0])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_deal_out_one_batch(count):
    whole = order.positions(5, 8)
    parts = [order.positions(5, 8, k, count) for k in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_uniforms_are_uniform_independent_and_keyed():
    where = np.arange(100_000)
    draws = [order.uniform(seed, stream, where) for seed in (0, 1) for stream in (0, 1)]
    for u in draws:
        assert u.min() >= 0 and u.max() < 1
        # standard errors: mean 0.29 / sqrt(n), histogram sqrt(n / 10)
        assert abs(u.mean() - 0.5) < 5 * 0.289 / np.sqrt(len(u))
        counts = np.histogram(u, 10, (0, 1))[0]
        assert abs(counts - len(u) / 10).max() < 5 * np.sqrt(len(u) / 10)
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(len(u))
    correlation = np.corrcoef(draws) - np.eye(4)
    assert abs(correlation).max() < 5 / np.sqrt(len(where))
    np.testing.assert_array_equal(order.uniform(1, 0, where[500:510]), draws[2][500:510])


def test_a_cached_order_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        order.shuffled(4, 0, 0)[0] = 1
