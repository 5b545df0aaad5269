import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluate import distances
from diffusion_jax.evaluate.features import FeatureNet, cached, extract
from diffusion_jax.evaluate.quality import quality

PROJECTION = np.random.default_rng(7).normal(size=(64, 6)).astype(np.float32) / 100


def _net(name="projection"):
    traces = []

    def apply(images):
        traces.append(images.shape)
        x = jnp.asarray(images, jnp.float32).reshape(len(images), -1) @ PROJECTION
        return {"frechet": x, "kernel": x}

    return FeatureNet(name, "Fréchet distance", apply), traces


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(100, 20, (120, 8, 8, 1)), 0, 255).astype(np.uint8)


def test_batches_are_padded_to_one_compile_and_the_padding_dropped(images):
    net, traces = _net()
    out = extract(net, images[:25], batch_size=10)
    assert traces == [(10, 8, 8, 1)]
    np.testing.assert_allclose(
        out["frechet"], images[:25].reshape(25, -1) @ PROJECTION, rtol=1e-4, atol=1e-4
    )


def test_features_are_made_once_per_images_and_network(images, tmp_path):
    net, traces = _net()
    first = cached(net, images, tmp_path, "set")
    again = cached(net, images, tmp_path, "set")
    assert len(traces) == 1
    np.testing.assert_array_equal(first["frechet"], again["frechet"])
    cached(net, images[:50], tmp_path, "set")
    cached(_net("another")[0], images, tmp_path, "set")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "flipped"])
def test_a_damaged_cache_is_made_anew(images, tmp_path, damage):
    net, _ = _net()
    expected = cached(net, images, tmp_path, "set")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 4
    path.write_bytes(
        {
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "noise": b"\x93 not an array",
            "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        }[damage]
    )
    with pytest.warns(UserWarning, match="damaged"):
        mended = cached(net, images, tmp_path, "set")
    np.testing.assert_array_equal(mended["frechet"], expected["frechet"])
    assert path.read_bytes() == whole


def test_worse_images_score_worse_and_every_figure_says_how_sure_it_is(images):
    net, _ = _net()
    rng = np.random.default_rng(1)
    real = extract(net, images[:60])
    scores = []
    for noise in (0, 60, 150):
        worse = np.clip(images[60:] + rng.normal(0, noise, images[60:].shape), 0, 255)
        scores.append(quality(net, real, extract(net, worse.astype(np.uint8))))
    frechet, kernel = "Fréchet distance (projection)", "KID (projection)"
    assert set(scores[0]) == {frechet, kernel, "precision", "recall", "density", "coverage"}
    for name, sign in ((frechet, 1), (kernel, 1), ("density", -1), ("coverage", -1)):
        values = [sign * score[name].value for score in scores]
        assert values == sorted(values) and values[0] < values[-1], name
    assert all(figure.n == 60 and figure.spread >= 0 for figure in scores[0].values())
    assert scores[0][frechet].spread > 0
    assert not any("FID" in name for name in scores[0])


def test_spread_of_a_distance_shrinks_with_more_samples():
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=(2, 1600, 4)) + np.array([[[0.0]], [[1.0]]])
    spreads = []
    for n in (100, 1600):
        features = [{"frechet": x[:n], "kernel": x[:n]} for x in (real, fake)]
        figures = quality(_net()[0], *features)
        spreads.append(
            [figures[f"{name} (projection)"].spread for name in ("Fréchet distance", "KID")]
        )
    assert all(many < few / 2 for few, many in zip(*spreads, strict=True))


def test_every_figure_has_its_resamples_its_seed_and_the_smaller_number(monkeypatch):
    asked = []

    def bootstrap(statistic, *samples, resamples, seed):
        asked.append((statistic.__name__, [len(sample) for sample in samples], resamples, seed))
        return 0.25

    monkeypatch.setattr("diffusion_jax.evaluate.quality.bootstrap", bootstrap)
    rng = np.random.default_rng(0)
    real, fake = (
        {"frechet": rng.normal(size=(n, 3)), "kernel": rng.normal(size=(n, 2)) + 1} for n in (9, 7)
    )
    figures = quality(_net()[0], real, fake, seed=5)
    assert asked == [
        ("frechet_distance", [9, 7], 10, 5),
        ("kernel_distance", [9, 7], 10, 5),
        ("mean", [7], 100, 5),
        ("mean", [9], 100, 5),
        ("mean", [7], 100, 5),
        ("mean", [9], 100, 5),
    ]
    assert list(figures)[2:] == ["precision", "recall", "density", "coverage"]
    assert [figure.n for figure in figures.values()] == [7, 7, 7, 9, 7, 9]
    assert {figure.spread for figure in figures.values()} == {0.25}
    frechet = distances.frechet_distance(real["frechet"], fake["frechet"])
    kernel = distances.kernel_distance(real["kernel"], fake["kernel"])
    values = [figure.value for figure in figures.values()]
    assert values[:2] == [frechet, kernel]
    each = distances.precision_recall_density_coverage(real["frechet"], fake["frechet"])
    assert values[2:] == [one.mean() for one in each.values()]
    asked.clear()
    quality(_net()[0], real, fake)
    assert {seed for *_, seed in asked} == {0}
