"""The discriminator, EfficientNet's blocks, and LPIPS's VGG16 beside torch."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.convert.torch_pickle import read_state_dict
from diffusion_jax.convert.vgg import from_lpips
from diffusion_jax.models.vision import efficientnet, vgg
from diffusion_jax.models.vision.discriminator import PatchDiscriminator
from diffusion_jax.recipes.autoencoder import feature_distance

if os.environ.get("REQUIRE_PARITY") == "1":
    import torch


def _torch():
    if os.environ.get("REQUIRE_PARITY") == "1":
        return torch
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def patch():
    module = PatchDiscriminator(8, 2)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(1), p.shape), params)
    return jax.jit(lambda x: module.apply(params, x))


def test_a_logit_sees_its_patch_and_its_example_alone(patch):
    x = jax.random.normal(jax.random.key(2), (2, 32, 32, 3))
    out = patch(x)
    assert out.shape == (2, 6, 6, 1) and out.dtype == jnp.float32
    other = patch(x.at[1].set(0.0))
    np.testing.assert_array_equal(other[0], out[0])
    assert not np.allclose(other[1], out[1])


def test_the_discriminator_in_half_precision_and_forward_mode():
    module = PatchDiscriminator(8, 2, "bfloat16")
    x = jax.random.normal(jax.random.key(2), (1, 16, 16, 3))
    params = jax.jit(module.init)(jax.random.key(0), x)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    out, slope = jax.jit(lambda x: jax.jvp(lambda x: module.apply(params, x), (x,), (x,)))(x)
    assert out.dtype == jnp.float32 and bool(jnp.isfinite(slope).all())


def test_the_blocks_are_the_ones_of_the_features():
    params = efficientnet.fold(read_state_dict(efficientnet.packaged_weights()))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    pooled = jax.jit(lambda x: efficientnet.features(params, x, 32)["pooled"])(images)
    pixels = images.astype(np.float32) / 127.5 - 1
    blocks = jax.jit(lambda x: efficientnet.block_features(params, x, (0, 2, 15)))(pixels)
    assert [b.shape for b in blocks] == [(2, 16, 16, 16), (2, 8, 8, 24), (2, 1, 1, 320)]
    np.testing.assert_allclose(blocks[-1].mean((1, 2)), pooled, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(0)
    found, before, number = {}, 3, 0
    for i, stage in enumerate(vgg.STAGES):
        for width in stage:
            kernel = rng.normal(size=(width, before, 3, 3)) * np.sqrt(2 / (9 * before))
            found[f"features.{number}.weight"] = kernel.astype(np.float32)
            found[f"features.{number}.bias"] = 0.1 * rng.normal(size=width).astype(np.float32)
            before, number = width, number + 2
        number += 1
        head = rng.uniform(size=(1, before, 1, 1)).astype(np.float32)
        found[f"lin{i}.model.1.weight"] = head
    return found


@pytest.mark.parity
def test_lpips_is_that_of_torch(state):
    torch = _torch()
    functional = torch.nn.functional
    a, b = np.random.default_rng(1).uniform(-1, 1, (2, 2, 32, 32, 3)).astype(np.float32)
    tensors = {name: torch.tensor(array) for name, array in state.items()}

    def reference(x):
        mean = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
        x = (torch.tensor(x).permute(0, 3, 1, 2) - mean) / torch.tensor([0.458, 0.448, 0.450])[
            None, :, None, None
        ]
        out, number = [], 0
        for i, stage in enumerate(vgg.STAGES):
            x = functional.max_pool2d(x, 2) if i else x
            for _ in stage:
                weight, bias = (tensors[f"features.{number}.{k}"] for k in ("weight", "bias"))
                x = functional.relu(functional.conv2d(x, weight, bias, padding=1))
                number += 2
            number += 1
            out.append(x)
        return out

    with torch.no_grad():
        theirs = [reference(a), reference(b)]
        unit = lambda f: f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        distance = sum(
            functional.conv2d((unit(p) - unit(q)) ** 2, tensors[f"lin{i}.model.1.weight"]).mean(
                (1, 2, 3)
            )
            for i, (p, q) in enumerate(zip(*theirs, strict=True))
        )
    params = from_lpips(state)
    both = jax.jit(lambda p, x: vgg.features(p, x))
    ours = [both(params, a), both(params, b)]
    for mine, other in zip(ours[0], theirs[0], strict=True):
        scale = float(other.abs().max())
        np.testing.assert_allclose(mine / scale, other.permute(0, 2, 3, 1) / scale, atol=1e-5)
    found = feature_distance(*ours, vgg.heads(params))
    np.testing.assert_allclose(found, distance.numpy(), rtol=1e-4)


def test_the_names_of_lpips_and_of_torchvision_are_one(state):
    slices = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
    renamed = {"scaling_layer.shift": np.zeros(3)}
    for name, array in state.items():
        part = name.split(".")
        if part[0] == "features":
            name = f"net.slice{slices[int(part[1])]}.{part[1]}.{part[2]}"
        renamed[name] = array
    jax.tree.map(np.testing.assert_array_equal, from_lpips(renamed), from_lpips(state))
    short = {k: v for k, v in state.items() if not k.startswith("lin3")}
    with pytest.raises(ValueError, match=r"missing lin3\.model\.1\.weight"):
        from_lpips(short)
