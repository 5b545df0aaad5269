"""Keys of seeds of 64 bits: the old ones below 2**32, and others for all above."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.apps.plan import Request, noise_of
from diffusion_jax.core import seeds

DATA = jax.random.key_data


def test_seeds_below_two_to_the_32_have_the_keys_of_jax():
    for seed in (0, 7, 2**31, 2**32 - 1):
        expected = DATA(jax.random.key(np.uint32(seed)))
        for found in (seeds.key(seed), jax.jit(seeds.key)(jnp.asarray(seeds.words(seed)))):
            np.testing.assert_array_equal(DATA(found), expected)
        into = jax.random.key(3)
        folded = jax.random.fold_in(into, np.uint32(seed))
        np.testing.assert_array_equal(DATA(seeds.folded(into, seed)), DATA(folded))


def test_larger_seeds_have_keys_of_their_own():
    many = [5, 2**32, 2**32 + 5, 5 * 2**32, 1125899906842624, 2**63 + 5, 2**64 - 1]
    keys = jax.jit(jax.vmap(seeds.key))(jnp.asarray(seeds.words(many)))
    alone = np.stack([DATA(seeds.key(seed)) for seed in many])
    np.testing.assert_array_equal(DATA(keys), alone)
    assert len({tuple(row) for row in alone.tolist()}) == len(many)
    apart = {tuple(np.asarray(DATA(seeds.folded(jax.random.key(1), s))).tolist()) for s in many}
    assert len(apart) == len(many)


def test_noise_of_old_seeds_is_the_old_noise():
    requests = [Request(seed=seed) for seed in (3, 2**32 - 1, 2**40, 2**64 - 1)]
    noise = noise_of(requests, (5, 2))
    for row, seed in zip(noise[:2], (3, 2**32 - 1), strict=True):
        old = jax.random.normal(jax.random.key(np.uint32(seed)), (5, 2))
        np.testing.assert_array_equal(row, old)
    assert abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.9


def test_what_is_no_seed_is_named():
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=f"seed = {seed} must be 0 to 18446744073709551615"):
            seeds.words(seed)
