"""Features of a network from outside of it, and heads on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from numpy.testing import assert_allclose, assert_array_equal
from tiny_unet import TINY

from diffusion_jax.models import MODELS
from diffusion_jax.models.adapter import LAYERS, features_from_module, init_params
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.transformers.dit import DiT
from diffusion_jax.models.transformers.mmdit import MMDiT
from diffusion_jax.models.unet.text_unet import TextUNet
from diffusion_jax.models.vision.discriminator import FeatureHeads

SMALL = {"channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1}
CONTEXT = {"context": np.random.default_rng(1).normal(size=(2, 3, 5)).astype(np.float32)}
# name, network, cond, the shapes of what all its layers say, and a layer after the middle
NETS = {
    "unet": ("unet", TINY, {}, [(2, 2, 3, 8), (2, 2, 3, 16), (2, 2, 3, 16)], "up_0"),
    "unet, again": (
        "unet", TINY.clone(remat="full", scan_blocks=True, num_res_blocks=3), {},
        [(2, 2, 3, 8), (2, 2, 3, 16), (2, 2, 3, 16)], "up_0",
    ),
    "text_unet": (
        "text_unet", TextUNet(**SMALL, depths=(1, 0), heads=2, groups=4, out_channels=2), CONTEXT,
        [(2, 2, 3, 8), (2, 2, 3, 16), (2, 2, 3, 16)], "up_0",
    ),
    "dit": ("dit", DiT(width=8, depth=4, heads=2, out_channels=2, remat="full"), {},
            [(2, 6, 8)] * 3, "layer_3"),
    "mmdit": ("mmdit", MMDiT(width=8, depth=4, heads=2, out_channels=2, pooled_features=0), CONTEXT,
              [(2, 6, 8)] * 3, "layer_3"),
    "mlp": ("mlp", MLP(width=8, depth=2), {}, [(2, 8)] * 2, "dense_out"),
}  # fmt: skip


def _random(module, shape, cond):
    tree = jax.eval_shape(lambda: init_params(module, jax.random.key(0), shape, cond))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), tree)


@pytest.mark.parametrize("which", NETS)
def test_features_are_of_the_layers_and_of_nothing_after_them(which):
    name, module, cond, shapes, after = NETS[which]
    x = np.random.default_rng(2).normal(size=(2, 2) if name == "mlp" else (2, 4, 6, 2))
    x, time = jnp.asarray(x, jnp.float32), jnp.array([3.0, 700.0])
    params, layers = _random(module, x.shape, cond), LAYERS[name](module)
    shown = jax.eval_shape(features_from_module(module, layers.all), params, x, time, cond)
    assert [one.shape for one in shown] == shapes
    middle = features_from_module(module, layers.middle)
    traced = jax.make_jaxpr(lambda params: middle(params, x, time, cond))(params)
    _, used = dce_jaxpr(traced.jaxpr, [True])  # which is what a compiler leaves of it
    paths = [path[0].key for path, _ in jax.tree.leaves_with_path(params)]
    read = {path for path, is_read in zip(paths, used, strict=True) if is_read}
    assert after not in read and {"embed"} < read, read


def test_every_network_has_layers():
    assert set(LAYERS) == set(MODELS)


def test_features_of_points_are_the_networks_own():
    module = MLP(width=8, depth=1)
    x, time = jnp.array([[0.3, -0.2], [1.0, 2.0]]), jnp.array([3.0, 700.0])
    params = _random(module, x.shape, {})
    h = x @ params["dense_in"]["kernel"] + params["dense_in"]["bias"]
    want = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    got = features_from_module(module, LAYERS["mlp"](module).middle)(params, x, time, {})
    assert_allclose(got[0], want, atol=1e-5)


def test_heads_are_told_the_class():
    """logit = a·h + told·(B h): of one example and each class, a plane's own slope."""
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(4, 2, 3, 5)).astype(np.float32)]
    heads, told = FeatureHeads(width=8), jnp.eye(4)
    fresh = heads.init(jax.random.key(0), features, told)
    assert_array_equal(heads.apply(fresh, features, told), np.zeros((4, 1)))
    slope = jax.grad(lambda p: heads.apply(p, features, told).sum())(fresh)["params"]
    assert np.abs(slope["told_0"]["kernel"]).max(1).min() > 1e-3  # so that it is learned
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), fresh)
    own = params["params"]["told_0"]["kernel"]
    by = [heads.apply(params, features, jnp.tile(one, (4, 1)))[:, 0] for one in told]
    plain = heads.apply(params, features, jnp.zeros((4, 4)))[:, 0]
    assert_allclose(plain, heads.apply(params, features)[:, 0], atol=1e-5)
    params["params"]["told_0"]["kernel"] = own[::-1]
    swapped = [heads.apply(params, features, jnp.tile(one, (4, 1)))[:, 0] for one in told]
    assert_allclose(swapped, by[::-1], atol=1e-5)
    assert np.ptp(np.array(by) - plain, axis=0).min() > 1e-2


def test_heads_judge_each_example_by_itself_and_start_at_zero():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=s).astype(np.float32) for s in ((4, 2, 3, 5), (4, 6, 7), (4, 9))]
    heads = FeatureHeads(width=8)
    fresh = heads.init(jax.random.key(0), features)
    assert_array_equal(heads.apply(fresh, features), np.zeros((4, 3)))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), fresh)
    whole = heads.apply(params, features)
    alone = heads.apply(params, [one[2:3] for one in features])
    assert_allclose(whole[2:3], alone, atol=1e-5)
    assert np.ptp(whole, axis=0).min() > 1e-3
    scaled = heads.apply(params, [7 * one + 2 for one in features])
    assert_allclose(whole, scaled, atol=1e-4)
