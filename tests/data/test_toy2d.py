import numpy as np
import pytest

from diffusion_jax.data import DataSpec, info, load_images, make_dataset, toy2d


@pytest.mark.parametrize("name", ["ring", "grid"])
def test_mixtures_have_the_moments_they_claim(name):
    n = 40_000
    points, labels = toy2d.draw(name, "train", np.arange(n))
    centres = toy2d.means(name)
    for k, centre in enumerate(centres):
        mine = points[labels == k]
        assert abs(len(mine) / n - 1 / len(centres)) < 5 * np.sqrt(1 / len(centres) / n)
        error = toy2d.DEVIATION / np.sqrt(len(mine))
        np.testing.assert_allclose(mine.mean(0), centre, atol=5 * error)
        np.testing.assert_allclose(np.cov(mine.T) / toy2d.DEVIATION**2, np.eye(2), atol=0.2)


def test_checkerboard_fills_dark_squares_only():
    points, labels = toy2d.draw("checkerboard", "train", np.arange(4000))
    column, row = np.floor((points.T + 1) * 2).astype(int)
    assert ((row + column) % 2 == 0).all()
    assert set(zip(row, column, strict=True)) == {
        (r, c) for r in range(4) for c in range(4) if (r + c) % 2 == 0
    }
    np.testing.assert_array_equal(labels // 2, row)


def test_components_of_the_grid_go_column_by_column():
    """The second component is above the first one."""
    centres = toy2d.means("grid")
    np.testing.assert_allclose(
        centres[[0, 1, 5, 24]], [(-0.8, -0.8), (-0.8, -0.4), (-0.4, -0.8), (0.8, 0.8)]
    )
    np.testing.assert_allclose(toy2d.means("ring")[[0, 2]], [(0.8, 0), (0, 0.8)], atol=1e-12)


def uniforms(which, noise=(0.0, 0.0)):
    """[n, 4]: the first two make the noise, none at 0; the others choose the place."""
    return np.column_stack([np.tile(noise, (len(which), 1)), np.asarray(which)])


def test_moons_are_two_half_circles_that_reach_into_each_other():
    points, labels = toy2d.TOYS["moons"].points(
        uniforms([(0.2, 0.0), (0.49, 0.5), (0.5, 0.5), (0.9, 1 / 3)])
    )
    assert labels.tolist() == [0, 0, 1, 1]
    wanted = [(0.5, -0.25), (-0.5, 0.75), (0.5, -0.75), (0, 0.25 - np.sqrt(3) / 2)]
    np.testing.assert_allclose(points, 0.6 * np.array(wanted), atol=1e-12)


def test_the_swiss_roll_grows_with_its_angle_from_three_quarters_of_a_turn_to_nine():
    points, labels = toy2d.TOYS["swiss_roll"].points(uniforms([(0, 0), (0.25, 0), (1, 0)]))
    wanted = [(0, -0.3), (0.9 * 2.25 / 4.5 * np.cos(0.25 * np.pi),) * 2, (0, 0.9)]
    np.testing.assert_allclose(points, wanted, atol=1e-12)
    assert labels.tolist() == [0, 0, 0]


def test_noise_has_the_deviation_of_the_components():
    """Box and Muller: a radius of 1 at 1 - exp(-1/2), of 2 at 1 - exp(-2), and a turn."""
    quarter = toy2d._normal(np.array([[1 - np.exp(-0.5), 0.25], [1 - np.exp(-2), 0.5]]))
    np.testing.assert_allclose(quarter, [[0, 1], [-2, 0]], atol=1e-9)
    noise = (1 - np.exp(-0.5), 0.25)
    for name, share in (("moons", 1.0), ("swiss_roll", 0.5), ("ring", 1.0)):
        still, noisy = (toy2d.TOYS[name].points(uniforms([(0.3, 0.6)], n))[0]
                        for n in ((0.0, 0.0), noise))  # fmt: skip
        np.testing.assert_allclose(noisy - still, [[0, 0.05 * share]], atol=1e-9)


@pytest.mark.parametrize("name", sorted(toy2d.TOYS))
def test_points_are_a_function_of_split_and_index(name):
    points, labels = toy2d.draw(name, "train", np.arange(100))
    again, _ = toy2d.draw(name, "train", np.arange(50, 60))
    np.testing.assert_array_equal(points[50:60], again)
    other, _ = toy2d.draw(name, "test", np.arange(100))
    assert (points != other).all(-1).any()
    assert points.dtype == np.float32 and abs(points).max() < 1.3
    assert labels.max() < toy2d.TOYS[name].classes


def test_points_go_through_the_same_pipeline_as_images():
    batch = make_dataset(DataSpec("toy2d:moons", batch_size=16))[3]
    assert batch["image"].shape == (16, 2) and batch["image"].dtype == np.float32
    assert batch["label"].dtype == np.int32 and set(batch["label"]) == {0, 1}
    assert info("toy2d:moons").shape == (2,)
    points, _ = load_images("toy2d:moons", "test", limit=5)
    np.testing.assert_array_equal(points, toy2d.draw("moons", "test", np.arange(5))[0])


@pytest.mark.parametrize(
    "name, split, sentence", [("toy2d:rings", "train", "toy2d:ring"), ("toy2d:ring", "x", "test")]
)
def test_unknown_points(name, split, sentence):
    with pytest.raises(ValueError, match=sentence):
        info(name, split)
