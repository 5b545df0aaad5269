"""Attention in chunks against the full form: values, derivatives, memory, and nets that use it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_unet
from numpy.testing import assert_allclose

from diffusion_jax.models import attention_memory, primitives
from diffusion_jax.models.adapter import net_from_module
from diffusion_jax.models.attention_memory import ATTENTIONS, chunked, flash
from diffusion_jax.models.layers import Style
from diffusion_jax.models.unet.transformer_2d import SpatialTransformer

SMALL = jax.jit(partial(chunked, queries=4, keys=6))


def draw(m, n, b=2, heads=3, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((b, m, heads, dim), (b, n, heads, dim), (b, n, heads, dim))
    return tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)


@jax.jit
def full(q, k, v, mask=None):
    """Written out, with no help from the package."""
    logits = jnp.einsum("bmhd,bnhd->bhmn", q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, -1e30)
    return jnp.einsum("bhmn,bnhd->bmhd", jax.nn.softmax(logits, -1), v)


# A masked prefix longer than a chunk, a row with one key, a row with none.
MASK = np.array([[False] * 7 + [True] * 6, [True] + [False] * 12, [False] * 13])


@pytest.mark.parametrize(("m", "n"), [(1, 1), (11, 13), (8, 12)])
def test_equals_full_attention_at_any_length(m, n):
    arrays = draw(m, n)
    assert_allclose(SMALL(*arrays), full(*arrays), atol=1e-6)


def test_masked_keys_are_left_out_and_a_row_without_keys_is_a_mean():
    q, k, v = draw(11, 13, b=3)
    got = SMALL(q, k, v, jnp.asarray(MASK))
    assert_allclose(got, full(q, k, v, jnp.asarray(MASK)), atol=1e-6)
    assert_allclose(got, primitives.attention(q, k, v, jnp.asarray(MASK)), atol=1e-6)
    assert_allclose(got[1], jnp.broadcast_to(v[1, :1], got[1].shape), atol=1e-6)
    assert_allclose(got[2], jnp.broadcast_to(v[2].mean(0), got[2].shape), atol=1e-6)
    moved = SMALL(q, k, v.at[0, :7].add(100.0), jnp.asarray(MASK))
    assert_allclose(moved[0], got[0], atol=1e-6)


def test_large_logits_neither_overflow_nor_vanish():
    q, k, v = draw(5, 13)
    got = SMALL(200 * q, 200 * k, v)
    assert_allclose(got, full(200 * q, 200 * k, v), atol=1e-5)
    assert np.isfinite(got).all()


EVERY = jax.jit(lambda *given: [SMALL(*given), *(f(*given) for f in ATTENTIONS.values())])


@pytest.mark.parametrize("order", [1, -1])
def test_a_largest_logit_that_moves_from_block_to_block_rescales_what_was_summed(order):
    """Keys grow, or shrink, a hundredfold along the row; against NumPy in float64."""
    q, k, v = (np.float64(a) for a in draw(9, 20, b=2, heads=2, dim=3))
    k *= np.geomspace(0.05, 5, 20)[::order, None, None]
    mask = np.random.default_rng(4).random((2, 20)) < 0.7
    logits = np.einsum("bmhd,bnhd->bhmn", q, k) / np.sqrt(3)
    logits[~np.broadcast_to(mask[:, None, None], logits.shape)] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    wanted = np.einsum("bhmn,bnhd->bmhd", weights, v)
    arrays = [*(jnp.asarray(a, jnp.float32) for a in (q, k, v)), jnp.asarray(mask)]
    for got in EVERY(*arrays):
        assert_allclose(got, wanted, atol=2e-5)


def test_blocks_are_of_512_queries_and_1024_keys_at_most():
    shape = lambda n: jax.ShapeDtypeStruct((1, n, 1, 4), jnp.float32)
    jaxpr = str(jax.make_jaxpr(chunked)(shape(1025), shape(2049), shape(2049)))
    assert "[3,1,512,1,4]" in jaxpr and "[3,1,1024,1,4]" in jaxpr and "[3,1,1024]" in jaxpr


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_of_both_modes_equal_those_of_the_full_form(masked):
    arrays, tangents = draw(11, 13, b=3), draw(11, 13, b=3, seed=1)
    mask = (jnp.asarray(MASK),) if masked else ()

    def both(f):
        call = lambda *a: f(*a, *mask)
        out, tangent = jax.jvp(call, arrays, tangents)
        loss = lambda *a: (call(*a) * tangents[0]).sum()
        return out, tangent, jax.grad(loss, (0, 1, 2))(*arrays)

    got, wanted = tiny_unet.quick(lambda: (both(SMALL), both(full)))()
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert_allclose(one, other, rtol=1e-5, atol=3e-6)
        assert np.abs(other).max() > 0.1


def test_vmap_and_the_derivative_of_a_derivative():
    arrays = tuple(a[None] * np.array([1.0, 0.5], np.float32)[:, None, None, None, None]
                   for a in draw(5, 7))  # fmt: skip
    assert_allclose(tiny_unet.quick(jax.vmap(SMALL))(*arrays), jax.vmap(full)(*arrays), atol=1e-6)
    q, k, v = (a[0] for a in arrays)
    second = lambda f: jax.jvp(jax.grad(lambda q: (f(q, k, v) ** 2).sum()), (q,), (q,))[1]
    got, wanted = tiny_unet.quick(lambda: (second(SMALL), second(full)))()
    assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_has_its_own_error_alone():
    low = tuple(a.astype(jnp.bfloat16) for a in draw(33, 70))
    got, exact = SMALL(*low), full(*(a.astype(jnp.float32) for a in low))
    assert got.dtype == jnp.bfloat16
    assert np.abs(np.asarray(got, np.float32) - exact).max() < 0.01 * np.abs(exact).max()


def _temporary(f, tokens):
    shape = jax.ShapeDtypeStruct((1, tokens, 1, 16), jnp.float32)
    options = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(f).lower(shape, shape, shape).compile(compiler_options=options)
    return compiled.memory_analysis().temp_size_in_bytes


def _gradient(f):
    return jax.grad(lambda q, k, v: f(q, k, v).sum(), (0, 1, 2))


def _tangent(f):
    return lambda q, k, v: jax.jvp(f, (q, k, v), (v, q, k))


@pytest.mark.parametrize("mode", [lambda f: f, _tangent, _gradient], ids=["call", "jvp", "grad"])
def test_memory_grows_with_the_tokens_and_not_with_their_square(mode):
    small = mode(partial(chunked, queries=128, keys=128))
    sizes = {n: _temporary(small, n) for n in (2048, 4096, 8192)}
    whole = _temporary(mode(full), 4096)
    print(f"temporaries: {sizes}, full at 4096: {whole}")
    assert whole >= 4096**2 * 4
    assert sizes[4096] < whole / 10
    # Linear: the second doubling adds twice the first.
    assert sizes[8192] - sizes[4096] <= 2.2 * (sizes[4096] - sizes[2048]) + 1e4


def test_flash_is_chunked_where_there_is_no_fused_kernel():
    arrays = draw(5, 7)
    one, other = tiny_unet.quick(lambda: (flash(*arrays), chunked(*arrays)))()
    np.testing.assert_array_equal(one, other)


def test_the_unets_field_chooses_and_changes_no_output():
    params = tiny_unet.random_params(tiny_unet.TINY)
    args = (params, *tiny_unet.inputs(), tiny_unet.LABEL)
    nets = {n: net_from_module(tiny_unet.TINY.clone(attention=n)) for n in ATTENTIONS}
    scans = {n: str(jax.make_jaxpr(net)(*args)).count("scan[") for n, net in nets.items()}
    assert scans["full"] == 0 and scans["chunked"] == scans["flash"] == 8  # two in each of four
    out = tiny_unet.quick(nets["full"])(*args)
    assert_allclose(tiny_unet.quick(nets["chunked"])(*args), out, atol=1e-5)


def test_transformers_hand_the_field_to_both_attentions():
    x, text = jnp.ones((1, 2, 2, 8)), jnp.ones((1, 3, 5))
    style = Style(attention="chunked", groups=1)
    run = lambda style: SpatialTransformer(1, 2, style).init_with_output
    jaxpr = lambda style: str(jax.make_jaxpr(run(style))(jax.random.key(0), x, text))
    assert (jaxpr(style).count("scan["), jaxpr(Style(groups=1)).count("scan[")) == (4, 0)


def test_unknown_names_and_empty_blocks_are_refused():
    net = net_from_module(tiny_unet.TINY.clone(attention="sparse"))
    params = tiny_unet.abstract_params(tiny_unet.TINY)
    with pytest.raises(ValueError, match="'sparse' is unknown: use one of by_size, chunked, fl"):
        jax.eval_shape(net, params, *tiny_unet.inputs(), tiny_unet.LABEL)
    with pytest.raises(ValueError, match="queries=0 by keys=1024 is empty"):
        chunked(*draw(2, 2), queries=0)


@pytest.mark.parametrize(("m", "same"), [(512, "full"), (513, "chunked")])
def test_by_size_changes_form_where_logits_are_many(m, same):
    arguments = draw(m, 512, b=1, heads=1)
    traced = [str(jax.make_jaxpr(ATTENTIONS[name])(*arguments)) for name in ("by_size", same)]
    assert traced[0] == traced[1]
    other = {"full": "chunked", "chunked": "full"}[same]
    assert traced[0] != str(jax.make_jaxpr(ATTENTIONS[other])(*arguments))


@pytest.mark.parametrize(
    ("dtype", "dim", "masked", "form"),
    [
        (jnp.bfloat16, 8, False, "fused"),
        (jnp.float16, 128, False, "fused"),
        (jnp.float32, 8, False, "chunked"),
        (jnp.bfloat16, 12, False, "chunked"),
        (jnp.bfloat16, 136, False, "chunked"),
        (jnp.bfloat16, 8, True, "chunked"),
    ],
)
def test_flash_is_fused_on_a_gpu_for_half_precision_of_its_widths(
    monkeypatch, dtype, dim, masked, form
):
    x = jnp.zeros((1, 2, 1, dim), dtype)
    mask = jnp.ones((1, 2), bool) if masked else None
    monkeypatch.setattr(attention_memory, "chunked", lambda *given: ("chunked", given))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    chosen = lambda *given, cuda, default: ("fused", given, cuda.keywords, default)
    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
    got = flash(x, x, x, mask)
    assert got[0] == form
    if form == "fused":
        assert got[2] == {"implementation": "cudnn"} and got[3] is attention_memory.chunked
    else:
        assert got[1][3] is mask
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert flash(x, x, x, mask)[0] == "chunked"
