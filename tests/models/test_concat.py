"""Channels beside x: the order of keys, the scaling of x, sizes that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tiny_unet import quick

from diffusion_jax.core import network_io, process, schedules, targets
from diffusion_jax.core.types import Model
from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.autoencoders.codec import IDENTITY
from diffusion_jax.models.concat import widen_input, with_concat
from diffusion_jax.models.transformers.dit import DiT
from diffusion_jax.models.unet.control import ControlNet, control_from_module, with_control
from diffusion_jax.models.unet.text_unet import TextUNet

FIELDS = {"channels": 8, "channel_mults": (1,), "num_res_blocks": 0, "depths": 1, "heads": 2}
UNET = TextUNet(**FIELDS, groups=4, out_channels=4)
TIME = jnp.array([3.0, 700.0])


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, TEXT = draw(2, 4, 6, 4), {"context": draw(2, 5, 3, seed=1)}
MASK, MASKED = jnp.round(jax.nn.sigmoid(draw(2, 4, 6, 1, seed=2))), draw(2, 4, 6, 4, seed=3)
COND = TEXT | {"mask": MASK, "masked": MASKED}


@pytest.fixture(scope="module")
def params():
    """Of the network of 9 channels, nothing at zero."""
    init = lambda key: init_params(UNET, key, (2, 4, 6, 9), TEXT)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)


def test_nine_channels_are_x_the_mask_and_what_is_kept_in_this_order(params):
    net = net_from_module(UNET)
    got = quick(with_concat(net, ("mask", "masked")))(params, X, TIME, COND)
    by_hand = quick(net)
    wanted = by_hand(params, jnp.concatenate([X, MASK, MASKED], -1), TIME, TEXT)
    assert_array_equal(got, wanted)
    assert got.shape == X.shape
    other = quick(with_concat(net, ("masked", "mask")))(params, X, TIME, COND)
    assert_array_equal(other, by_hand(params, jnp.concatenate([X, MASKED, MASK], -1), TIME, TEXT))
    assert np.abs(other - got).max() > 1e-2


def test_x_alone_is_scaled_for_its_level(params):
    seen = {}

    def net(params, x, time, cond, *, key=None):
        seen["x"], seen["cond"], seen["key"] = x, cond, key
        return x[..., :4]

    model = Model(
        net=with_concat(net, ("mask", "masked")),
        process=process.Process(schedules.edm(), process.ve),
        target=targets.edm(),
        scale_in=network_io.edm_scale(),
        time_in=network_io.edm_noise(),
        codec=IDENTITY,
        condition=lambda frozen, batch: {},
        null=lambda frozen, cond: cond,
    )
    level = model.process.at(jnp.array([0.3, 0.8]))
    key = jax.random.key(4)
    prediction = targets.denoiser(model, {}, key)(X, level, COND)
    assert prediction.x0.shape == X.shape and prediction.aux is None
    scale = 1 / np.sqrt(np.asarray(level.sigma) ** 2 + 0.25)
    assert_allclose(seen["x"][..., :4], scale[:, None, None, None] * X, rtol=1e-5)
    assert_array_equal(seen["x"][..., 4:5], MASK)
    assert_array_equal(seen["x"][..., 5:], MASKED)
    assert list(seen["cond"]) == ["context"] and seen["key"] is key


def test_a_control_beside_it_reads_x_alone(params):
    control = ControlNet(**FIELDS, groups=4, hint_widths=(4, 6))
    hint = jnp.abs(draw(2, 8, 12, 3, seed=5)) % 1
    init = lambda key: init_params(control, key, X.shape, TEXT | {"hint": hint})
    shapes = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(1)
    own = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)
    net = with_concat(net_from_module(UNET), ("mask", "masked"))
    steered = quick(with_control(net, [control_from_module(control)]))
    out = steered({"net": params, "control": (own,)}, X, TIME, COND | {"hint": (hint,)})
    plain = quick(net)(params, X, TIME, COND)
    assert out.shape == plain.shape and np.abs(out - plain).max() > 1e-2


@pytest.mark.parametrize(
    ("net", "layer", "cond"),
    [(UNET, "conv_in", TEXT), (DiT(width=8, depth=1, heads=2, out_channels=4), "patches", {})],
)
def test_a_widened_network_ignores_the_new_channels_and_learns_them(net, layer, cond):
    shapes = jax.eval_shape(lambda k: init_params(net, k, X.shape, cond), jax.random.key(0))
    rng = np.random.default_rng(0)
    own = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)
    run = net_from_module(net)
    plain = quick(run)(own, X, TIME, cond)
    both = with_concat(run, ("mask", "masked"))
    more = cond | {"mask": MASK, "masked": MASKED}

    @quick
    def value_and_slope(params):
        f = lambda params: both(params, X, TIME, more)
        return f(params), jax.grad(lambda params: (f(params) ** 2).sum())(params)

    out, slope = value_and_slope(widen_input(own, 5, layer))
    assert_allclose(out, plain, rtol=1e-5, atol=1e-6)
    new = slope[layer]["kernel"][..., 4:, :]
    assert new.shape[-2] == 5 and all(np.any(new[..., i, :]) for i in range(5))


@pytest.mark.parametrize(
    ("cond", "words"),
    [
        (TEXT | {"mask": MASK}, r"cond lacks \['masked'\], which this network reads as channels"),
        (
            COND | {"masked": MASKED[:, :3]},
            r"cond\['masked'\] has shape \(2, 3, 6, 4\): beside x of \(2, 4, 6, 4\) give "
            r"\(2, 4, 6, channels\)",
        ),
        (COND | {"mask": MASK[:1]}, r"cond\['mask'\] has shape \(1, 4, 6, 1\)"),
        (COND | {"mask": MASK[..., 0]}, r"cond\['mask'\] has shape \(2, 4, 6\)"),
    ],
)
def test_what_does_not_fit_is_a_sentence(cond, words):
    net = with_concat(net_from_module(UNET), ("mask", "masked"))
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: net({}, X, TIME, cond))
