"""Weighted prompts in chunks: which states, at what weight, in what order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.text.clip import TextStates
from diffusion_jax.models.text.prompts import Reader, read_prompts, weighted


def test_a_chunk_keeps_its_mean():
    states = np.random.default_rng(0).normal(1, 1, size=(2, 2, 3, 4)).astype(np.float32)
    weights = np.float32([[[1, 1, 1], [2, 0.5, 1]], [[0, 1, -1], [3, 3, 3]]])
    got = np.asarray(jax.jit(weighted)(jnp.asarray(states), jnp.asarray(weights)))
    for b in range(2):
        for k in range(2):
            made = states[b, k] * weights[b, k][:, None]
            np.testing.assert_allclose(
                got[b, k], made * states[b, k].mean() / made.mean(), rtol=2e-3, atol=1e-4
            )
    np.testing.assert_allclose(got[0, 0], states[0, 0], rtol=1e-5)
    np.testing.assert_allclose(got[1, 1], states[1, 1], rtol=1e-4)
    nothing = weighted(jnp.asarray(states[:1, :1]), jnp.zeros((1, 1, 3)))
    np.testing.assert_array_equal(nothing, np.zeros((1, 1, 3, 4)))


def reader(width, offset):
    """States tell the token and the encoder; pooled is of the chunk's first token."""

    def encode(params, ids):
        state = (ids[..., None] * params + offset + jnp.zeros(width)).astype(jnp.bfloat16)
        return TextStates((state,), state, state[:, 0])

    return Reader(encode, lambda states: states.hidden[0])


def test_states_of_all_encoders_side_by_side_and_the_last_ones_pooled_first_chunk():
    ids = np.arange(12).reshape(2, 2, 3)
    rows = {f"ids_{i}": jnp.asarray(ids + 20 * i) for i in (0, 1)}
    rows |= {"weights_0": jnp.ones((2, 2, 3)), "weights_1": jnp.ones((2, 2, 3))}
    read = jax.jit(partial(read_prompts, (reader(2, 0.5), reader(3, 0.25)), (1.0, 2.0)))
    context, pooled = read(rows)
    assert context.shape == (2, 6, 5) and context.dtype == pooled.dtype == jnp.float32
    flat = ids.reshape(2, 6)
    np.testing.assert_allclose(context[..., 0], flat + 0.5)
    np.testing.assert_allclose(context[..., 4], 2 * (flat + 20) + 0.25, rtol=5e-3)
    np.testing.assert_allclose(pooled, [[40.25] * 3, [52.25] * 3], rtol=5e-3)
    rows["weights_0"] = jnp.full((2, 2, 3), 1.0).at[0, 1, 2].set(2.0)
    other, same = read(rows)
    np.testing.assert_array_equal(same, pooled)
    changed = np.argwhere(np.abs(other - context).max(-1) > 1e-3)
    assert {tuple(place) for place in changed} == {(0, 3), (0, 4), (0, 5)}
    np.testing.assert_allclose(other[..., 2:], context[..., 2:])
