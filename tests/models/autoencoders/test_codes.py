"""Codes of autoencoders in closed form, a block by hand, and the published size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import primitives
from diffusion_jax.models.autoencoders.autoencoder import (
    AutoencoderKL,
    AutoencoderVQ,
    Posterior,
    check_pixels,
    quantise,
)
from diffusion_jax.models.autoencoders.parts import PlainBlock, style_of


def shapes(module, *args):
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), *args)["params"])
    return jax.tree.map(lambda leaf: leaf.shape, made, is_leaf=lambda x: hasattr(x, "shape"))


def test_a_posterior_is_a_gaussian():
    rng = np.random.default_rng(0)
    mean, log_var = rng.normal(size=(2, 2, 1, 3)), rng.normal(size=(2, 2, 1, 3))
    own = Posterior(jnp.asarray(mean), jnp.asarray(log_var))
    std = np.exp(log_var / 2)
    np.testing.assert_allclose(own.moments()[1], std, rtol=1e-5)
    np.testing.assert_array_equal(own.mode(), own.mean)
    each = -np.log(std) + (std**2 + mean**2) / 2 - 0.5
    np.testing.assert_allclose(own.kl(), each.sum((1, 2, 3)), rtol=1e-5)
    key = jax.random.key(4)
    noise = jax.random.normal(key, mean.shape)
    np.testing.assert_allclose(own.sample(key), mean + std * noise, rtol=1e-4, atol=1e-5)
    net = AutoencoderKL(latent_channels=1)
    code = net.code(jnp.array([[[[0.5, 99.0]], [[0.25, -99.0]]]]))
    assert code.mean.ravel().tolist() == [0.5, 0.25]
    assert code.log_var.ravel().tolist() == [20.0, -30.0]


def test_the_nearest_entry_and_the_gradients_around_it():
    rng = np.random.default_rng(1)
    before, book = (
        rng.normal(size=(2, 3, 2, 4)),
        rng.normal(size=(5, 4)) * [[1], [2], [0.5], [1], [3]],
    )
    before, book = (jnp.asarray(x, jnp.float32) for x in (before, book))
    nearest = np.square(np.asarray(before)[..., None, :] - np.asarray(book)).sum(-1).argmin(-1)
    assert len(np.unique(nearest)) > 2
    got = jax.jit(quantise)(before, book)
    np.testing.assert_array_equal(got.indices, nearest)
    np.testing.assert_allclose(got.z, np.asarray(book)[nearest], atol=1e-6)
    np.testing.assert_array_equal(got.entries, np.asarray(book)[nearest])
    np.testing.assert_array_equal(got.before, before)
    pull = jnp.asarray(rng.normal(size=before.shape), jnp.float32)
    loss = lambda before, book: (quantise(before, book).z * pull).sum()
    to_before, to_book = jax.jit(jax.grad(loss, (0, 1)))(before, book)
    np.testing.assert_allclose(to_before, pull, rtol=1e-6)
    np.testing.assert_array_equal(to_book, 0 * book)
    moved = jax.jit(jax.grad(lambda c: (quantise(before, c).entries * pull).sum()))(book)
    wanted = np.zeros((5, 4))
    np.add.at(wanted, nearest, np.asarray(pull))
    np.testing.assert_allclose(moved, wanted, rtol=1e-4, atol=1e-5)
    mean, deviation = got.moments()
    np.testing.assert_array_equal(mean, got.mode())
    assert not deviation.any()


@pytest.mark.parametrize("features", [4, 6])
def test_a_block_is_its_equation(features):
    style = style_of(2, "float32")
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 4, 4)), jnp.float32)
    module = PlainBlock(features, style)
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes(module, x),
        is_leaf=lambda s: isinstance(s, tuple),
    )  # fmt: skip
    norm = jax.jit(lambda h, p: primitives.group_norm_silu(h, p["scale"], p["bias"], 2, 1e-6))
    conv = jax.jit(lambda h, p: primitives.conv(h, p["kernel"], p["bias"]))
    h = conv(norm(x, params["norm_0"]), params["conv_0"])
    h = conv(norm(h, params["norm_1"]), params["conv_1"])
    own = params.get("shortcut")
    wanted = h + (x if features == 4 else x @ own["kernel"] + own["bias"])
    assert (own is None) == (features == 4)
    got = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_style_is_that_of_the_authors():
    style = style_of(8, jnp.bfloat16)
    assert (style.groups, style.group_channels, style.eps) == (8, 1, 1e-6)
    assert (style.head_dim, style.downsample_padding) == (None, (0, 1))
    assert style.dtype == jnp.bfloat16


def test_the_autoencoder_of_stable_diffusion_has_its_size():
    """83,653,863 parameters; an eighth of the side; one more block on the way up."""
    made = shapes(AutoencoderKL(), jnp.zeros((1, 8, 8, 3)))
    leaves = jax.tree.leaves(made, is_leaf=lambda s: isinstance(s, tuple))
    assert sum(int(np.prod(shape)) for shape in leaves) == 83_653_863
    assert AutoencoderKL().factor == 8
    assert made["encoder"]["conv_out"]["kernel"] == (3, 3, 512, 8)
    assert made["quant"]["kernel"] == (8, 8) and made["post_quant"]["kernel"] == (4, 4)


def test_small_autoencoders_have_the_widths_blocks_and_layers_asked_for():
    fields = {"channels": 4, "channel_mults": (0.5, 1), "blocks": 1, "groups": 2}
    x = jnp.zeros((1, 4, 6, 3))
    kl = shapes(AutoencoderKL(**fields, quant=False, attention=False, latent_channels=3), x)
    assert not {"quant", "post_quant"} & set(kl) and "attention" not in kl["encoder"]["mid"]
    assert kl["encoder"]["conv_in"]["kernel"][-1] == 2
    assert {name for name in kl["decoder"] if name.startswith("up_")} == {
        "up_0_block_0", "up_0_block_1", "up_0_resample", "up_1_block_0", "up_1_block_1",
    }  # fmt: skip
    assert set(kl["encoder"]["mid"]) == {"res_0", "res_1"}
    assert {name for name in kl["encoder"] if name.startswith("down_")} == {
        "down_0_block_0", "down_0_resample", "down_1_block_0",
    }  # fmt: skip
    vq = shapes(AutoencoderVQ(**fields, entries=7, entry_channels=2, latent_channels=3), x)
    assert vq["codebook"] == (7, 2)
    assert vq["quant"]["kernel"] == (3, 2) and vq["post_quant"]["kernel"] == (2, 3)
    same = shapes(AutoencoderVQ(**fields, entries=7, latent_channels=3), x)
    assert same["codebook"] == (7, 3) and same["encoder"]["conv_out"]["kernel"][-1] == 3
    with pytest.raises(ValueError, match=r"\(5, 6\) is not a multiple of 4.*\(4, 4\)"):
        check_pixels((1, 5, 6, 3), 4)
    with pytest.raises(ValueError, match=r"\(4, 6\) is not a multiple of 8.*\(8, 8\)"):
        check_pixels((1, 4, 6, 3), 8)
