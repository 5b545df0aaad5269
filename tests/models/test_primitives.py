"""The building blocks against float64 numpy, PyTorch, one another, and their own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import primitives

SAME = ((1, 1), (1, 1))


def normal(seed, *shape, scale=1.0, dtype=np.float32):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def conv_by_hand(x, kernel, stride=1, padding=SAME):
    """Cross-correlation by its definition, in float64."""
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    kh, kw = kernel.shape[:2]
    h, w = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    parts = [
        x[:, i : i + stride * h : stride, j : j + stride * w : stride] @ kernel[i, j]
        for i in range(kh)
        for j in range(kw)
    ]
    return sum(parts[1:], parts[0])


def group_norm_by_hand(x, scale, bias, groups, eps):
    x = x.astype(np.float64)
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    var = grouped.var((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(var + eps)).reshape(x.shape) * scale + bias


@pytest.mark.parametrize(
    ("side", "stride", "padding"),
    [(3, 1, SAME), (3, 2, SAME), (3, 2, ((0, 1), (0, 1))), (1, 1, ((0, 0), (0, 0)))],
)
def test_conv_equals_the_definition(side, stride, padding):
    x, kernel = normal(0, 2, 6, 8, 3), normal(1, side, side, 3, 4)
    got = primitives.conv(x, kernel, None, stride, padding)
    np.testing.assert_allclose(got, conv_by_hand(x, kernel, stride, padding), atol=2e-5)


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_group_norm_equals_the_definition(groups):
    x, scale, bias = normal(0, 2, 3, 5, 12, scale=3.0) + 2, normal(1, 12), normal(2, 12)
    got = jax.jit(primitives.group_norm, static_argnums=(3, 4))(x, scale, bias, groups, 1e-3)
    np.testing.assert_allclose(
        got, group_norm_by_hand(x, scale, bias, groups, 1e-3), atol=1e-5, rtol=1e-5
    )


def test_group_norm_keeps_its_digits_where_the_mean_is_large():
    x = normal(0, 2, 8, 8, 4) + 1000
    got = jax.jit(lambda x: primitives.group_norm(x, jnp.ones(4), jnp.zeros(4), 2, 0.0))(x)
    # An ulp of x is 6e-5; folded into one multiply-add the result is good to a few of them.
    np.testing.assert_allclose(got, group_norm_by_hand(x, 1, 0, 2, 0.0), atol=5e-4)
    assert abs(float(jnp.std(got)) - 1) < 1e-4


def test_group_norm_takes_any_rank_and_keeps_the_dtype():
    x = normal(0, 2, 3, 4, 5, 6)
    ones, zeros = jnp.ones(6), jnp.zeros(6)
    video = primitives.group_norm(x, ones, zeros, 3)
    np.testing.assert_allclose(video, group_norm_by_hand(x, 1, 0, 3, 1e-5), atol=1e-5)
    vector = primitives.group_norm(x[:, 0, 0, 0], ones, zeros, 3)
    np.testing.assert_allclose(vector, group_norm_by_hand(x[:, 0, 0, 0], 1, 0, 3, 1e-5), atol=1e-4)
    low = primitives.group_norm(jnp.asarray(x, jnp.bfloat16), ones, zeros, 3)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), video, atol=0.03)


def test_group_norm_silu_is_the_composition_and_so_are_its_gradients():
    x, scale, bias = normal(0, 2, 4, 4, 6), normal(1, 6), normal(2, 6)
    film = normal(3, 2, 6), normal(4, 2, 6)
    weight = normal(5, *x.shape)

    def fused(x, scale, bias, film):
        return primitives.group_norm_silu(x, scale, bias, 3, 1e-5, film)

    def composed(x, scale, bias, film):
        grouped = x.reshape(2, 16, 3, 2)
        mean, var = (f(grouped, axis=(1, 3), keepdims=True) for f in (jnp.mean, jnp.var))
        y = ((grouped - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias
        s, shift = (z[:, None, None, :] for z in film)
        return jax.nn.silu(y * (1 + s) + shift)

    def value_and_gradients(f):
        loss = lambda *args: jnp.sum(weight * f(*args))
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(x, scale, bias, film)

    ours, theirs = value_and_gradients(fused), value_and_gradients(composed)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_attention_forms_agree_with_the_definition():
    q, k, v = normal(0, 2, 5, 3, 4), normal(1, 2, 7, 3, 4), normal(2, 2, 7, 3, 4)
    logits = np.einsum("bmhd,bnhd->bhmn", q.astype(np.float64), k) / 2
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    exact = np.einsum("bhmn,bnhd->bmhd", weights, v)
    np.testing.assert_allclose(primitives.attention(q, k, v), exact, atol=1e-5)
    np.testing.assert_allclose(primitives._attention_by_head(q, k, v), exact, atol=1e-5)
    np.testing.assert_allclose(jax.nn.dot_product_attention(q, k, v), exact, atol=1e-5)


def test_both_forms_of_attention_leave_masked_keys_out():
    q, k, v = normal(0, 2, 5, 3, 4), normal(1, 2, 7, 3, 4), normal(2, 2, 7, 3, 4)
    mask = np.array([[True] * 4 + [False] * 3, [False, True] * 3 + [True]])
    logits = np.einsum("bmhd,bnhd->bhmn", q.astype(np.float64), k) / 2
    weights = np.exp(logits) * mask[:, None, None]
    exact = np.einsum("bhmn,bnhd->bmhd", weights / weights.sum(-1, keepdims=True), v)
    fused = lambda on_cpu, elsewhere, *args: elsewhere(*args)
    np.testing.assert_allclose(primitives.attention(q, k, v, jnp.asarray(mask)), exact, atol=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(primitives, "_by_platform", fused)
        got = primitives.attention(q, k, v, jnp.asarray(mask))
    np.testing.assert_allclose(got, exact, atol=1e-5)
    none = primitives._attention_by_head(q, k, v, jnp.zeros_like(mask))
    mean = np.broadcast_to(v.mean(1, keepdims=True), q.shape)
    np.testing.assert_allclose(none, mean, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_layer_norm_equals_the_definition(eps):
    x, scale, bias = 3 * normal(0, 2, 3, 6) + 1, normal(1, 6), normal(2, 6)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + eps)
    given = () if eps == 1e-5 else (eps,)
    got = primitives.layer_norm(x, scale, bias, *given)
    np.testing.assert_allclose(got, exact * scale + bias, atol=1e-5)
    low = primitives.layer_norm(jnp.asarray(x, jnp.bfloat16), scale, bias)
    assert low.dtype == jnp.bfloat16


@pytest.mark.parametrize("norm", [primitives.group_norm, primitives.group_norm_silu])
def test_the_epsilon_of_a_group_is_a_hundred_thousandth_of_a_variance(norm):
    """PyTorch's default; told by a group whose variance is as small."""
    x = np.array([1.0, -1.0], np.float32).reshape(1, 2, 1) * np.sqrt(1e-5, dtype=np.float32)
    got = norm(x, jnp.ones(1), jnp.zeros(1), 1)
    y = np.array([1.0, -1.0]) / np.sqrt(2)
    exact = y if norm is primitives.group_norm else y / (1 + np.exp(-y))
    np.testing.assert_allclose(got[0, :, 0], exact, rtol=1e-4)


def test_gelu_has_the_value_and_the_derivatives_of_its_definition():
    x = np.linspace(-4, 4, 33)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    exact = 0.5 * x * (1 + np.tanh(inner))
    slope = 0.5 * (1 + np.tanh(inner)) + 0.5 * x / np.cosh(inner) ** 2 * np.sqrt(2 / np.pi) * (
        1 + 3 * 0.044715 * x**2
    )
    at = jnp.asarray(x, jnp.float32)
    value, forward = jax.jvp(primitives.gelu_tanh, (at,), (2 * jnp.ones_like(at),))
    np.testing.assert_allclose(primitives.gelu_tanh(at), exact, atol=1e-6)
    np.testing.assert_allclose(value, exact, atol=1e-6)
    np.testing.assert_allclose(forward, 2 * slope, atol=3e-6)
    backward = jax.grad(lambda x: primitives.gelu_tanh(x).sum())(at)
    np.testing.assert_allclose(backward, slope, atol=2e-6)


def test_the_derivative_of_the_softmax_is_its_jacobian():
    logits, change = normal(0, 2, 3, 5), normal(1, 2, 3, 5)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    jacobian = np.einsum("...i,ij->...ij", weights, np.eye(5)) - np.einsum(
        "...i,...j->...ij", weights, weights
    )
    got = jax.jvp(primitives._softmax, (logits,), (change,))
    np.testing.assert_allclose(got[0], weights, atol=1e-6)
    np.testing.assert_allclose(got[1], np.einsum("...ij,...j->...i", jacobian, change), atol=1e-6)


def test_patches_fold_into_channels_row_by_row_and_back():
    x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    folded = np.asarray(primitives.space_to_depth(x, 2))
    assert folded.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(folded[1, 0, 2], x[1, :2, 4:6].reshape(-1))
    np.testing.assert_array_equal(primitives.depth_to_space(folded, 2), x)


def test_a_gate_chooses_to_the_bit_and_blends_between():
    x, other = normal(0, 3, 2, 2), normal(1, 3, 2, 2)
    got = primitives.gated(jnp.array([0.0, 1.0, 0.25]), x, other)
    np.testing.assert_array_equal(got[0], x[0])
    np.testing.assert_array_equal(got[1], other[1])
    np.testing.assert_allclose(got[2], 0.75 * x[2] + 0.25 * other[2], rtol=1e-5)


def test_attention_keeps_the_dtype_and_survives_large_logits():
    q = jnp.full((1, 2, 1, 4), 1e3, jnp.bfloat16)
    v = jnp.asarray(normal(0, 1, 2, 1, 4), jnp.bfloat16)
    out = primitives.attention(q, q, v)
    assert out.dtype == jnp.bfloat16
    mean = jnp.broadcast_to(v.astype(jnp.float32).mean(1, keepdims=True), v.shape)
    np.testing.assert_allclose(out.astype(np.float32), mean, atol=0.02)


def test_resampling():
    assert primitives.avg_pool(jnp.ones((1, 2, 2, 1), jnp.bfloat16)).dtype == jnp.bfloat16
    x = normal(0, 2, 3, 4, 5)
    up = primitives.upsample_nearest(x)
    np.testing.assert_array_equal(up, x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(primitives.avg_pool(up), x, rtol=1e-6)
    ramp = np.arange(4.0, dtype=np.float32).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(primitives.avg_pool(ramp), [[[[1.5]]]])


def test_dense_and_silu():
    x, kernel, bias = normal(0, 2, 3, 4), normal(1, 4, 5), normal(2, 5)
    np.testing.assert_allclose(primitives.dense(x, kernel, bias), x @ kernel + bias, atol=1e-5)
    np.testing.assert_allclose(primitives.dense(x, kernel), x @ kernel, atol=1e-5)
    exact = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(primitives.silu(x), exact, atol=1e-6)
    assert float(primitives.silu(jnp.float32(-1e4))) == 0.0


@pytest.mark.parity
def test_against_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, kernel, bias = normal(0, 2, 8, 8, 16), normal(1, 3, 3, 16, 16, scale=0.1), normal(2, 16)
    nchw = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    nhwc = lambda t: t.permute(0, 2, 3, 1).numpy()
    weights = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
    conv = functional.conv2d(nchw, weights, torch.from_numpy(bias), padding=1)
    np.testing.assert_allclose(primitives.conv(x, kernel, bias), nhwc(conv), atol=1e-5)
    norm = functional.silu(functional.group_norm(nchw, 4, eps=1e-6))
    ours = primitives.group_norm_silu(x, jnp.ones(16), jnp.zeros(16), 4, 1e-6)
    np.testing.assert_allclose(ours, nhwc(norm), atol=1e-5)
