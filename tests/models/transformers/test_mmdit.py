"""MMDiT by itself: what it starts as, what it reads, its hooks; parity is in test_mmdit_parity."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose, assert_array_equal
from tiny_unet import quick

from configs import emoji_text_pixel
from diffusion_jax.apps.plan import Inputs, Weights
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import training
from diffusion_jax.jobs import drawing
from diffusion_jax.jobs.requests import settings_of
from diffusion_jax.models import MODELS
from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.partition import PARTITIONS
from diffusion_jax.models.transformers.dit import positions
from diffusion_jax.models.transformers.mmdit import MMDiT
from diffusion_jax.train.state import abstract_state
from diffusion_jax.train.step import make_step

# The first layer attends twice, the second is the last: each kind of layer is there.
NET = MMDiT(
    width=16, depth=2, heads=2, out_channels=3, pooled_features=5, max_side=6, grid=4,
    second_attention=(0,), qk_norm="rms",
)  # fmt: skip
RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X, TIME = draw(2, 4, 8, 3), jnp.array([3.0, 700.0])
TEXT = {"context": draw(2, 5, 7), "pooled": draw(2, 5)}
# With all that it may have, so that most tests share one program.
COND = {
    **TEXT,
    "context_mask": jnp.ones((2, 5), bool),
    "identity_attention": jnp.zeros((2, 2)),
    "skip_blocks": jnp.zeros((2, 2)),
}


def shapes(module=NET, cond=COND):
    make = lambda key: init_params(module, key, X.shape, cond)
    return jax.eval_shape(make, jax.random.key(0))


@pytest.fixture(scope="module")
def params():
    """With nothing at zero, so that every path of the net counts."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.normal(0, 0.2, a.shape).astype(np.float32), shapes())


@pytest.fixture(scope="module")
def net():
    return quick(net_from_module(NET))


@pytest.fixture(scope="module")
def out(net, params):
    return net(params, X, TIME, COND)


def test_it_is_zero_at_the_start_and_keeps_the_size(net, out):
    assert MODELS["mmdit"] is MMDiT
    assert out.shape == X.shape and np.asarray(out).std() > 0.1
    fresh = quick(lambda key: init_params(NET, key, X.shape, COND))(jax.random.key(0))
    assert not net(fresh, X, TIME, COND).any()


def test_examples_do_not_mix_and_all_inputs_count(net, params, out):
    flip = lambda tree: jax.tree.map(lambda a: a[::-1], tree)
    assert_allclose(net(params, flip(X), flip(TIME), flip(COND)), out[::-1], atol=1e-5)
    others = [
        (X, flip(TIME), COND),
        (X[:, :, ::-1], TIME, COND),
        *((X, TIME, {**COND, key: flip(TEXT[key])}) for key in TEXT),
    ]
    for other in others:
        assert np.abs(net(params, *other) - out).max() > 1e-2
    # Positions: moving the picture does not just move the output.
    rolled = net(params, jnp.roll(X, 2, 2), TIME, COND)
    assert np.abs(rolled - jnp.roll(out, 2, 2)).max() > 1e-2


def test_padding_is_not_read_and_the_order_of_the_text_does_not_matter(net, params, out):
    mask = jnp.broadcast_to(jnp.arange(5) < 3, (2, 5))
    masked = net(params, X, TIME, {**COND, "context_mask": mask})
    short = {**TEXT, "context": TEXT["context"][:, :3]}
    assert_allclose(masked, quick(net_from_module(NET))(params, X, TIME, short), atol=1e-5)
    assert np.abs(masked - out).max() > 1e-2
    order = np.array([3, 0, 4, 2, 1])
    moved = {**COND, "context": TEXT["context"][:, order], "context_mask": mask[:, order]}
    assert_allclose(net(params, X, TIME, moved), masked, atol=1e-5)


def test_forward_mode_is_the_slope(net, params):
    dx, dcontext = draw(*X.shape), draw(2, 5, 7)
    at = lambda x, context: net_from_module(NET)(params, x, TIME, {**COND, "context": context})
    got = quick(lambda *v: jax.jvp(at, (X, COND["context"]), v)[1])(dx, dcontext)
    moved = lambda h: net(
        params, X + h * dx, TIME, {**COND, "context": COND["context"] + h * dcontext}
    )
    wanted = (moved(5e-3) - moved(-5e-3)) / 1e-2
    assert np.abs(got - wanted).max() < 0.01 * np.abs(wanted).max()


def test_half_precision_is_near_and_keeps_float32_where_it_must(params, out):
    low = NET.clone(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(low))} == {jnp.dtype("float32")}
    got = quick(net_from_module(low))(params, X, TIME, COND)
    assert got.dtype == jnp.float32 and np.isfinite(got).all()
    assert 0 < np.abs(got - out).max() < 0.06 * np.abs(out).max()
    _, seen = jax.eval_shape(
        lambda: low.apply({"params": params}, X, TIME, COND, capture_intermediates=True)
    )
    types = {path[:-1]: leaf.dtype.name for path, leaf in _leaves(seen["intermediates"])}
    float32 = {path for path, dtype in types.items() if dtype == "float32"}
    wanted = {path for path in types if path and _island("/".join(path))}
    assert float32 - {()} == wanted and len(wanted) > 8


def _leaves(tree):
    for path, value in flatten_dict(tree).items():
        yield from ((path, leaf) for leaf in jax.tree.leaves(value))


def _island(path):
    return re.match(r"(embed|pooled)(/|$)|modulation_out$|layer_\d/.*_modulation$", path)


def test_attention_in_chunks_gives_the_same(params, out):
    chunked = quick(net_from_module(NET.clone(attention="chunked")))
    assert_allclose(chunked(params, X, TIME, COND), out, atol=1e-5)


def test_the_gradient_with_remat_is_the_slope_and_stored_positions_have_none(net, params, out):
    lean = NET.clone(positions="stored", remat="full")
    stored = {"table": positions(6, 6, 16, step=4 / 6)}
    assert shapes(lean)["positions"]["table"].shape == stored["table"].shape
    weights = draw(*X.shape)
    loss = lambda p: (net_from_module(lean)(p, X, TIME, COND) * weights).sum()
    value, grad = quick(jax.value_and_grad(loss))({**params, "positions": stored})
    assert_allclose(value, (out * weights).sum(), rtol=1e-4)
    assert not np.asarray(grad.pop("positions")["table"]).any()
    # Along the gradient, of length 1: the slope is its norm.
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grad)))
    moved = lambda h: jax.tree.map(lambda p, g: p + h * g / norm, params, grad)
    ahead, behind = (net(moved(h), X, TIME, COND) for h in (1e-3, -1e-3))
    assert_allclose(((ahead - behind) * weights).sum() / 2e-3, norm, rtol=0.01)


def test_gates_are_of_the_layer_they_name(net, params, out):
    assert NET.blocks == NET.attention_layers == ("layer_0", "layer_1")
    rows = np.zeros((2, 2), np.float32)
    rows[1, 0] = 1
    got = net(params, X, TIME, {**COND, "skip_blocks": rows})
    # All that a layer adds goes through the gates of its modulations.
    layer = dict(params["layer_0"])
    for name in ("image_modulation", "context_modulation"):
        layer[name] = jax.tree.map(np.zeros_like, layer[name])
    assert_allclose(got[0], out[0], atol=1e-6)
    without = net({**params, "layer_0": layer}, X, TIME, COND)
    assert_allclose(got[1], without[1], atol=1e-5)
    assert np.abs(got[1] - out[1]).max() > 1e-2


def test_with_the_identity_in_all_layers_patches_do_not_meet(net, params, out):
    run = lambda x: net(params, x, TIME, {**COND, "identity_attention": jnp.ones((2, 2))})
    # The text still reads the image, which then reads nothing.
    changed = np.abs(run(X.at[:, :2, :2].add(1.0)) - run(X)) > 1e-5
    assert changed[:, :2, :2].any() and not changed[:, 2:].any() and not changed[:, :, 2:].any()
    assert np.abs(run(X) - out).max() > 1e-2


def test_positions_are_from_the_middle_of_the_square():
    whole = np.asarray(positions(6, 6, 16, step=4 / 6)).reshape(6, 6, 16)
    part = NET._positions((4, 8))  # 2x4 patches
    assert_array_equal(part, whole[2:4, 1:5].reshape(8, 16))
    assert_allclose(whole[2, 5, 0], np.sin(5 * 4 / 6), rtol=1e-6)
    assert_allclose(whole[2, 5, 12], np.cos(2 * 4 / 6), rtol=1e-6)
    assert_array_equal(NET.clone(grid=None)._positions((2, 2)), positions(1, 1, 16, (2, 2)))


@pytest.mark.parametrize(
    ("fields", "cond", "words"),
    [
        ({}, {}, r"cond lacks \['context', 'pooled'\].*pooled_features=5"),
        ({}, {**TEXT, "label": jnp.zeros(2, int)}, r"cond has \['label'\].*num_classes=0"),
        ({}, {**TEXT, "pooled": TIME[:, None]}, "has 1 features, but pooled_features=5"),
        ({}, {**TEXT, "skip_blocks": jnp.zeros((2, 3))}, r"give \(2, 2\)"),
        ({"max_side": 3}, TEXT, "4x8 is beyond max_side=3.*at most 6"),
        ({"patch": 3}, TEXT, "must be multiples of 3"),
        ({"heads": 3}, TEXT, "heads=3 does not divide width=16"),
        ({"qk_norm": "l2"}, TEXT, "qk_norm='l2' is unknown: use one of none, rms"),
        ({"positions": "no"}, TEXT, "positions='no' is unknown: use one of computed, stored"),
        ({"attention": "no"}, TEXT, "attention='no' is unknown"),
        ({"remat": "no"}, TEXT, "remat='no' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused(fields, cond, words):
    with pytest.raises(ValueError, match=words):
        shapes(NET.clone(**fields), cond)


def test_labels_and_no_pooled_text_are_a_choice():
    module = NET.clone(num_classes=4, pooled_features=0)
    tree = shapes(module, {"context": TEXT["context"], "label": jnp.zeros(2, int)})
    assert tree["embed"]["label"]["embedding"].shape == (5, 16) and "pooled" not in tree


def test_a_tensor_axis_splits_all_kernels_of_layers_but_those_that_modulate():
    split, rest = {}, set()
    for path, leaf in flatten_dict({"net": shapes()}, sep="/").items():
        fits = [axes for pattern, axes in PARTITIONS["mmdit"] if re.search(pattern, path)]
        assert len(fits) <= 1 and all(len(axes) == leaf.ndim for axes in fits), path
        if fits:
            split[path] = fits[0].index("tensor")
        elif path.endswith("/kernel") and "layer_" in path:
            rest.add(path.split("/")[-2])
    assert rest == {"image_modulation", "context_modulation"}
    by_outputs = {path for path in split if re.search(r"(query|key|value|mlp/in)/kernel$", path)}
    by_inputs = {path for path in split if re.search(r"(_out|mlp/out)/kernel$", path)}
    assert {path for path, axis in split.items() if axis == 1} == by_outputs
    assert {path for path, axis in split.items() if axis == 0} == by_inputs
    # 3 streams and 3 outputs, 2 MLPs of a pair each; in the last layer 2 streams, and of the image
    # alone an output and an MLP.
    assert len(split) == (3 * 3 + 3 + 2 * 2) + (2 * 3 + 1 + 2)


def test_a_config_that_names_it_trains_and_samples():
    config = emoji_text_pixel.get_config()
    config.model.name, config.train.batch_size = "mmdit", 2
    config.model.mmdit = {
        "width": 16, "depth": 2, "heads": 2, "pooled_features": 0, "max_side": 16, "grid": None,
        "attention": "chunked", "remat": "full", "dtype": "bfloat16",
    }  # fmt: skip
    experiment, settings = experiments.experiment(config), training.training(config)
    batch = {"image": jax.ShapeDtypeStruct((2, *experiment.shape), jnp.float32)}
    for name, one in experiment.conditioning.example.items():
        batch[name] = jax.ShapeDtypeStruct((2, *one.shape[1:]), one.dtype)
    state = abstract_state(experiment.recipe, settings["tx"], settings["ema"], batch)
    step = make_step(experiment.recipe, settings["tx"], settings["ema"], seed=0)
    after, metrics = jax.eval_shape(step, state, {}, batch)
    described = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert described(after) == described(state) and metrics["loss"].shape == ()
    config.sampler.update(steps=2, guidance_scale=2.0)
    cond = {name: batch[name] for name in experiment.conditioning.example}
    sampler = drawing.open_sampler(settings_of(config, ""), experiment.generator)
    inputs = Inputs(cond, None, batch["image"], jnp.float32(2))
    drawn = jax.eval_shape(sampler.draw, Weights(state.params, {}), jax.random.key(0), inputs)
    assert drawn.shape == (2, *experiment.shape)
