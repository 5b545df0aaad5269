"""The gates by which guidance perturbs a U-Net: which layers, what they do, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_unet
from numpy.testing import assert_allclose
from tiny_unet import LABEL, abstract_params, inputs, quick, random_params

from diffusion_jax.models import primitives
from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.attention import SelfAttention
from diffusion_jax.models.layers import Style
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.unet.plan import select
from diffusion_jax.models.unet.unet import stack_blocks

TINY = tiny_unet.TINY.clone(downsample="conv", upsample="conv")
BLOCKS = (
    "down_0/block_0",
    "down_1/block_0",
    "mid",
    "up_0/block_0",
    "up_0/block_1",
    "up_1/block_0",
    "up_1/block_1",
)
ATTENTION = ("down_1/block_0", "mid", "up_0/block_0", "up_0/block_1")


def gated(attention=None, skip=None):
    """LABEL with gates of both kinds; rows are examples, None is 0."""
    fill = lambda rows, n: jnp.zeros((2, n)) if rows is None else jnp.asarray(rows, jnp.float32)
    return {
        **LABEL,
        "identity_attention": fill(attention, len(ATTENTION)),
        "skip_blocks": fill(skip, len(BLOCKS)),
    }


@pytest.fixture(scope="module")
def params():
    return random_params(TINY)


@pytest.fixture(scope="module")
def net():
    return quick(net_from_module(TINY))


@pytest.fixture(scope="module")
def out(net, params):
    return net(params, *inputs(), LABEL)


def test_layers_are_named_in_the_order_that_they_run():
    assert TINY.blocks == BLOCKS
    assert TINY.attention_layers == ATTENTION
    uneven = TINY.clone(
        channel_mults=(1, 1, 2),
        num_res_blocks=(2, 1, 1),
        attention_levels=(0,),
        mid_attention=False,
    )
    assert uneven.attention_layers == (
        *("down_0/block_0", "down_0/block_1"),
        *("up_2/block_0", "up_2/block_1", "up_2/block_2"),
    )


def test_gates_that_are_0_change_nothing(net, params, out):
    assert_allclose(net(params, *inputs(), gated()), out, rtol=1e-5, atol=1e-6)


def test_identity_attention_gives_each_token_its_own_value():
    module = SelfAttention(Style(head_dim=4))
    x = jax.random.normal(jax.random.key(0), (3, 2, 3, 8))
    rng = np.random.default_rng(0)
    tree = jax.eval_shape(module.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), tree)
    p = params["params"]
    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]

    @quick
    def run(gate):
        normed = primitives.group_norm(x, p["norm"]["scale"], p["norm"]["bias"], 2)
        wanted = x + dense("out", dense("value", normed))
        return wanted, module.apply(params, x), module.apply(params, x, gate)

    wanted, plain, got = run(jnp.array([0.0, 1.0, 0.25]))
    assert_allclose(got[0], plain[0], rtol=1e-6)
    assert_allclose(got[1], wanted[1], rtol=1e-5, atol=1e-6)
    assert_allclose(got[2], 0.75 * plain[2] + 0.25 * wanted[2], rtol=1e-5, atol=1e-6)
    assert np.abs(plain - wanted).max() > 0.05


@pytest.mark.parametrize("layer", [1, 3])
def test_each_attention_gate_is_of_the_layer_it_names(layer, net, params, out, monkeypatch):
    """The layer's call of the attention function is replaced, by its number in the program."""
    got = net(params, *inputs(), gated(np.eye(len(ATTENTION))[[layer, layer]]))
    calls, attention = [], primitives.attention

    def replaced(q, k, v):
        calls.append(v.shape)
        return v if len(calls) == layer + 1 else attention(q, k, v)

    monkeypatch.setattr(primitives, "attention", replaced)
    wanted = net_from_module(TINY)
    assert_allclose(got, quick(lambda *a: wanted(*a))(params, *inputs(), LABEL), atol=2e-5)
    assert len(calls) == len(ATTENTION)
    assert np.abs(got - out).max() > 1e-3


def _without_branches(params, name):
    """The block's branches at zero: what is left is its input through its shortcut."""
    zero = lambda tree: jax.tree.map(np.zeros_like, tree)
    block = params
    for part in name.split("/"):
        block = block[part]
    residuals = ("res_0", "res_1") if name == "mid" else ("res",)
    new = {r: {**block[r], "conv_1": zero(block[r]["conv_1"])} for r in residuals}
    if "attention" in block:
        new["attention"] = {**block["attention"], "out": zero(block["attention"]["out"])}
    new = {**block, **new}
    side, *rest = name.split("/")
    return {**params, side: {**params[side], rest[0]: new} if rest else new}


def test_each_skip_gate_is_of_the_block_it_names(net, params, out):
    for i, name in enumerate(BLOCKS):
        got = net(params, *inputs(), gated(skip=np.eye(len(BLOCKS))[[i, i]]))
        wanted = net(_without_branches(params, name), *inputs(), LABEL)
        assert_allclose(got, wanted, atol=2e-5, err_msg=name)
        assert np.abs(got - out).max() > 1e-3, name


def test_gates_are_each_examples_own(net, params, out):
    attention, skip = np.zeros((2, len(ATTENTION))), np.zeros((2, len(BLOCKS)))
    attention[1, 1] = skip[1, 3] = 1
    got = net(params, *inputs(), gated(attention, skip))
    assert_allclose(got[0], out[0], rtol=1e-5, atol=1e-6)
    both = net(params, *inputs(), gated(attention[[1, 1]], skip[[1, 1]]))
    assert_allclose(got[1], both[1], rtol=1e-5, atol=1e-6)
    assert np.abs(got[1] - out[1]).max() > 1e-3


FLAT = TINY.clone(channel_mults=(1,), num_res_blocks=1, attention_levels=(0,), skip_scale=0.7)


@pytest.fixture(scope="module")
def flat():
    params = random_params(FLAT)
    rng = np.random.default_rng(2)
    cond = {
        **LABEL,
        "identity_attention": jnp.asarray(rng.integers(0, 2, (2, 4)), jnp.float32),
        "skip_blocks": jnp.asarray(rng.integers(0, 2, (2, 4)), jnp.float32),
    }
    return params, cond, quick(net_from_module(FLAT))(params, *inputs(), cond)


def test_absent_gates_leave_no_trace(flat):
    """No parameter and no operation: nothing of the program is of the gates."""
    params, cond, _ = flat
    assert abstract_params(FLAT, cond=cond) == abstract_params(FLAT, cond=LABEL)
    net = net_from_module(FLAT)
    count = lambda *keys: len(
        str(jax.make_jaxpr(net)(params, *inputs(), {k: cond[k] for k in keys})).splitlines()
    )
    plain = count("label")
    assert plain < count("label", "identity_attention") and plain < count("label", "skip_blocks")


def test_scanned_blocks_take_the_same_gates(flat):
    params, cond, out = flat
    scanned = quick(net_from_module(FLAT.clone(scan_blocks=True)))
    got = scanned(stack_blocks(FLAT, params), *inputs(), cond)
    assert_allclose(got, out, rtol=1e-4, atol=1e-5)


def test_rematerialised_blocks_take_the_same_gates_and_gradients():
    small = FLAT.clone(num_res_blocks=0)  # the middle and one block
    params, gates = random_params(small), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    cond = {**LABEL, "identity_attention": gates, "skip_blocks": gates[::-1]}

    def slope(module):
        net = net_from_module(module)
        return quick(jax.grad(lambda x: jnp.sum(net(params, x, inputs()[1], cond) ** 2)))

    plain, again = (slope(small.clone(remat=r))(inputs()[0]) for r in ("none", "full"))
    assert_allclose(again, plain, rtol=1e-3, atol=1e-4 * float(np.abs(plain).max()))


def test_bfloat16_takes_the_same_gates(flat):
    params, cond, out = flat
    got = quick(net_from_module(FLAT.clone(dtype="bfloat16")))(params, *inputs(), cond)
    assert got.dtype == jnp.float32
    assert np.abs(got - out).max() < 0.05 * np.abs(out).max()


def test_wrong_gates_are_sentences(params):
    with pytest.raises(ValueError, match=r"identity_attention.* \(2, 3\): give \(2, 4\).*mid"):
        net_from_module(TINY)(params, *inputs(), {**LABEL, "identity_attention": jnp.zeros((2, 3))})
    mlp = MLP(width=8, depth=1)
    with pytest.raises(ValueError, match=r"cond has \['skip_blocks'\].*drop them"):
        init_params(mlp, jax.random.key(0), (2, 2), {"skip_blocks": jnp.zeros((2, 1))})


@pytest.mark.parametrize(
    ("chosen", "gates"),
    [
        ("middle", (0, 1, 0, 0)),
        ("mid", (0, 1, 0, 0)),
        ("up_0", (0, 0, 1, 1)),
        ("up_0/block_1", (0, 0, 0, 1)),
        (0, (1, 0, 0, 0)),
        ([0, "middle"], (1, 1, 0, 0)),
        ((), (0, 0, 0, 0)),
    ],
)
def test_layers_are_chosen_by_name_part_or_index(chosen, gates):
    assert select(ATTENTION, chosen) == gates


@pytest.mark.parametrize("chosen", ["up", "left", 4, -1, ["middle", "up_9"]])
def test_unknown_layers_are_sentences(chosen):
    with pytest.raises(ValueError, match="this network has 0 down_1/block_0, 1 mid"):
        select(ATTENTION, chosen)
    with pytest.raises(ValueError, match="this network has none"):
        select((), chosen)
