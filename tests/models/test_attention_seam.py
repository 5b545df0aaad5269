"""The seam of attention: paths, image tokens on every network, changes upon changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tiny_unet import quick

from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.attention import CrossAttention
from diffusion_jax.models.attention_seam import attention_calls, with_attention
from diffusion_jax.models.image_tokens import (
    copy_text_kernels,
    init_image_tokens,
    with_image_tokens,
)
from diffusion_jax.models.transformers.dit import DiT
from diffusion_jax.models.transformers.mmdit import MMDiT
from diffusion_jax.models.unet.blocks import REMATS
from diffusion_jax.models.unet.text_unet import TextUNet
from diffusion_jax.models.unet.unet import UNet

SHAPE, TIME = (2, 4, 6, 2), jnp.array([3.0, 700.0])


def draw(*shape, seed=0, size=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, size, shape), jnp.float32)


X, CONTEXT = draw(*SHAPE), {"context": draw(2, 5, 3, seed=1)}
PICTURE = {"image_tokens": draw(2, 4, 7, seed=2)}
SIZE = {"channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1, "out_channels": 2}
# Each: the network, its cond, the attentions that read the picture, and all of its attentions.
NETS = {
    "text_unet": (
        TextUNet(**SIZE, depths=(2, 0), mid_depth=1, heads=2, groups=4), CONTEXT, "cross_attention",
        [
            f"{block}/transformer/layer_{i}/{kind}_attention/attend"
            for block, depth in (
                ("down_0/block_0", 2), ("mid", 1), ("up_1/block_0", 2), ("up_1/block_1", 2)
            )
            for i in range(depth)
            for kind in ("self", "cross")
        ],
    ),
    "unet": (
        UNet(**SIZE, attention_levels=(1,), head_dim=4), {}, "",
        ["down_1/block_0/attention/attend", "mid/attention/attend",
         "up_0/block_0/attention/attend", "up_0/block_1/attention/attend"],
    ),
    "dit": (
        DiT(width=8, depth=2, heads=2, out_channels=2), {}, "layer_1",
        ["layer_0/attention/attend", "layer_1/attention/attend"],
    ),
    "mmdit": (
        MMDiT(width=8, depth=2, heads=2, out_channels=2, pooled_features=0, max_side=4,
              grid=None, second_attention=(0,)), CONTEXT, "joint_attend",
        ["layer_0/joint_attend", "layer_0/second_attend", "layer_1/joint_attend"],
    ),
}  # fmt: skip


def random_like(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)


def adapted(name, **fields):
    """(network, network with image tokens, params of both), nothing at zero."""
    module, cond, select, _ = NETS[name]
    module = module.clone(**fields)
    net = net_from_module(module)
    shapes = jax.eval_shape(lambda k: init_params(module, k, SHAPE, cond), jax.random.key(0))
    calls = attention_calls(net, shapes, SHAPE, cond, select)
    tokens = init_image_tokens(jax.random.key(1), calls, 7)
    return net, with_image_tokens(net, select), {"net": random_like(shapes), "image_tokens": tokens}


@pytest.mark.parametrize("name", NETS)
def test_the_paths_of_attentions_are_the_golden_ones(name):
    module, cond, _, paths = NETS[name]
    shapes = jax.eval_shape(lambda k: init_params(module, k, SHAPE, cond), jax.random.key(0))
    calls = attention_calls(net_from_module(module), shapes, SHAPE, cond)
    assert list(calls) == paths and [call.path for call in calls.values()] == paths
    first = calls[paths[0]]
    assert first.query.dtype == jnp.float32 and len(first.query.shape) == 4
    if name == "text_unet":
        across = calls[paths[1]]
        assert across.query.shape == (2, 24, 2, 4) and across.key.shape == (2, 5, 2, 4)


@pytest.mark.parametrize("name", NETS)
def test_scale_0_is_the_network_and_other_scales_are_each_examples_own(name):
    cond = NETS[name][1]
    net, both, params = adapted(name)
    plain = quick(net)(params["net"], X, TIME, cond)
    jitted = quick(both)
    run = lambda scale: jitted(params, X, TIME, cond | PICTURE | {"image_scale": scale})
    assert_array_equal(run(jnp.zeros(2)), plain)
    mixed, full = run(jnp.array([0.0, 0.8])), run(jnp.full(2, 0.8))
    assert_array_equal(mixed[0], plain[0])
    assert_array_equal(mixed[1], full[1])
    assert np.abs(full - plain).max(axis=(1, 2, 3)).min() > 1e-3
    one = quick(both)(params, X, TIME, cond | PICTURE)
    assert_allclose(run(jnp.ones(2)), one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("remat", REMATS)
def test_rematerialisation_keeps_the_output_and_the_gradients(remat):
    flat = {"channel_mults": (1,), "num_res_blocks": 1, "depths": 1}
    net, _, params = adapted("text_unet", **flat)
    _, both, _ = adapted("text_unet", **flat, remat=remat)
    cond = CONTEXT | PICTURE | {"image_scale": jnp.array([0.0, 0.8])}
    path = "up_0/block_1/transformer/layer_0/cross_attention/attend"
    square = lambda out: (out**2).sum((1, 2, 3))

    @quick
    def values_and_slopes(tokens):
        def f(tokens):
            value = square(both({**params, "image_tokens": tokens}, X, TIME, cond))
            return value.sum(), value

        return jax.grad(f, has_aux=True)(tokens)

    slopes, value = values_and_slopes(params["image_tokens"])
    plain = quick(net)(params["net"], X, TIME, CONTEXT)
    assert_allclose(value[0], square(plain)[0], rtol=1e-5)
    assert len(slopes) == 4 and all(np.any(leaf) for leaf in jax.tree.leaves(slopes))

    def moved(e):
        kernel = params["image_tokens"][path]["value"]["kernel"].at[2, 5].add(e)
        one = {**params["image_tokens"][path], "value": {"kernel": kernel}}
        return values_and_slopes({**params["image_tokens"], path: one})[1].sum()

    difference = (moved(2e-2) - moved(-2e-2)) / 4e-2
    assert_allclose(slopes[path]["value"]["kernel"][2, 5], difference, rtol=0.02, atol=1e-3)


def test_one_attention_by_hand():
    """Equation (1) in NumPy, before the output projection, for unequal m, n, widths and heads."""
    module = CrossAttention(heads=2, use_bias=True)
    x, context, tokens = draw(2, 3, 6), draw(2, 5, 4, seed=1), draw(2, 2, 7, seed=2)
    own = random_like(jax.eval_shape(module.init, jax.random.key(0), x, context))["params"]
    kernels = {k: {"kernel": draw(7, 6, seed=i)} for i, k in enumerate(("key", "value"))}

    seen = []

    def net(params, x, time, cond, *, key=None):
        seen.append((time, set(cond), key))
        return module.apply({"params": params}, x, cond["context"])

    cond = {"context": context, "image_tokens": tokens, "image_scale": 0.6}
    params = {"net": own, "image_tokens": {"attend": kernels}}
    got = with_image_tokens(net, "")(params, x, None, cond)
    with_image_tokens(net, "")(params, x, "time", cond, key="key")
    assert seen == [(None, {"context"}, None), ("time", {"context"}, "key")]

    def attention(q, k, v):
        q, k, v = (np.reshape(z, (*z.shape[:2], 2, 3)).transpose(0, 2, 1, 3) for z in (q, k, v))
        logits = q @ k.transpose(0, 1, 3, 2) / np.sqrt(3)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return (weights @ v).transpose(0, 2, 1, 3).reshape(2, 3, 6)

    dense = lambda z, name: np.asarray(z) @ own[name]["kernel"] + own[name]["bias"]
    image = lambda name: np.asarray(tokens) @ np.asarray(kernels[name]["kernel"])
    query = dense(x, "query")
    h = attention(query, dense(context, "key"), dense(context, "value"))
    h = h + 0.6 * attention(query, image("key"), image("value"))
    assert_allclose(got, h @ own["out"]["kernel"] + own["out"]["bias"], rtol=1e-4, atol=1e-5)


def test_changes_nest_and_each_gets_what_lies_nearer_to_the_network():
    net, _, params = adapted("dit")
    scaled = lambda factor: lambda params, cond: lambda call, rest: factor * rest(call)
    added = lambda params, cond: lambda call, rest: rest(call) + 1

    def out(wrapped):
        return quick(wrapped)(params["net"], X, TIME, {})

    first_scaled = with_attention(with_attention(net, "", scaled(2.0)), "", added)  # 2·a + 1
    by_hand = lambda params, cond: lambda call, rest: 2.0 * rest(call) + 1
    assert_allclose(out(first_scaled), out(with_attention(net, "", by_hand)), rtol=1e-6)
    other = with_attention(with_attention(net, "", added), "", scaled(2.0))  # 2·(a + 1)
    assert np.abs(out(other) - out(first_scaled)).max() > 1e-3


def test_keys_of_another_picture_may_be_added():
    """Reference attention: a copy of its own keys changes nothing, another picture's do."""
    net, _, params = adapted("dit")

    def longer(order):
        of = lambda z: jnp.concatenate([z, z[order]], 1)
        change = lambda call, rest: rest(call._replace(key=of(call.key), value=of(call.value)))
        return quick(with_attention(net, "layer_0", lambda params, cond: change))

    run = lambda net: net(params["net"], X, TIME, {})
    plain = run(quick(net))
    assert_allclose(run(longer(jnp.array([0, 1]))), plain, rtol=1e-4, atol=1e-5)
    assert np.abs(run(longer(jnp.array([1, 0]))) - plain).max() > 1e-3


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_interception_ends_with_the_call(remat):
    """Nor does a trace that something remembers outlive it."""
    net, both, params = adapted("dit", remat=remat)
    plain = net(params["net"], X, TIME, {})
    steered = both(params, X, TIME, PICTURE)
    assert_array_equal(net(params["net"], X, TIME, {}), plain)
    assert_array_equal(both(params, X, TIME, PICTURE), steered)
    assert np.abs(steered - plain).max() > 1e-3


def test_an_adapter_may_start_from_the_kernels_of_the_text():
    _, cond, select, _ = NETS["text_unet"]
    net, _, params = adapted("text_unet")
    calls = attention_calls(net, params["net"], SHAPE, cond, select)
    wide, fitting = (init_image_tokens(jax.random.key(1), calls, d) for d in (7, 3))
    unchanged = copy_text_kernels(params["net"], wide)
    jax.tree.map(assert_array_equal, unchanged, wide)
    copied = copy_text_kernels(params["net"], fitting)
    assert list(copied) == list(calls)
    own = params["net"]["mid"]["transformer"]["layer_0"]["cross_attention"]
    there = copied["mid/transformer/layer_0/cross_attention/attend"]
    assert_array_equal(there["key"]["kernel"], own["key"]["kernel"])
    assert_array_equal(there["value"]["kernel"], own["value"]["kernel"])


def test_bfloat16_stays_near_float32():
    _, both, params = adapted("text_unet")
    _, low, _ = adapted("text_unet", dtype="bfloat16")
    run = lambda net: quick(net)(params, X, TIME, CONTEXT | PICTURE)
    assert run(low).dtype == jnp.float32
    assert 0 < np.abs(run(low) - run(both)).max() < 0.05 * np.abs(run(both)).max()


def test_what_does_not_fit_is_a_sentence():
    net, both, params = adapted("text_unet")
    call = lambda net, cond: jax.eval_shape(lambda: net(params, X, TIME, CONTEXT | cond))
    with pytest.raises(ValueError, match="cond lacks 'image_tokens'"):
        call(both, {})
    with pytest.raises(ValueError, match=r"has shape \(2, 7\): give \[b, n, d\]"):
        call(both, {"image_tokens": jnp.zeros((2, 7))})
    with pytest.raises(ValueError, match=r"has 6 channels, the adapter at down_0.* reads 7"):
        call(both, {"image_tokens": jnp.zeros((2, 4, 6))})
    with pytest.raises(ValueError, match="of 3 examples, x of 2"):
        call(both, {"image_tokens": jnp.zeros((3, 4, 7))})
    with pytest.raises(ValueError, match=r"no parameters for down_0/.*self_attention"):
        call(with_image_tokens(net, ""), PICTURE)
    with pytest.raises(ValueError, match=r"No attention .* whose path has 'crossing'"):
        call(with_image_tokens(net, "crossing"), PICTURE)
    scanned = UNet(**SIZE | {"num_res_blocks": 3}, attention_levels=(0,), scan_blocks=True)
    shapes = jax.eval_shape(lambda k: init_params(scanned, k, SHAPE), jax.random.key(0))
    calls = attention_calls(net_from_module(scanned), shapes, SHAPE, {})
    with pytest.raises(ValueError, match=r"down_0/blocks_0_2.*scan_blocks=False"):
        init_image_tokens(jax.random.key(0), calls, 7)
