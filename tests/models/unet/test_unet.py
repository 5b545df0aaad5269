"""The U-Net: its parameter tree, its options that must not change it, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_unet import LABEL, SHAPE, TINY, abstract_params, inputs, quick, random_params

from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.primitives import depth_to_space, space_to_depth
from diffusion_jax.models.unet.unet import UNet, stack_blocks

# One level and no attention, for tests that compile several nets.
FLAT = TINY.clone(channel_mults=(1,), num_res_blocks=0, attention_levels=(), mid_attention=False)


def shapes(unet, shape=SHAPE, cond=None):
    tree = abstract_params(unet, shape, cond)
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


@pytest.fixture(scope="module")
def params():
    return random_params(TINY)


@pytest.fixture(scope="module")
def net():
    return quick(net_from_module(TINY))


@pytest.fixture(scope="module")
def out(net, params):
    return net(params, *inputs(), LABEL)


def res(path, before, after):
    """{path: shape} of a residual block of the tiny net, whose embedding has 32 channels."""
    tree = {
        "norm_0/scale": (before,),
        "norm_0/bias": (before,),
        "conv_0/kernel": (3, 3, before, after),
        "conv_0/bias": (after,),
        "emb/kernel": (32, 2 * after),
        "emb/bias": (2 * after,),
        "norm_1/scale": (after,),
        "norm_1/bias": (after,),
        "conv_1/kernel": (3, 3, after, after),
        "conv_1/bias": (after,),
    }
    if before != after:
        tree |= {"shortcut/kernel": (before, after), "shortcut/bias": (after,)}
    return {f"{path}/{name}": shape for name, shape in tree.items()}


def attention(path):
    tree = {"norm/scale": (16,), "norm/bias": (16,)}
    for name in ("query", "key", "value", "out"):
        tree |= {f"{name}/kernel": (16, 16), f"{name}/bias": (16,)}
    return {f"{path}/{name}": shape for name, shape in tree.items()}


def test_parameter_tree_is_the_golden_one():
    assert shapes(TINY) == {
        "embed/time_0/kernel": (8, 32),
        "embed/time_0/bias": (32,),
        "embed/time_1/kernel": (32, 32),
        "embed/time_1/bias": (32,),
        "embed/label/embedding": (4, 32),
        "conv_in/kernel": (3, 3, 2, 8),
        "conv_in/bias": (8,),
        **res("down_0/block_0/res", 8, 8),
        **res("down_0/resample", 8, 8),
        **res("down_1/block_0/res", 8, 16),
        **attention("down_1/block_0/attention"),
        **res("mid/res_0", 16, 16),
        **attention("mid/attention"),
        **res("mid/res_1", 16, 16),
        **res("up_0/block_0/res", 16 + 16, 16),
        **attention("up_0/block_0/attention"),
        **res("up_0/block_1/res", 16 + 8, 16),
        **attention("up_0/block_1/attention"),
        **res("up_0/resample", 16, 16),
        **res("up_1/block_0/res", 16 + 8, 8),
        **res("up_1/block_1/res", 8 + 8, 8),
        "norm_out/scale": (8,),
        "norm_out/bias": (8,),
        "conv_out/kernel": (3, 3, 8, 2),
        "conv_out/bias": (2,),
    }


def test_parameter_count_of_a_common_size():
    unet = UNet(channels=64, channel_mults=(1, 2, 2), attention_levels=(2,), out_channels=3)
    assert sum(np.prod(s) for s in shapes(unet, (1, 32, 32, 3)).values()) == 7_660_931


def test_fresh_net_gives_zero_from_float32_parameters():
    unet = FLAT.clone(mid_attention=True)
    fresh = quick(lambda key: init_params(unet, key, SHAPE, LABEL))(jax.random.key(0))
    assert not np.any(quick(net_from_module(unet))(fresh, *inputs(), LABEL))
    flat = flatten_dict(fresh, sep="/")
    assert {leaf.dtype for leaf in flat.values()} == {jnp.dtype("float32")}
    for path, leaf in flat.items():
        module, _, name = path.rpartition("/")
        zero = name == "bias" or module.endswith(("conv_1", "attention/out", "conv_out"))
        assert zero == (not np.any(leaf)), path
    # Uniform with variance 2 / (fan_in + fan_out), fans counted over the 3x3 window.
    deviation = flat["mid/res_0/conv_0/kernel"].std()
    np.testing.assert_allclose(deviation, np.sqrt(2 / (9 * (8 + 8))), rtol=0.1)


def test_no_label_is_the_null_class_and_labels_differ(net, params, out):
    null = net(params, *inputs(), {"label": jnp.array([3, 3])})
    np.testing.assert_array_equal(null, quick(net_from_module(TINY))(params, *inputs(), {}))
    changed = net(params, *inputs(), {"label": jnp.array([1, 2])})
    assert np.abs(changed[0] - out[0]).max() > 1e-3
    np.testing.assert_array_equal(changed[1], out[1])


def test_examples_do_not_mix_and_time_matters(net, params, out):
    x, time = inputs()
    swapped = net(params, x[::-1], time[::-1], {"label": jnp.array([2, 0])})
    np.testing.assert_allclose(swapped[::-1], out, atol=1e-5)
    assert np.abs(net(params, x, time + 5, LABEL) - out).max() > 1e-3


def test_bfloat16_keeps_parameters_and_output_float32(params, out):
    half = TINY.clone(dtype="bfloat16")
    low = quick(net_from_module(half))(params, *inputs(), LABEL)
    assert low.dtype == jnp.float32 and np.isfinite(low).all()
    assert 0 < np.abs(low - out).max() < 0.1 * np.abs(out).max()
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(half))} == {jnp.dtype("float32")}


def test_remat_changes_neither_parameters_nor_gradients():
    key, (x, time) = jax.random.key(0), inputs()
    params = random_params(FLAT)

    def gradient(policy):
        net = net_from_module(FLAT.clone(dropout=0.5, remat=policy))
        loss = lambda x: (net(params, x, time, LABEL, key=key) ** 2).mean()
        assert policy == "none" or "remat" in str(jax.make_jaxpr(jax.grad(loss))(x))
        return quick(jax.grad(loss))(x)

    assert shapes(FLAT.clone(remat="full")) == shapes(FLAT.clone(remat="dots")) == shapes(FLAT)
    plain = gradient("none")
    np.testing.assert_allclose(gradient("full"), plain, atol=1e-5 * np.abs(plain).max())


def test_scan_over_equal_blocks_gives_the_same():
    unet = FLAT.clone(num_res_blocks=2, remat="full")
    scanned = unet.clone(scan_blocks=True)
    unrolled = random_params(unet)
    stacked = stack_blocks(unet, unrolled)
    tree = shapes(scanned)
    assert tree["down_0/blocks_0_1/res/conv_0/kernel"] == (2, 3, 3, 8, 8)
    assert tree["up_0/blocks_0_2/res/conv_0/kernel"] == (3, 3, 3, 16, 8)
    assert {k: v.shape for k, v in flatten_dict(stacked, sep="/").items()} == tree
    outs = [
        quick(net_from_module(u))(p, *inputs(), LABEL)
        for u, p in ((unet, unrolled), (scanned, stacked))
    ]
    np.testing.assert_allclose(*outs, atol=1e-5 * np.abs(outs[0]).max())


def test_forward_and_reverse_derivatives_agree_through_the_whole_net():
    unet = TINY.clone(num_res_blocks=0)
    net, params = net_from_module(unet), random_params(unet)
    (x, time), (dx, dout) = inputs(), (inputs(seed=s)[0] for s in (2, 3))

    def both(x, time):
        f = lambda x, time: net(params, x, time, LABEL)
        forward = jax.jvp(f, (x, time), (dx, jnp.ones(2)))[1]
        back_x, back_time = jax.vjp(f, x, time)[1](dout)
        return (forward * dout).sum(), (back_x * dx).sum() + back_time.sum()

    forward, reverse = quick(both)(x, time)
    assert abs(forward) > 1e-2
    np.testing.assert_allclose(forward, reverse, rtol=1e-3)


def test_dropout_is_on_exactly_with_a_key():
    params = random_params(FLAT)
    net = net_from_module(FLAT.clone(dropout=0.5))
    off = quick(net)(params, *inputs(), LABEL)
    np.testing.assert_array_equal(off, quick(net_from_module(FLAT))(params, *inputs(), LABEL))
    drop = quick(lambda key: net(params, *inputs(), LABEL, key=key))
    one, again, other = (drop(jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3 and np.abs(one - off).max() > 1e-3


def test_patches_fold_and_unfold():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    folded = space_to_depth(x, 2)
    assert folded.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(folded[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(depth_to_space(folded, 2), x)


@pytest.mark.parametrize(
    "fields",
    [
        {"patch": 2},
        {"channels": 7, "head_dim": 5, "conditioning": "additive"},
        {"channels": 6, "channel_mults": (1, 1.5, 2), "num_res_blocks": (0, 1, 2)},
        {"downsample": "conv", "upsample": ("conv",), "time_features": "fourier"},
        {"num_classes": 0, "mid_attention": False, "skip_scale": 0.7, "head_dim": None},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_any_structure_keeps_the_size(fields):
    unet = TINY.clone(**fields)
    shape = (2, 8, 12, 1)
    args = (abstract_params(unet, shape), jnp.zeros(shape), jnp.zeros(2), {})
    assert jax.eval_shape(net_from_module(unet), *args).shape == (2, 8, 12, 2)


@pytest.mark.parametrize(
    ("fields", "cond", "words"),
    [
        ({"patch": 4}, {}, "4x6.*4x4 patches.*halved 1 times.*multiples of 8, such as 8x8"),
        ({"channel_mults": (1, 1, 1)}, {}, "halved 2 times.*such as 4x4 or 4x8"),
        ({"conditioning": "film"}, {}, "conditioning='film'.*additive, scale_shift"),
        ({"downsample": "pool"}, {}, "downsample='pool'.*conv, residual"),
        ({"upsample": ("conv", "conv")}, {}, "upsample=.*2 entries.*1 entries"),
        ({"num_res_blocks": (1,)}, {}, "num_res_blocks=.*1 entries.*2 entries"),
        ({"remat": "some"}, {}, "remat='some'.*dots, full, none"),
        ({"time_features": "rff"}, {}, "time_features='rff'.*fourier, sinusoidal"),
        ({"attention_levels": (2,)}, {}, r"names \[2\].*levels are 0 to 1"),
        ({"num_classes": 0}, LABEL, r"cond has \['label'\].*knows no key"),
        ({}, {"prompt": jnp.zeros(2)}, r"cond has \['prompt'\].*knows \['label'\]"),
        ({}, {"label": jnp.zeros(2)}, "dtype float32.*integers, 0 to 3"),
    ],
)
def test_what_it_cannot_do_it_says_in_a_sentence(fields, cond, words):
    with pytest.raises(ValueError, match=words):
        shapes(TINY.clone(**fields), cond=cond)
