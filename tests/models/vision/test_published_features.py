"""Networks of published features without their weights: scaling, shapes, folded norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import primitives
from diffusion_jax.models.vision import efficientnet, inception, vgg


def test_vgg_scales_pixels_as_lpips_and_halves_before_each_stage_but_the_first(monkeypatch):
    published = [shape for name, shape in vgg.shapes().items() if name.startswith("conv")]
    assert sum(int(np.prod(shape)) for shape in published) == 14_714_688  # VGG16's convolutions
    assert [len(stage) for stage in vgg.STAGES] == [2, 2, 3, 3, 3]
    monkeypatch.setattr(vgg, "STAGES", ((2, 3), (1,)))
    rng = np.random.default_rng(0)
    shapes = vgg.shapes()
    assert shapes["conv_0_0/kernel"] == (3, 3, 3, 2) and shapes["conv_1_0/kernel"] == (3, 3, 3, 1)
    assert shapes["head_0/weight"] == (3,) and shapes["conv_0_1/bias"] == (3,)
    params = {name.split("/")[0]: {} for name in shapes}
    for name, shape in shapes.items():
        layer, leaf = name.split("/")
        params[layer][leaf] = rng.normal(size=shape).astype(np.float32)
    pixels = rng.uniform(-1, 1, (2, 4, 6, 3)).astype(np.float32)
    x = (pixels - np.float32([-0.030, -0.088, -0.188])) / np.float32([0.458, 0.448, 0.450])
    layer = lambda x, p: np.maximum(primitives.conv(jnp.asarray(x), p["kernel"], p["bias"]), 0)
    first = layer(layer(x, params["conv_0_0"]), params["conv_0_1"])
    small = np.asarray(first).reshape(2, 2, 2, 3, 2, 3).max((2, 4))
    got = vgg.features(params, jnp.asarray(pixels))
    np.testing.assert_allclose(got[0], first, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], layer(small, params["conv_1_0"]), rtol=1e-4, atol=1e-5)
    grey = vgg.features(params, jnp.asarray(pixels[..., :1]))[0]
    wanted = vgg.features(params, jnp.asarray(pixels[..., :1].repeat(3, -1)))[0]
    np.testing.assert_allclose(grey, wanted, atol=1e-6)
    heads = vgg.heads(params)
    assert [head.tolist() for head in heads] == [
        params[f"head_{i}"]["weight"].tolist() for i in (0, 1)
    ]


def inception_state(rng):
    """A state dict of one channel in each layer, by the names of torchvision."""
    names = {
        "Conv2d_1a_3x3": (3, 3), "Conv2d_2a_3x3": (3, 3), "Conv2d_2b_3x3": (3, 3),
        "Conv2d_3b_1x1": (1, 1), "Conv2d_4a_3x3": (3, 3),
    }  # fmt: skip
    by_kind = {
        "bcd": {"1x1": (1, 1), "5x5_1": (1, 1), "5x5_2": (5, 5), "3x3dbl_1": (1, 1),
                "3x3dbl_2": (3, 3), "3x3dbl_3": (3, 3), "_pool": (1, 1)},
        "6a": {"3x3": (3, 3), "3x3dbl_1": (1, 1), "3x3dbl_2": (3, 3), "3x3dbl_3": (3, 3)},
        "6": {"1x1": (1, 1), "7x7_1": (1, 1), "7x7_2": (1, 7), "7x7_3": (7, 1),
              "7x7dbl_1": (1, 1), "7x7dbl_2": (7, 1), "7x7dbl_3": (1, 7), "7x7dbl_4": (7, 1),
              "7x7dbl_5": (1, 7), "_pool": (1, 1)},
        "7a": {"3x3_1": (1, 1), "3x3_2": (3, 3), "7x7x3_1": (1, 1), "7x7x3_2": (1, 7),
               "7x7x3_3": (7, 1), "7x7x3_4": (3, 3)},
        "7": {"1x1": (1, 1), "3x3_1": (1, 1), "3x3_2a": (1, 3), "3x3_2b": (3, 1),
              "3x3dbl_1": (1, 1), "3x3dbl_2": (3, 3), "3x3dbl_3a": (1, 3), "3x3dbl_3b": (3, 1),
              "_pool": (1, 1)},
    }  # fmt: skip
    blocks = {**{f"5{c}": "bcd" for c in "bcd"}, "6a": "6a", **{f"6{c}": "6" for c in "bcde"}}
    blocks |= {"7a": "7a", "7b": "7", "7c": "7"}
    for block, kind in blocks.items():
        names |= {f"Mixed_{block}.branch{n}": k for n, k in by_kind[kind].items()}
    inputs = {"Conv2d_1a_3x3": 3}
    # What a block reads is what the one before it joined.
    joined, before = {"5": 4, "6a": 3, "6": 4, "7a": 3, "7": 6}, 1
    for block in blocks:
        for name in names:
            first = name.endswith(("1x1", "5x5_1", "3x3dbl_1", "_pool", "branch3x3", "7x7_1"))
            first |= name.endswith(("7x7dbl_1", "branch3x3_1", "7x7x3_1"))
            if name.startswith(f"Mixed_{block}.") and first:
                inputs[name] = before
        last = before
        before = joined.get(block, joined[block[0]])
        if block in ("6a", "7a"):
            before = 2 + last
    state = {}
    for name, kernel in names.items():
        shape = (1, inputs.get(name, 1), *kernel)
        state[f"{name}.conv.weight"] = rng.normal(size=shape).astype(np.float32)
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{key}"] = rng.uniform(0.5, 1.5, 1).astype(np.float32)
    return state


def test_inception_joins_branches_of_one_size_and_names_what_is_missing():
    state = inception_state(np.random.default_rng(0))
    extra = {"AuxLogits.conv0.conv.weight": np.zeros(1), "fc.weight": np.zeros(1)}
    params = inception.fold({**state, **extra})
    assert len(params) == 94 and not any("Aux" in name for name in params)
    out = jax.eval_shape(lambda: inception.features(params, jnp.zeros((2, 40, 50, 1), jnp.uint8)))
    assert out.shape == (2, 6)
    # Of 299 pixels: 149, 147, 147, pooled to 73, 73, 71, pooled to 35, then 17 and 8.
    sizes = {}
    conv = inception._conv

    def noted(params, name, x, *given, **more):
        y = conv(params, name, x, *given, **more)
        sizes[name] = (x.shape[1], y.shape[1])
        return y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "_conv", noted)
        jax.eval_shape(lambda: inception.backbone(params, jnp.zeros((1, 299, 299, 3))))
    assert [sizes[name] for name in sizes if name.startswith("Conv2d")] == [
        (299, 149), (149, 147), (147, 147), (73, 73), (73, 71),
    ]  # fmt: skip
    assert sizes["Mixed_5b.branch1x1"] == (35, 35) and sizes["Mixed_6a.branch3x3"] == (35, 17)
    assert sizes["Mixed_6e.branch_pool"] == (17, 17) and sizes["Mixed_7a.branch3x3_2"] == (17, 8)
    assert sizes["Mixed_7c.branch3x3dbl_3b"] == (8, 8)
    name = "Mixed_6c.branch7x7dbl_4"
    gain = state[f"{name}.bn.weight"] / np.sqrt(state[f"{name}.bn.running_var"] + 1e-3)
    kernel = state[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * gain
    np.testing.assert_allclose(params[name]["kernel"], kernel, rtol=1e-6)
    bias = state[f"{name}.bn.bias"] - state[f"{name}.bn.running_mean"] * gain
    np.testing.assert_allclose(params[name]["bias"], bias, rtol=1e-5)
    del state["Mixed_7b.branch1x1.conv.weight"]
    with pytest.raises(ValueError, match=r"lack the tensor 'Mixed_7b\.branch1x1'"):
        inception.fold(state)


def test_inception_reads_pixels_of_299_squared_in_the_unit_range(monkeypatch):
    monkeypatch.setattr(inception, "backbone", lambda params, x: x)
    corner = np.zeros((1, 2, 2, 1), np.uint8)
    corner[0, 0, 0] = 255
    out = np.asarray(inception.features({}, corner))
    assert out.shape == (1, 299, 299, 3)
    np.testing.assert_allclose(out[0, 0, 0], 1)
    np.testing.assert_allclose(out[0, -1, -1], -1)
    # Bilinear between the centres of the pixels.
    np.testing.assert_allclose(out[0, 149, 149], -0.5, atol=1e-5)


def test_pools_of_inception_do_not_count_the_padding():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    mean = np.asarray(inception._mean_pool(x))[0, :, :, 0]
    np.testing.assert_allclose([mean[0, 0], mean[0, 1], mean[1, 1]], [2, 2.5, 4])
    np.testing.assert_allclose(inception._max_pool(x)[0, :, :, 0], [[8]])
    np.testing.assert_allclose(inception._max_pool_same(-x)[0, :, 0, 0], [0, 0, -3])


def test_a_depthwise_convolution_is_one_of_each_channel():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 7, 6, 3)), jnp.float32)
    layer = {"kernel": rng.normal(size=(5, 5, 1, 3)), "bias": rng.normal(size=3)}
    layer = {name: value.astype(np.float32) for name, value in layer.items()}
    for stride in (1, 2):
        got = jax.jit(lambda x: efficientnet._depthwise(x, layer, stride))(x)  # noqa: B023
        wanted = jax.lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3,
        )  # fmt: skip
        np.testing.assert_allclose(got, wanted + layer["bias"], atol=1e-5)
