"""The codec of an autoencoder: its affine map, its draws, and tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.encodings import ENCODINGS
from diffusion_jax.core.types import Codec
from diffusion_jax.models.autoencoders.autoencoder import AutoencoderKL, AutoencoderVQ
from diffusion_jax.models.autoencoders.codec import (
    IDENTITY,
    Tiling,
    _starts,
    _tiled,
    _weights,
    codec,
)

SHAPE = {"channels": 4, "channel_mults": (1, 1), "blocks": 1, "attention": False}


def compiled(*arguments, **options):
    return Codec(*map(jax.jit, codec(*arguments, **options)))


def initialised(module):
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    noise = lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape)
    return {"autoencoder": jax.tree.map(noise, params)}


@pytest.fixture(scope="module")
def kl():
    module = AutoencoderKL(**SHAPE, latent_channels=2)
    return module, initialised(module)


@pytest.fixture(scope="module")
def pixels():
    return jax.random.uniform(jax.random.key(1), (2, 16, 24, 3), minval=-1)


def test_codes_are_shifted_then_scaled_for_each_channel(kl, pixels):
    module, frozen = kl
    scale, shift = np.array([0.5, 3.0]), np.array([1.0, -2.0])
    key = jax.random.key(2)
    run = lambda x, method: jax.jit(lambda p, x: module.apply({"params": p}, x, method=method))(
        frozen["autoencoder"], x
    )
    posterior = run(pixels, "encode")
    mode = compiled(module, scale, shift, "mode")
    x = mode.encode(frozen, pixels, key)
    np.testing.assert_allclose(x, (posterior.mean - shift) * scale, rtol=1e-5, atol=1e-5)
    sample = compiled(module, scale, shift, "sample").encode(frozen, pixels, key)
    np.testing.assert_allclose(sample, (posterior.sample(key) - shift) * scale, atol=1e-5)
    back = run(posterior.mean, "decode")
    np.testing.assert_allclose(mode.decode(frozen, x, key), back, atol=1e-5)


def test_the_code_of_a_codebook_is_its_entries(pixels):
    module = AutoencoderVQ(**SHAPE, latent_channels=2, entries=8)
    frozen = initialised(module)
    x = compiled(module, 1.0).encode(frozen, pixels, jax.random.key(0))
    book = np.asarray(frozen["autoencoder"]["codebook"])
    nearest = np.abs(np.asarray(x)[..., None, :] - book).sum(-1).min(-1)
    np.testing.assert_allclose(nearest, 0, atol=1e-6)
    tiles = compiled(module, 1.0, tiling=Tiling(4, 2)).encode(frozen, pixels, jax.random.key(0))
    nearest = np.abs(np.asarray(tiles)[..., None, :] - book).sum(-1).min(-1)
    np.testing.assert_allclose(nearest, 0, atol=1e-6)  # blended before they are quantised


def test_one_tile_that_covers_all_is_the_whole(kl, pixels):
    module, frozen = kl
    plain, tiled = (compiled(module, 0.7, tiling=t) for t in (None, Tiling(12, 4)))
    key = jax.random.key(3)
    x = plain.encode(frozen, pixels, key)
    np.testing.assert_array_equal(tiled.encode(frozen, pixels, key), x)
    np.testing.assert_array_equal(tiled.decode(frozen, x, key), plain.decode(frozen, x, key))


def test_there_is_nothing_to_draw_of_a_codebook_or_of_pixels(pixels):
    module = AutoencoderVQ(**SHAPE, latent_channels=2, entries=8)
    key, cases = (
        jax.random.key(0),
        ((compiled(module, 0.5, 0.2), initialised(module)), (IDENTITY, {})),
    )
    for one, frozen in cases:
        mean, deviation = one.posterior(frozen, pixels)
        assert not np.any(deviation) and deviation.shape == mean.shape
        encode = lambda name, one=one, frozen=frozen: ENCODINGS[name](one, frozen, pixels, key)
        np.testing.assert_array_equal(encode("sample"), encode("mode"))
        np.testing.assert_allclose(
            encode("scaled_mode"), one.encode(frozen, pixels, key), atol=1e-6
        )


def test_a_posterior_is_read_by_tiles_too(kl, pixels):
    module, frozen = kl
    tiled = compiled(module, 0.7, 0.3, tiling=Tiling(4, 2))
    key = jax.random.key(3)
    drawn = ENCODINGS["scaled_sample"](tiled, frozen, pixels, key)
    np.testing.assert_allclose(drawn, tiled.encode(frozen, pixels, key), atol=1e-5)
    whole = ENCODINGS["scaled_sample"](compiled(module, 0.7, 0.3), frozen, pixels, key)
    assert np.abs(whole - drawn).max() > 1e-4


@pytest.mark.parametrize("n", [5, 7, 8, 13, 16, 31])
@pytest.mark.parametrize("overlap", [0, 2, 3])
def test_tiles_cover_everything_once_in_all(n, overlap):
    starts = _starts(n, 4, overlap)
    assert starts[0] == 0 and starts[-1] == n - 4 and (np.diff(starts) <= 4 - overlap).all()
    total = np.zeros(n * 3)
    for start, weight in zip(starts, _weights(starts, n, 4, overlap, 3), strict=True):
        total[start * 3 : start * 3 + 12] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_neighbours_are_blended_linearly():
    weights = _weights(np.array([0, 4]), 10, 6, 2, 1)
    np.testing.assert_allclose(weights[0], [1, 1, 1, 1, 2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(weights[1], [1 / 3, 2 / 3, 1, 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("size", [(12, 20), (6, 34), (18, 8)])
def test_tiles_of_what_looks_at_one_code_only_are_the_whole(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    double = lambda x: jnp.repeat(jnp.repeat(2 * x - 1, 2, 1), 2, 2)
    halve = lambda x: x[:, ::2, ::2, :2] ** 2
    tiling = Tiling(4, 2)
    up = jax.jit(lambda x: _tiled(double, x, tiling, 1, 2))(x)
    np.testing.assert_allclose(up, double(x), atol=1e-5)
    down = jax.jit(lambda x: _tiled(halve, x, tiling, 2, 1))(x)
    np.testing.assert_allclose(down, halve(x), atol=1e-5)


def test_tiles_are_near_the_whole_and_have_gradients(kl):
    module, frozen = kl
    coarse = jax.random.normal(jax.random.key(5), (1, 6, 6, 3))
    pixels = jnp.tanh(jax.image.resize(coarse, (1, 48, 48, 3), "cubic"))
    plain, tiled = (compiled(module, 1.0, 0.0, "mode", t) for t in (None, Tiling(16, 8)))
    key = jax.random.key(0)
    whole, tiles = (c.encode(frozen, pixels, key) for c in (plain, tiled))
    assert tiles.shape == (1, 24, 24, 2)
    assert float(jnp.abs(tiles - whole).mean()) < 0.3 * float(whole.std())
    assert not np.array_equal(tiles, whole)
    grads = jax.jit(jax.grad(lambda x: tiled.decode(frozen, x, key).sum()))(whole)
    assert bool((jnp.abs(grads).max(-1) > 0).all())


def test_mistakes_are_sentences(kl):
    module, frozen = kl
    with pytest.raises(ValueError, match="known are mode, sample"):
        codec(module, 1.0, draw="mean")
    with pytest.raises(ValueError, match="0 <= overlap < size"):
        codec(module, 1.0, tiling=Tiling(4, 4))
    with pytest.raises(ValueError, match="not a multiple of 2"):
        codec(module, 1.0, tiling=Tiling(4, 2)).encode(frozen, jnp.zeros((1, 9, 8, 3)), None)
