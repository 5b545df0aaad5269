"""Dropping conditions: joint frequencies, slots together, and what one probability always did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from diffusion_jax.recipes.inputs import Drop, drop_condition, dropped

N = 40_000
# Every example has numbers of its own, so that nothing can come from a neighbour.
COND = {
    "context": jnp.arange(N * 6, dtype=jnp.float32).reshape(N, 3, 2) + 1,
    "context_mask": jnp.ones((N, 3), bool),
    "edit": jnp.arange(N * 4, dtype=jnp.float32).reshape(N, 2, 2, 1) + 1,
    "size": jnp.arange(N, dtype=jnp.int32) + 1,
}
NULL = {
    name: jnp.zeros_like(leaf) if leaf.dtype == bool else -jnp.ones_like(leaf)
    for name, leaf in COND.items()
}
TEXT, PICTURE = ("context", "context_mask"), ("edit",)
INSTRUCT = (Drop(0.05, TEXT), Drop(0.07, TEXT + PICTURE), Drop(0.11, PICTURE))


def is_empty(cond):
    """Slot -> bool [n], and that an example's slot is all of the null's or all of its own."""
    found = {}
    for name, leaf in cond.items():
        flat = lambda z: np.asarray(z).reshape(N, -1)
        null, own = flat(leaf) == flat(NULL[name]), flat(leaf) == flat(COND[name])
        assert ((null.all(1)) ^ (own.all(1))).all(), name
        found[name] = null.all(1)
    return found


def test_slots_are_emptied_together_as_often_as_the_table_says():
    out = jax.jit(lambda key: dropped(key, COND, NULL, N, INSTRUCT))(jax.random.key(0))
    empty = is_empty(out)
    assert_array_equal(empty["context"], empty["context_mask"])
    assert not empty["size"].any() and out["size"].dtype == jnp.int32
    text, picture = empty["context"], empty["edit"]
    seen = {
        0.05: text & ~picture, 0.07: text & picture, 0.11: ~text & picture, 0.77: ~text & ~picture
    }  # fmt: skip
    for share, which in seen.items():
        assert abs(which.mean() - share) < 4 * np.sqrt(share * (1 - share) / N), share


def test_one_uniform_number_decides_as_in_the_authors_code():
    """With u = 5 %: without text where r < 2u, without picture where u <= r < 3u."""
    u, key = 0.05, jax.random.key(3)
    table = (Drop(u, TEXT), Drop(u, TEXT + PICTURE), Drop(u, PICTURE))
    empty = is_empty(dropped(key, COND, NULL, N, table))
    r = np.asarray(jax.random.uniform(key, (N,)), np.float64)
    away = np.abs(r[:, None] - [u, 2 * u, 3 * u]).min(1) > 1e-7
    assert_array_equal(empty["context"][away], (r < 2 * u)[away])
    assert_array_equal(empty["edit"][away], ((r >= u) & (r < 3 * u))[away])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.37, 1.0])
def test_a_probability_is_a_table_of_one_way_and_bernoulli_to_the_bit(rate):
    key = jax.random.key(2)
    wanted = drop_condition(jax.random.bernoulli(key, rate, (N,)), COND, NULL)
    for dropout in (rate, (Drop(rate),), [Drop(rate, tuple(COND))]):
        out = dropped(key, COND, NULL, N, dropout)
        jax.tree.map(assert_array_equal, out, wanted)


def test_a_condition_without_names_is_emptied_as_a_whole():
    out = dropped(jax.random.key(0), COND["edit"], NULL["edit"], N, 0.3)
    assert abs(is_empty({"edit": out})["edit"].mean() - 0.3) < 4 * np.sqrt(0.21 / N)
    assert dropped(jax.random.key(0), {}, {}, N, 0.3) == {}


def test_mistakes_are_sentences():
    drop = lambda dropout, cond=COND: dropped(jax.random.key(0), cond, NULL, N, dropout)
    with pytest.raises(ValueError, match=r"no slots \['text'\] to empty: it has \['context', 'con"):
        drop((Drop(0.1, ("text",)),))
    with pytest.raises(ValueError, match="it has no names"):
        drop((Drop(0.1, ("text",)),), COND["edit"])
    with pytest.raises(ValueError, match=r"probabilities \[0.6, 0.5\]"):
        drop((Drop(0.6, TEXT), Drop(0.5, PICTURE)))
    with pytest.raises(ValueError, match=r"probabilities \[-0.1\]"):
        drop(-0.1)
