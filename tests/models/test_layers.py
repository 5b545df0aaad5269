"""Layers hand their settings on to the pure functions, and have the parameters they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import primitives
from diffusion_jax.models.layers import (
    Conv,
    ConvDown,
    ConvUp,
    Dense,
    GroupNorm,
    GroupNormSilu,
    LayerNorm,
    PatchEmbedding,
    ResBlock,
    Style,
)

STYLE = Style(groups=3, group_channels=1, eps=0.3, skip_scale=0.5, downsample_padding=(0, 1))


def made(module, *args, seed=0):
    """(normal parameters of the module's shapes, its output with them)."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args)["params"])
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)
    return params, jax.jit(lambda *a: module.apply({"params": params}, *a))(*args)


def draw(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=atol, rtol=1e-4)


def test_dense_has_a_bias_if_it_is_asked_for():
    x = draw(2, 3, 4)
    params, out = made(Dense(5), x)
    close(out, x @ params["kernel"] + params["bias"])
    params, out = made(Dense(5, use_bias=False), x)
    assert params.keys() == {"kernel"}
    close(out, x @ params["kernel"])
    _, low = made(Dense(5, jnp.bfloat16), x)
    assert low.dtype == jnp.bfloat16


def test_patches_are_tokens_row_by_row():
    x = draw(2, 4, 6, 3)
    params, out = made(PatchEmbedding(5, 2), x)
    assert params.keys() == {"kernel"} and out.shape == (2, 6, 5)
    patch = lambda i, j: x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, -1)
    kernel = params["kernel"].reshape(-1, 5)
    close(out[:, 2], patch(0, 2) @ kernel)
    close(out[:, 3], patch(1, 0) @ kernel)
    params, out = made(PatchEmbedding(5, 2, use_bias=True), x)
    close(out[:, 0], patch(0, 0) @ params["kernel"].reshape(-1, 5) + params["bias"])
    assert made(PatchEmbedding(5, 2, jnp.bfloat16), x)[1].dtype == jnp.bfloat16


def test_convolutions_have_their_stride_and_padding():
    x = draw(2, 4, 6, 3)
    params, out = made(Conv(2), x)
    close(out, primitives.conv(x, params["kernel"], params["bias"]))
    params, out = made(Conv(2, stride=2, padding=(0, 1)), x)
    close(out, primitives.conv(x, params["kernel"], params["bias"], 2, ((0, 1), (0, 1))))
    params, out = made(ConvDown(2, STYLE), x, None)
    own = params["conv"]
    close(out, primitives.conv(x, own["kernel"], own["bias"], 2, ((0, 1), (0, 1))))
    params, out = made(ConvUp(2, STYLE), x, None)
    own, large = params["conv"], x.repeat(2, 1).repeat(2, 2)
    close(out, primitives.conv(large, own["kernel"], own["bias"]))
    for module in (ConvDown, ConvUp):
        assert made(module(2, Style(dtype=jnp.bfloat16)), x, None)[1].dtype == jnp.bfloat16


def test_norms_have_the_groups_and_the_epsilon_of_their_style():
    x = draw(2, 4, 3, 6)
    params, out = made(GroupNorm(STYLE), x)
    close(out, primitives.group_norm(x, params["scale"], params["bias"], 3, 0.3))
    film = (draw(2, 6, seed=2), draw(2, 6, seed=3))
    params, out = made(GroupNormSilu(STYLE), x, film)
    close(out, primitives.group_norm_silu(x, params["scale"], params["bias"], 3, 0.3, film))
    params, out = made(LayerNorm(0.3), x)
    close(out, primitives.layer_norm(x, params["scale"], params["bias"], 0.3))
    few = Style(groups=32, group_channels=3)  # two groups of three channels
    params, out = made(GroupNorm(few), x)
    close(out, primitives.group_norm(x, params["scale"], params["bias"], 2, 1e-5))


@pytest.mark.parametrize("conditioning", ["scale_shift", "additive"])
@pytest.mark.parametrize("resize", [None, primitives.avg_pool])
def test_a_residual_block_is_its_equation(conditioning, resize):
    style = Style(**{**vars(STYLE), "conditioning": conditioning})
    x, emb = draw(2, 4, 2, 3), draw(2, 7, seed=2)
    features = 6 if resize is None else 3
    params, out = made(ResBlock(features, style, resize), x, emb)
    norm = lambda h, p, film=None: primitives.group_norm_silu(
        h, p["scale"], p["bias"], 3, 0.3, film
    )
    conv = lambda h, p: primitives.conv(h, p["kernel"], p["bias"])
    norm, conv, resized = (jax.jit(f) for f in (norm, conv, resize or (lambda x: x)))
    h = norm(x, params["norm_0"])
    if resize is not None:
        h, x = resized(h), resized(x)
    h, e = conv(h, params["conv_0"]), emb @ params["emb"]["kernel"] + params["emb"]["bias"]
    if conditioning == "additive":
        h = norm(h + e[:, None, None], params["norm_1"])
    else:
        h = norm(h, params["norm_1"], (e[:, :features], e[:, features:]))
    h = conv(h, params["conv_1"])
    if features == 6:
        x = x @ params["shortcut"]["kernel"] + params["shortcut"]["bias"]
    assert ("shortcut" in params) == (features == 6)
    close(out, 0.5 * (x + h), atol=1e-4)
    gate = jnp.array([1.0, 0.25])
    skipped = jax.jit(ResBlock(features, style, resize).apply)(
        {"params": params}, draw(2, 4, 2, 3), emb, gate
    )
    close(skipped, primitives.gated(gate, 0.5 * (x + h), x), atol=1e-4)


def test_dropout_is_before_the_last_convolution_and_scales_what_is_left():
    """With a last convolution that passes the middle pixel on, kept numbers are doubled."""
    x, emb = draw(1, 6, 6, 4), draw(1, 3, seed=2)
    module = lambda rate: ResBlock(4, Style(dropout=rate, groups=2))
    params, _ = made(module(0.0), x, emb)
    middle = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
    params["conv_1"] = {"kernel": middle, "bias": jnp.zeros(4)}
    rngs = {"dropout": jax.random.key(5)}
    plain, dropped = jax.jit(
        lambda params: (
            module(0.0).apply({"params": params}, x, emb) - x,
            module(0.5).apply({"params": params}, x, emb, rngs=rngs) - x,
        )
    )(params)
    zero = np.abs(dropped) < 1e-5
    assert 0.3 < zero.mean() < 0.7
    close(np.asarray(dropped)[~zero], 2 * np.asarray(plain)[~zero], atol=1e-4)
