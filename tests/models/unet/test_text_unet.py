"""The text-conditional U-Net and ControlNet: parameters, derivatives, types, gates, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose, assert_array_equal
from tiny_unet import quick

from diffusion_jax.models import MODELS, primitives
from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.attention import CrossAttention
from diffusion_jax.models.unet.control import (
    ControlNet,
    control_from_module,
    copy_encoder,
    with_control,
)
from diffusion_jax.models.unet.text_unet import TextUNet

FIELDS = {
    "channels": 8,
    "channel_mults": (1, 2),
    "num_res_blocks": 1,
    "depths": (1, 0),
    "heads": 2,
    "groups": 4,
}
UNET = TextUNet(**FIELDS, out_channels=2)
# One level, one transformer, for tests that compile several nets or gradients.
FLAT_FIELDS = {"channel_mults": (1,), "num_res_blocks": 0, "depths": 0}
FLAT = UNET.clone(**FLAT_FIELDS)
CONTROL = ControlNet(**FIELDS, hint_widths=(4, 6))
ADDED = FLAT.clone(added_features=4, num_classes=3)
SHAPE = (2, 4, 6, 2)
UP = tuple(f"up_{i}/block_{j}" for i in range(2) for j in range(2))
BLOCKS = ("down_0/block_0", "down_1/block_0", "mid", *UP)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, TIME = draw(*SHAPE), jnp.array([3.0, 700.0])
TEXT = {"context": draw(2, 5, 3, seed=1)}
HINT = {"hint": jnp.abs(draw(2, 8, 12, 3, seed=2)) % 1}


def fresh_params(module, cond):
    return quick(lambda key: init_params(module, key, SHAPE, cond))(jax.random.key(0))


def random_params(module, cond):
    """Parameters with nothing at zero, so that every path of the net counts."""
    shapes = jax.eval_shape(lambda k, c: init_params(module, k, SHAPE, c), jax.random.key(0), cond)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return random_params(UNET, TEXT)


@pytest.fixture(scope="module")
def net():
    return quick(net_from_module(UNET))


@pytest.fixture(scope="module")
def out(net, params):
    return net(params, X, TIME, TEXT)


@pytest.fixture(scope="module")
def control_params():
    return random_params(CONTROL, TEXT | HINT)


def test_parameter_tree_of_a_transformer_is_the_golden_one(params):
    flat = flatten_dict(params["down_0"]["block_0"]["transformer"], sep="/")
    attention = lambda name, width: {
        f"layer_0/{name}/query/kernel": (8, 8),
        f"layer_0/{name}/key/kernel": (width, 8),
        f"layer_0/{name}/value/kernel": (width, 8),
        f"layer_0/{name}/out/kernel": (8, 8),
        f"layer_0/{name}/out/bias": (8,),
    }
    norm = lambda name: {f"{name}/scale": (8,), f"{name}/bias": (8,)}
    dense = lambda name, m, n: {f"{name}/kernel": (m, n), f"{name}/bias": (n,)}
    assert {path: leaf.shape for path, leaf in flat.items()} == {
        **norm("norm"),
        **dense("proj_in", 8, 8),
        **norm("layer_0/norm_0"),
        **attention("self_attention", 8),
        **norm("layer_0/norm_1"),
        **attention("cross_attention", 3),
        **norm("layer_0/norm_2"),
        **dense("layer_0/mlp/in", 8, 64),
        **dense("layer_0/mlp/out", 32, 8),
        **dense("proj_out", 8, 8),
    }
    assert sorted(params) == (
        ["conv_in", "conv_out", "down_0", "down_1", "embed", "mid", "norm_out", "up_0", "up_1"]
    )
    assert "transformer" not in params["down_1"]["block_0"] and "transformer" in params["mid"]
    assert MODELS["text_unet"] is TextUNet


def test_zero_and_float32_at_initialisation():
    unet = FLAT.clone(dtype="bfloat16")
    params = fresh_params(unet, TEXT)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = quick(net_from_module(unet))(params, X, TIME, TEXT)
    assert out.dtype == jnp.float32 and out.shape == SHAPE and not np.any(out)


def test_bfloat16_is_near_float32():
    params = random_params(FLAT, TEXT)
    run = lambda unet: quick(net_from_module(unet))(params, X, TIME, TEXT)
    low, out = run(FLAT.clone(dtype="bfloat16")), run(FLAT)
    assert np.isfinite(low).all()
    error = np.abs(low - out).max() / np.abs(out).max()
    assert 0 < error < 0.05


def test_forward_derivative_is_the_finite_difference():
    params, net = random_params(FLAT, TEXT), net_from_module(FLAT)
    at = (X, TEXT["context"])
    move = tuple(draw(*z.shape, seed=5) for z in at)

    @quick
    def both(step):
        f = lambda x, context: net(params, x, TIME, {"context": context})
        moved = lambda e: f(at[0] + e * move[0], at[1] + e * move[1])
        return jax.jvp(f, at, move)[1], (moved(step) - moved(-step)) / (2 * step)

    tangent, difference = both(3e-3)
    assert_allclose(tangent, difference, atol=2e-3 * float(jnp.abs(tangent).max()))


def test_gradients_are_the_same_with_rematerialisation():
    params = random_params(FLAT, TEXT)

    def gradient(unet):
        net = net_from_module(unet)
        return quick(jax.grad(lambda p: (net(p, X, TIME, TEXT) ** 2).mean()))(params)

    wanted, got = gradient(FLAT), gradient(FLAT.clone(remat="full"))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, wanted)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(wanted))


def test_masked_text_is_not_read():
    params, net = random_params(FLAT, TEXT), quick(net_from_module(FLAT))
    longer = {"context": jnp.concatenate([TEXT["context"], 9 + draw(2, 2, 3)], 1)}
    mask = lambda n: {"context_mask": jnp.arange(7) < n * jnp.ones((2, 1))}
    out = net(params, X, TIME, TEXT)
    assert_allclose(net(params, X, TIME, longer | mask(5)), out, rtol=1e-5, atol=1e-5)
    assert np.abs(net(params, X, TIME, longer | mask(6)) - out).max() > 1e-2


def test_attention_with_a_mask_is_attention_to_the_rest():
    q, k, v = draw(2, 3, 2, 4), draw(2, 5, 2, 4, seed=1), draw(2, 5, 2, 4, seed=2)
    mask = jnp.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)

    @quick
    def both():
        kept = primitives.attention(q[:1], k[:1, [0, 2, 3]], v[:1, [0, 2, 3]])
        return primitives.attention(q, k, v, mask), kept

    out, kept = both()
    assert_allclose(out[:1], kept, rtol=1e-5)
    assert np.isfinite(out).all()  # a row without a key


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="heads=3 does not divide the 8 channels"):
        jax.eval_shape(CrossAttention(3).init, jax.random.key(0), draw(1, 2, 8))


def test_gates_are_of_the_blocks_that_they_name(net, params, out):
    assert UNET.blocks == BLOCKS
    layers = ("down_0/block_0", "mid", "up_1/block_0", "up_1/block_1")
    assert UNET.attention_layers == layers
    gates = lambda a, s: TEXT | {"identity_attention": a, "skip_blocks": s}
    none, nothing = jnp.zeros((2, 4)), jnp.zeros((2, 7))
    assert_allclose(net(params, X, TIME, gates(none, nothing)), out, rtol=1e-5, atol=1e-6)
    # Of one example alone.
    one = net(params, X, TIME, gates(none.at[1, 1].set(1), nothing))
    assert_allclose(one[0], out[0], rtol=1e-5, atol=1e-6)
    assert np.abs(one[1] - out[1]).max() > 1e-4
    # The middle's branches at zero leave its input.
    mid = dict(params["mid"])
    for name, last in (("res_0", "conv_1"), ("transformer", "proj_out"), ("res_1", "conv_1")):
        mid[name] = {**mid[name], last: jax.tree.map(np.zeros_like, mid[name][last])}
    wanted = net({**params, "mid": mid}, X, TIME, TEXT)
    got = net(params, X, TIME, gates(none, nothing.at[:, 2].set(1)))
    assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_control_is_added_where_it_should_be(params, control_params, net, out):
    both = with_control(net_from_module(UNET), [control_from_module(CONTROL)])
    run = quick(lambda params, cond: both(params, X, TIME, cond))
    tree, hint = {"net": params, "control": (control_params,)}, {"hint": (HINT["hint"],)}
    scale = lambda *s: {"control_scale": (jnp.array(s, jnp.float32),)}
    steered = run(tree, TEXT | hint | scale(1, 1))
    assert np.abs(steered - out).max() > 1e-2
    half = run(tree, TEXT | hint | scale(0, 1))
    assert_allclose(half[0], out[0], rtol=1e-5, atol=1e-5)
    assert_allclose(half[1], steered[1], rtol=1e-5, atol=1e-5)


def test_what_two_controls_add_is_summed(params, control_params):
    control = control_from_module(CONTROL)
    twice = with_control(net_from_module(UNET), [control, control])
    once = with_control(net_from_module(UNET), [control])
    hint, thirds = HINT["hint"], (jnp.full(2, 1 / 3), jnp.full(2, 2 / 3))
    cond = TEXT | {"hint": (hint, hint), "control_scale": thirds}
    both = quick(lambda p: twice(p, X, TIME, cond))
    got = both({"net": params, "control": (control_params, control_params)})
    alone = quick(lambda p: once(p, X, TIME, TEXT | {"hint": (hint,)}))
    wanted = alone({"net": params, "control": (control_params,)})
    assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_fresh_control_changes_nothing_and_learns():
    net, control = net_from_module(FLAT), CONTROL.clone(**FLAT_FIELDS)
    both = with_control(net, [control_from_module(control)])
    hint = {"hint": (HINT["hint"],)}
    params, fresh = random_params(FLAT, TEXT), fresh_params(control, TEXT | HINT)

    def loss(control):
        steered = both({"net": params, "control": (control,)}, X, TIME, TEXT | hint)
        return (steered**2).sum(), (steered, net(params, X, TIME, TEXT))

    grads, (steered, plain) = quick(jax.grad(loss, has_aux=True))(fresh)
    assert_allclose(steered, plain, rtol=1e-5, atol=1e-5)
    zeros = [name for name in grads if name.startswith("zero_")]
    assert sorted(zeros) == ["zero_0", "zero_mid"]
    assert all(np.any(grads[name]["kernel"]) for name in zeros)


def test_a_control_starts_as_a_copy_of_the_unets_way_down(params, control_params):
    copied = copy_encoder(params, control_params)
    assert copied["down_0"] is params["down_0"] and copied["mid"] is params["mid"]
    own = {name for name in copied if copied[name] is control_params[name]}
    assert own == {"hint", "zero_mid", *(f"zero_{i}" for i in range(4))}
    with pytest.raises(ValueError, match="conv_in has other shapes"):
        copy_encoder({"conv_in": {"kernel": np.zeros(3)}}, control_params)


def test_text_time_and_label_reach_the_output():
    cond = TEXT | {
        "pooled": draw(2, 6),
        "time_ids": jnp.array([[64.0, 64, 0], [32, 64, 8]]),
        "label": jnp.array([0, 3]),
    }
    params = random_params(ADDED, cond)
    net = quick(net_from_module(ADDED))
    out = net(params, X, TIME, cond)
    assert params["added"]["dense_0"]["kernel"].shape == (6 + 3 * 4, 32)
    for key, other in {
        "pooled": cond["pooled"] + 1,
        "time_ids": cond["time_ids"][:, ::-1],
        "label": jnp.array([1, 2]),
    }.items():
        assert np.abs(net(params, X, TIME, cond | {key: other}) - out).max() > 1e-3, key
    with pytest.raises(ValueError, match=r"cond lacks \['label', 'time_ids'\]"):
        net_from_module(ADDED)(params, X, TIME, {k: cond[k] for k in ("context", "pooled")})


@pytest.mark.parametrize(
    ("module", "cond", "words"),
    [
        (UNET, {}, r"cond lacks \['context'\]"),
        (UNET, TEXT | {"pooled": X}, r"cond has \['pooled'\]"),
        (UNET, TEXT | {"skip_blocks": jnp.zeros((2, 3))}, r"skip_blocks'\] has shape \(2, 3\)"),
        (UNET, TEXT | {"control": {"down": (X,), "mid": X}}, "this network takes"),
        (UNET.clone(patch=3), TEXT, "3x3 patches"),
        (UNET.clone(depths=(1, 1, 1)), TEXT, "depths=.* has 3 entries"),
        (UNET.clone(remat="some"), TEXT, "remat='some' is unknown"),
        (CONTROL, TEXT, "cond lacks 'hint'"),
        (CONTROL, TEXT | {"hint": X}, r"give \(2, 8, 12, 3\)"),
        (CONTROL, TEXT | HINT | {"skip_blocks": X}, r"cond has \['skip_blocks'\]"),
    ],
)
def test_what_does_not_fit_is_refused(module, cond, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: module.init(jax.random.key(0), X, TIME, cond))


def test_dropout_is_on_with_a_key_alone():
    params, net = random_params(FLAT, TEXT), quick(net_from_module(FLAT.clone(dropout=0.5)))
    assert_array_equal(net(params, X, TIME, TEXT), net(params, X, TIME, TEXT))
    train = lambda seed: net(params, X, TIME, TEXT, key=jax.random.key(seed))
    assert np.abs(train(0) - train(1)).max() > 1e-2
