"""A codebook of moving averages: the recursion, its fixed point, and what no gradient changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.core import ema
from diffusion_jax.models.autoencoders.autoencoder import quantise
from diffusion_jax.recipes import autoencoder as recipe
from diffusion_jax.recipes.bottleneck import Sums, vq_ema
from diffusion_jax.train.state import new_state
from diffusion_jax.train.step import make_step

MEANS = np.array([[3.0, 1.0], [-2.0, 2.0], [1.5, -2.5], [-3.0, -1.0]])
SHARES = np.array([0.4, 0.3, 0.2, 0.1])
SPREAD = 0.25


def trained(hold, book, steps):
    """Steps on the mixture with a fixed encoder, as the loop takes them -> (state, metrics)."""
    coder = recipe.Coder(
        lambda key, x: {"codebook": jnp.asarray(book), "decoder": jnp.eye(2)},
        lambda params, x: quantise(x, params["codebook"]),
        lambda params, z: z @ params["decoder"],
    )
    made = recipe.autoencoder(coder, recipe.PIXEL_LOSSES["l2"](), hold)
    tx, average = optax.adamw(1e-2, weight_decay=0.1), ema.constant(0.9)
    state = new_state(made, tx, average, jax.random.key(0), {"image": _draw(0)})
    step = make_step(made, tx, average, seed=0)
    loop = lambda state, i: step(state, {}, {"image": _draw(i)})
    return jax.jit(lambda state: jax.lax.scan(loop, state, jnp.arange(steps)))(state)


def _draw(i):
    which_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(1), i))
    which = jax.random.choice(which_key, 4, (64, 2, 2), p=jnp.asarray(SHARES))
    noise = SPREAD * jax.random.normal(noise_key, (64, 2, 2, 2))
    return jnp.asarray(MEANS, jnp.float32)[which] + noise


def test_the_codebook_goes_to_the_means_of_a_mixture():
    start = MEANS + np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, -0.5], [0.5, 1.5]])
    state, metrics = trained(vq_ema(4, 2), start.astype(np.float32), 600)
    book = state.params["autoencoder"]["codebook"]
    # The variance of such an average of n draws a step is that of n·(1 + decay)/(1 - decay).
    error = SPREAD / np.sqrt(256 * SHARES * 1.99 / 0.01)
    assert (np.abs(book - MEANS) < 4 * error[:, None]).all()
    np.testing.assert_allclose(state.carry.count, 256 * SHARES, rtol=0.05)
    entropy = -(SHARES * np.log(SHARES)).sum()
    np.testing.assert_allclose(metrics["perplexity"][-200:].mean(), np.exp(entropy), rtol=0.02)
    # What is averaged for sampling is the same codebook, a few steps late.
    np.testing.assert_allclose(state.ema["autoencoder"]["codebook"], book, atol=0.02)


@pytest.mark.parametrize("dead", [0.0, 0.1])
def test_a_collapsed_codebook_finds_every_part_of_the_mixture_if_revived(dead):
    book = np.full((8, 2), 9.0, np.float32)
    book[0] = 0.0  # the nearest of all draws
    state, metrics = trained(vq_ema(8, 2, decay=0.9, dead=dead), book, 200)
    found = state.params["autoencoder"]["codebook"]
    if dead:
        nearest = np.linalg.norm(found[None] - MEANS[:, None], axis=-1).min(1)
        assert (nearest < 2 * SPREAD).all() and metrics["perplexity"][-1] > 3.5
    else:
        np.testing.assert_allclose(found[0], SHARES @ MEANS, atol=0.1)
        np.testing.assert_array_equal(metrics["perplexity"], 1)
        # Never chosen: they stay, but for the optimiser's weight decay.
        assert (found[1:] > 6).all()


def test_two_steps_are_the_paper_s_recursion():
    hold = vq_ema(3, 2, decay=0.75, dead=0.0, smoothing=0.5)
    key, params = jax.random.key(0), {"codebook": jnp.array([[1.0, 0.0], [-1.0, 0.0], [9.0, 9.0]])}
    carry = hold.carry()
    count, total = np.zeros(3), np.zeros((3, 2))
    for i in range(2):
        before = jax.random.normal(jax.random.key(i), (2, 2, 3, 2))
        code = quantise(before, params["codebook"])
        carry = hold.apply(params, code, 1, carry, key).carry
        chosen = np.eye(3)[np.asarray(code.indices).reshape(-1)]
        count = 0.75 * count + 0.25 * chosen.sum(0)
        total = 0.75 * total + 0.25 * chosen.T @ np.asarray(before).reshape(-1, 2)
        smooth = count.sum() * (count + 0.5) / (count.sum() + 1.5)
        params = hold.settle(params, carry)
        wanted = (total / smooth[:, None])[:2]
        np.testing.assert_allclose(params["codebook"][:2], wanted, rtol=1e-5)
    np.testing.assert_array_equal(params["codebook"][2], 9.0)


def test_no_gradient_goes_to_the_codebook_and_the_encoder_commits():
    hold, book = vq_ema(5, 2, beta=0.25, weight=2.0), jax.random.normal(jax.random.key(0), (5, 2))
    before = jax.random.normal(jax.random.key(1), (3, 2, 2, 2))

    def loss(book, before):
        code = quantise(before, book)
        held = hold.apply({"codebook": book}, code, 12, hold.carry(), jax.random.key(2))
        return held.loss + jnp.sum(held.z**2) * 0

    of_book, of_before = jax.grad(loss, (0, 1))(book, before)
    np.testing.assert_array_equal(of_book, 0)
    apart = before - book[quantise(before, book).indices]
    np.testing.assert_allclose(of_before, 2 * 0.25 * apart * 2 / before.size, rtol=1e-5)


def test_a_dead_entry_goes_to_an_output_with_the_average_count():
    hold, book = vq_ema(3, 2, dead=0.2), jnp.array([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0]])
    before = jax.random.uniform(jax.random.key(0), (2, 2, 2, 2))
    carry = Sums(jnp.array([40.0, 30.0, 1.0]), 7 * jnp.ones((3, 2)))
    held = hold.apply({"codebook": book}, quantise(before, book), 1, carry, jax.random.key(1))
    assert held.metrics["dead_entries"] == 1
    found = hold.settle({"codebook": book}, held.carry)["codebook"][2]
    apart = np.abs(np.asarray(before).reshape(-1, 2) - found).sum(1)
    assert apart.min() < 1e-4
    decayed = 0.99 * carry.count + 0.01 * np.bincount(
        np.asarray(quantise(before, book).indices).reshape(-1), minlength=3
    )
    np.testing.assert_allclose(held.carry.count[2], decayed.mean(), rtol=1e-6)


def test_a_wrong_number_is_named():
    with pytest.raises(ValueError, match=r"dead=1.5.*in \[0, 1\)"):
        vq_ema(4, 2, dead=1.5)
