"""DiT: its parts without an independent implementation; parity is in test_dit_parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.transformers.dit import DiT, modulated, positions

FIELDS = {"width": 16, "depth": 2, "heads": 2, "out_channels": 3, "num_classes": 5}
X = np.random.default_rng(0).normal(size=(2, 8, 4, 3)).astype(np.float32)
TIME, LABEL = np.array([10.0, 700.0], np.float32), np.array([1, 4])


@pytest.fixture(scope="module")
def params():
    made = init_params(DiT(**FIELDS), jax.random.key(0), X.shape, {"label": LABEL})
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + rng.normal(0, 0.2, p.shape).astype(np.float32), made)


def run(params, x=X, time=TIME, cond=None, **fields):
    net = net_from_module(DiT(**{**FIELDS, **fields}))
    cond = {"label": LABEL} if cond is None else cond
    return jax.jit(lambda p, x, t, c: net(p, x, t, c))(params, x, time, cond)


def test_it_is_zero_at_the_start_and_keeps_the_shape():
    fresh = init_params(DiT(**FIELDS), jax.random.key(0), X.shape, {"label": LABEL})
    out = run(fresh)
    assert out.shape == X.shape and not out.any()


def test_each_input_matters_and_no_label_is_the_null_class(params):
    out = run(params)
    assert np.isfinite(out).all() and np.abs(out).max() > 0.1
    null = run(params, cond={"label": np.array([5, 5])})
    np.testing.assert_array_equal(run(params, cond={}), null)
    for other in (run(params, time=TIME + 50), run(params, x=X[:, ::-1]), null):
        assert np.abs(other - out).max() > 1e-3


def test_positions_are_sines_of_the_column_then_of_the_row():
    table = positions(3, 5, 16).reshape(3, 5, 16)
    np.testing.assert_allclose(table[2, 4, 0], np.sin(4.0), rtol=1e-6)
    np.testing.assert_allclose(table[2, 4, 4], np.cos(4.0), rtol=1e-6)
    np.testing.assert_allclose(table[2, 4, 8], np.sin(2.0), rtol=1e-6)
    np.testing.assert_allclose(table[2, 4, 13], np.cos(2 / 10000**0.25), rtol=1e-6)
    with pytest.raises(ValueError, match="not a multiple of 4"):
        positions(2, 2, 10)


def test_modulation_is_of_the_normed_input():
    x = np.random.default_rng(2).normal(3, 5, (2, 4, 6)).astype(np.float32)
    shift, scale = np.ones((2, 1, 6), np.float32), np.full((2, 1, 6), 0.5, np.float32)
    normed = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(modulated(x, shift, scale, 0.0), 1.5 * normed + 1, atol=1e-5)


def test_gates_skip_layers_and_open_attention(params):
    every = np.ones((2, 2), np.float32)
    plain = run(params)
    skipped = run(params, cond={"label": LABEL, "skip_blocks": every})
    identity = run(params, cond={"label": LABEL, "identity_attention": every})
    none = run(params, cond={"label": LABEL, "skip_blocks": 0 * every})
    np.testing.assert_allclose(none, plain, atol=1e-6)
    assert np.abs(skipped - plain).max() > 1e-3 and np.abs(identity - plain).max() > 1e-3
    with pytest.raises(ValueError, match="skip_blocks"):
        run(params, cond={"label": LABEL, "skip_blocks": np.ones((2, 3), np.float32)})


def test_bfloat16_is_near_and_remat_and_chunks_are_the_same(params):
    plain = np.asarray(run(params))
    low = np.asarray(run(params, dtype="bfloat16"))
    assert low.dtype == np.float32 and np.abs(low - plain).max() < 0.1 * np.abs(plain).max()
    np.testing.assert_allclose(run(params, remat="full"), plain, atol=1e-6)
    np.testing.assert_allclose(run(params, attention="chunked"), plain, atol=1e-5)


def test_forward_mode_is_the_finite_difference(params):
    net = net_from_module(DiT(**FIELDS))
    f = lambda x, t: net(params, x, t, {"label": jnp.asarray(LABEL)})
    dx = np.random.default_rng(3).normal(size=X.shape).astype(np.float32)
    _, slope = jax.jit(lambda x: jax.jvp(f, (x, jnp.asarray(TIME)), (dx, jnp.ones(2))))(X)
    h = 1e-2
    ahead, behind = jax.jit(f)(X + h * dx, TIME + h), jax.jit(f)(X - h * dx, TIME - h)
    wanted = (ahead - behind) / (2 * h)
    np.testing.assert_allclose(slope, wanted, atol=2e-2 * np.abs(wanted).max())


def test_one_time_for_every_token_is_the_time_of_the_example(params):
    plain = run(params)
    each = np.broadcast_to(TIME[:, None, None], (2, 4, 2))
    np.testing.assert_allclose(run(params, time=each), plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(params, time=each.reshape(2, 8)), plain, rtol=1e-4, atol=1e-5)
    told = {"label": LABEL, "end": np.array([3.0, 40.0], np.float32)}
    shapes = lambda: init_params(DiT(**FIELDS, scalars=("end",)), jax.random.key(0), X.shape, told)
    rng = np.random.default_rng(1)
    own = jax.tree.map(
        lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), jax.eval_shape(shapes)
    )
    one, many = (run(own, time=t, cond=told, scalars=("end",)) for t in (TIME, each))
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)


def test_a_token_is_modulated_by_its_own_time(params):
    """With attention silent tokens do not hear of one another: a patch is that of its own time."""
    silent = {
        name: {**part, "attention": jax.tree.map(np.zeros_like, part["attention"])}
        if name.startswith("layer_") else part
        for name, part in params.items()
    }  # fmt: skip
    time = np.random.default_rng(5).uniform(0, 900, (2, 4, 2)).astype(np.float32)
    out = run(silent, time=time)
    for row, column in ((0, 0), (2, 1), (3, 0)):
        of_one = run(silent, time=time[:, row, column])
        there = np.s_[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_allclose(out[there], of_one[there], rtol=1e-4, atol=1e-5)
        assert np.abs(out - of_one).max() > 1e-2
    # And with attention they do.
    moved = np.array(time)
    moved[:, 3, 0] += 100
    assert np.abs((run(params, time=moved) - run(params, time=time))[:, :2]).max() > 1e-3


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 4), (2, 8, 4), (2, 4, 2, 1)])
def test_times_of_another_grid_are_refused(params, shape):
    with pytest.raises(ValueError, match=r"each of its 4x2 patches, \(2, 4, 2\)"):
        run(params, time=np.zeros(shape, np.float32))


def test_a_size_that_patches_do_not_cover_is_refused(params):
    with pytest.raises(ValueError, match="7x4"):
        run(params, x=X[:, :7])
