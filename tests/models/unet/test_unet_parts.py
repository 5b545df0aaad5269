"""Embeddings, groups and the plan of blocks, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from diffusion_jax.models.embeddings import fourier, sinusoidal
from diffusion_jax.models.layers import num_groups
from diffusion_jax.models.unet.control import with_control
from diffusion_jax.models.unet.plan import down_widths, runs, up_widths


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(128, 32), (64, 16), (192, 32), (96, 24), (48, 12), (36, 9), (37, 1), (3, 1), (10, 2)],
)
def test_groups_divide_and_hold_four_channels(channels, groups):
    assert num_groups(channels) == groups


def test_groups_are_at_most_so_many_of_at_least_so_many_channels():
    assert [num_groups(48, most) for most in (5, 7, 8)] == [4, 6, 8]
    assert [num_groups(48, group_channels=n) for n in (1, 5, 24, 49)] == [24, 8, 2, 1]


def test_sinusoidal_features_have_the_period_and_the_order_of_adm():
    """The longest period is 2π·10000; cosines come first; an odd number ends in 0."""
    time = jnp.array([3.0, 500.0])
    angles = np.outer(time, 10000.0 ** (-np.arange(3) / 3))
    expected = np.concatenate([np.cos(angles), np.sin(angles), np.zeros((2, 1))], axis=1)
    np.testing.assert_allclose(sinusoidal(time, 7), expected, atol=1e-4)
    ddpm = np.outer(time, 10000.0 ** (-np.arange(3) / 2))
    expected = np.concatenate([np.cos(ddpm), np.sin(ddpm)], axis=1)
    np.testing.assert_allclose(sinusoidal(time, 6, shift=1.0), expected, atol=1e-4)
    with pytest.raises(ValueError, match="dim=2"):
        sinusoidal(time, 2, shift=1.0)


def test_fourier_features_by_hand():
    """Frequencies are the quantiles in the middle of 256 parts of equal probability."""
    time = jnp.array([0.1, 0.7])
    quantiles = ndtri((np.arange(256) + 0.5) / 256)
    for bandwidth, given in ((16.0, ()), (0.5, (0.5,))):
        angles = 2 * np.pi * bandwidth * np.outer(time, quantiles)
        expected = np.sqrt(2) * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        odd = np.concatenate([expected, np.zeros((2, 1))], axis=1)
        np.testing.assert_allclose(fourier(time, 513, *given), odd, atol=1e-3)


def test_sinusoidal_features_by_hand():
    time = jnp.array([0.0, 2.5])
    angles = np.outer(time, [1.0, 0.1])
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(sinusoidal(time, 4, max_period=100.0), expected, atol=1e-6)
    ddpm = np.outer(time, [1.0, 0.01])
    expected = np.concatenate([np.sin(ddpm), np.cos(ddpm), np.zeros((2, 1))], axis=1)
    got = sinusoidal(time, 5, max_period=100.0, cos_first=False, shift=1.0)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_fourier_features_estimate_the_gaussian_kernel():
    # E cos(2π·f·d) over f ~ N(0, s²) is exp(-2(π·s·d)²), and features of equal times have norm dim.
    time = jnp.array([0.0, 0.05, 0.1])
    features = fourier(time, 512, bandwidth=2.0)
    kernel = np.asarray(features @ features.T) / 512
    gap = np.subtract.outer(np.asarray(time), np.asarray(time))
    np.testing.assert_allclose(kernel, np.exp(-2 * (2 * np.pi * gap) ** 2), atol=0.01)


@pytest.mark.parametrize("features", [sinusoidal, fourier])
def test_too_few_features_are_refused(features):
    with pytest.raises(ValueError, match="dim=1"):
        features(jnp.zeros(1), 1)


def test_plan_of_adm_pairs_each_skip_once():
    features, counts = (64, 128, 256), (2, 1, 3)
    down = [f for level in down_widths(features, counts) for f in level]
    assert down == [(64, 0), (64, 0), (64, 0), (128, 0), (256, 0), (256, 0)]
    assert up_widths(features, counts) == [
        ((256, 256), (256, 256), (256, 256), (256, 128)),
        ((256, 128), (128, 64)),
        ((128, 64), (64, 64), (64, 64)),
    ]


def test_runs_of_equal_blocks():
    widths = ((8, 4), (4, 4), (4, 4), (4, 2))
    assert runs(widths, scan=True) == [(0, 0), (1, 2), (3, 3)]
    assert runs(widths, scan=False) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_controls_have_their_own_hints_scales_and_keys_and_are_summed():
    seen = []

    def control(params, x, time, cond, *, scale, key=None):
        seen.append((params, x, time, cond, scale, key))
        return {"mid": params * scale, "down": (cond["hint"],)}

    def net(params, x, time, cond, *, key=None):
        return params, x, time, cond, key

    cond = {"hint": (9, 1, 2, 3), "control_scale": (5.0, 10.0, 100.0, 1000.0), "label": 4}
    params = {"net": "own", "control": (1.0, 2.0, 3.0)}
    out = with_control(net, [control] * 3)(params, "x", "t", cond)
    assert out == (
        "own", "x", "t",
        {"label": 4, "hint": (9,), "control_scale": (5.0,),
         "control": {"mid": 3210.0, "down": (6,)}},
        None,
    )  # fmt: skip
    assert [(p, c["hint"], s, k) for p, _, _, c, s, k in seen] == [
        (1.0, 1, 10.0, None), (2.0, 2, 100.0, None), (3.0, 3, 1000.0, None),
    ]  # fmt: skip
    seen.clear()
    more = {"hint": (7,), "control": {"mid": 0.5, "down": (1,)}}
    key = jax.random.key(0)
    one = {"net": "own", "control": (2.0,)}
    *_, told, own = with_control(net, [control])(one, "x", "t", more, key=key)
    assert told == {"control": {"mid": 2.5, "down": (8,)}}
    wanted = jax.random.split(key, 2)
    assert (own == wanted[0]).all() and (seen[0][5] == wanted[1]).all()
