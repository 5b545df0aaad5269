"""PSNR and SSIM against their formulas in float64."""

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from diffusion_jax.evaluate.reconstruction import psnr, ssim


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (3, 20, 17, 3))
    a[1] = 255  # flat, as a white background is
    b = np.clip(a + rng.normal(0, 12, a.shape), 0, 255).round()
    return a.astype(np.uint8), b.astype(np.uint8)


def reference(a, b, size=11, sigma=1.5):
    place = np.arange(size) - size // 2
    weight = np.exp(-(place**2) / (2 * sigma**2))
    weight /= weight.sum()
    cut = slice(size // 2, -(size // 2))

    def mean(x):
        for axis in (0, 1):
            x = correlate1d(x, weight, axis)
        return x[cut, cut]

    values = []
    for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        each = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        values.append(each.mean())
    return np.array(values)


def test_psnr(pair):
    a, b = pair
    error = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(psnr(a, b), 10 * np.log10(255**2 / error), rtol=1e-5)
    assert np.isposinf(psnr(a, a)).all()


def test_ssim(pair):
    np.testing.assert_allclose(ssim(*pair), reference(*pair), atol=2e-5)
    np.testing.assert_allclose(ssim(pair[0], pair[0]), 1, atol=1e-5)
    assert float(ssim(pair[0], 255 - pair[0])[0]) < -0.5
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)))
