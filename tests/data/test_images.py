import io

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import images, picture_files


def png(picture):
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("L", 7, [7]),
        ("1", 1, [255]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (9, 9, 9, 0), [255, 255, 255]),
        ("LA", (9, 255), [9, 9, 9]),
        ("I;16", 257 * 40, [40]),
    ],
)
def test_decoding_any_kind_of_png(mode, colour, expected):
    decoded = picture_files.read(png(Image.new(mode, (3, 2), colour)))
    assert decoded.shape == (2, 3, len(expected)) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded[0, 0], expected)


def test_channels_to_and_fro():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    colour = images.with_channels(grey, 3)
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, -1))
    np.testing.assert_array_equal(images.with_channels(colour, 1), grey)


def test_resizing_covers_and_keeps_proportions():
    image = np.zeros((30, 60, 3), np.uint8)
    assert images.resized(image, (10, 10), "center").shape == (10, 20, 3)
    assert images.resized(image, (10, 40), "center").shape == (20, 40, 3)
    assert images.resized(image, (10, 10), "stretch").shape == (10, 10, 3)
    assert images.resized(image, (30, 60), "center") is image


def test_resizing_keeps_constants_and_the_mean():
    flat = np.full((9, 7, 1), 77, np.uint8)
    np.testing.assert_array_equal(images.resized(flat, (32, 25), "stretch"), 77)
    noise = np.random.default_rng(0).integers(64, 192, (64, 64, 3), np.uint8)
    small = images.resized(noise, (16, 16), "center")
    np.testing.assert_allclose(small.mean((0, 1)), noise.mean((0, 1)), atol=1)


@pytest.mark.parametrize("place, left", [(0.0, 0), (0.5, 5), (1.0, 10)])
def test_crops(place, left):
    image = np.arange(40 * 30).reshape(40, 30, 1)
    np.testing.assert_array_equal(
        images.cropped(image, (40, 20), place), image[:, left : left + 20]
    )
