import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from diffusion_jax.evaluate import judge


def _init(key):
    return {"kernel": 0.01 * jax.random.normal(key, (64, 2)), "bias": jnp.zeros(2)}


def _logits(params, x, key):
    del key
    return x.reshape(len(x), -1) @ params["kernel"] + params["bias"]


def _halves(n, seed):
    """Images bright on the left (label 0) or the right (label 1)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.int32)
    images = rng.integers(0, 80, (n, 8, 8, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * label : 4 * label + 4] += 120
    return images, labels


@pytest.fixture(scope="module")
def trained():
    return judge.train_judge(_init, _logits, _halves(200, 0), _halves(100, 1), epochs=3)


def test_it_learns_what_can_be_learned_and_tells_its_own_accuracy(trained):
    assert trained.held_out.value > 0.97
    assert trained.held_out.n == 100 and trained.held_out.spread > 0
    images, labels = _halves(60, 2)
    assert judge.accuracy(_logits, trained.params, images, 1 - labels).value < 0.03


def test_training_is_adamw_with_a_warm_up_from_zero_and_half_a_cosine():
    """Rates of three epochs of one step: 0, the peak and half of it.

    So small that the gradient's signs, which are what Adam's steps are, stay the same.
    """
    start = jnp.array([[0.5, -2.0, 1.0]])
    flat = lambda params, x, key: jnp.broadcast_to(params, (len(x), 3))
    labels = np.array([0, 0, 0, 1], np.int32)
    data = (np.zeros((4, 8, 8, 1), np.uint8), labels)
    found = judge.train_judge(lambda key: start, flat, data, data, epochs=3, learning_rate=1e-3)
    slope = jax.nn.softmax(start) - jnp.array([[0.75, 0.25, 0]])
    wanted = start - 1.5e-3 * (jnp.sign(slope) + 0.01 * start)
    np.testing.assert_allclose(found.params, wanted, rtol=0, atol=3e-6)


def test_training_repeats_with_its_seed(trained):
    again = judge.train_judge(_init, _logits, _halves(200, 0), _halves(100, 1), epochs=3)
    jax.tree.map(np.testing.assert_array_equal, trained.params, again.params)


def test_accuracy_counts_every_image_once():
    images = np.zeros((1203, 1, 1, 1), np.uint8)  # three parts of unequal size
    images[:300] = 255
    logits = lambda params, x, key: jnp.concatenate([-x[:, 0, 0], x[:, 0, 0]], -1)
    figure = judge.accuracy(logits, {}, images, np.ones(1203, np.int32))
    np.testing.assert_allclose(figure.value, 300 / 1203)
    assert figure.n == 1203


def test_a_judge_is_trained_once_and_anew_where_its_file_is_damaged(tmp_path, monkeypatch):
    runs = []
    train = judge.train_judge

    def counted(*args):
        runs.append(args)
        return train(*args, epochs=2)

    monkeypatch.setattr(judge, "train_judge", counted)
    path = tmp_path / "judge.npz"
    sets = (_halves(100, 0), _halves(50, 1))
    first = judge.cached_judge(_init, _logits, *sets, path)
    again = judge.cached_judge(_init, _logits, *sets, path)
    assert len(runs) == 1 and again.held_out == first.held_out
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(UserWarning, match="trained anew"):
        judge.cached_judge(_init, _logits, *sets, path)
    assert len(runs) == 2


def test_a_judge_of_other_shapes_is_trained_anew(tmp_path):
    path = tmp_path / "judge.npz"
    np.savez(path, **{"0": np.zeros(3, np.float32), "1": np.zeros((64, 3), np.float32)})
    with pytest.warns(UserWarning, match="trained anew"):
        found = judge.cached_judge(_init, _logits, _halves(100, 0), _halves(50, 1), path)
    assert found.params["kernel"].shape == (64, 2)


def test_bytes_become_the_unit_range():
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(judge.to_unit_range(images).ravel(), [-1, -0.6, 1], atol=1e-6)


def test_images_move_by_a_matrix_near_one_and_up_to_two_pixels():
    """Of pictures of the coordinates the moved ones tell where each pixel was read."""
    n, h, w = 300, 41, 37
    here = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), -1)
    images = jnp.broadcast_to(here.astype(jnp.float32), (n, h, w, 2))
    read = np.asarray(jax.jit(judge.augment)(jax.random.key(2), images))
    y, x = (h - 1) // 2, (w - 1) // 2  # the centre, around which the matrix turns
    shift = read[:, y, x] - (y, x)
    assert -2 <= shift.min() < -1.9 and 1.9 < shift.max() <= 2
    matrix = (
        np.stack([read[:, y + 3, x] - read[:, y, x], read[:, y, x + 3] - read[:, y, x]], -1) / 3
    )
    off = (matrix - np.eye(2)).reshape(n, 4)
    np.testing.assert_allclose(off.std(0), 0.08, rtol=0.15)
    assert np.abs(off.mean(0)).max() < 0.02
    assert np.abs(np.corrcoef(off.T) - np.eye(4)).max() < 0.2


def test_between_pixels_an_image_is_bilinear_and_outside_it_is_its_border():
    draw = np.random.default_rng(0)
    image = draw.normal(size=(5, 7, 1)).astype(np.float32)
    where = draw.uniform((-2, -2), (6, 8), size=(4, 9, 2)).astype(np.float32)
    got = jax.jit(judge._bilinear)(jnp.asarray(image), jnp.asarray(where))[..., 0]
    inside = np.clip(where, 0, (4, 6))
    wanted = map_coordinates(image[..., 0], np.moveaxis(inside, -1, 0), order=1)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_moved_images_keep_what_is_everywhere_the_same():
    flat = jnp.full((3, 8, 8, 1), 0.25)
    np.testing.assert_allclose(jax.jit(judge.augment)(jax.random.key(0), flat), flat, atol=1e-6)


def test_moved_images_move_a_little_and_each_its_own_way():
    rows = jnp.arange(28.0)
    square = ((rows > 9) & (rows < 18)).astype(jnp.float32)
    image = square[:, None] * square[None, :]
    images = jnp.tile(image[None, ..., None], (64, 1, 1, 1))
    moved = jax.jit(judge.augment)(jax.random.key(1), images)[..., 0]
    mass = moved.sum((1, 2))
    centre = jnp.stack([(moved.sum(2) @ rows) / mass, (moved.sum(1) @ rows) / mass], 1)
    off = np.asarray(centre) - 13.5
    assert np.abs(off).max() < 4
    assert 0.6 < off.std() < 2  # of a uniform shift within 2 pixels: 1.15
    assert abs(off.mean()) < 0.5
