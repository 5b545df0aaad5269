"""The first stage's recipe: autoencoder and discriminator in one step, with their own gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.core import ema
from diffusion_jax.core.types import Context
from diffusion_jax.models.autoencoders.autoencoder import Posterior, quantise
from diffusion_jax.recipes import autoencoder as recipe
from diffusion_jax.recipes.bottleneck import kl, perplexity, shares, vq
from diffusion_jax.train.state import new_state
from diffusion_jax.train.step import make_step

X = jax.random.uniform(jax.random.key(0), (4, 6, 6, 3), minval=-1)
STRENGTH = 0.7


class Plain(NamedTuple):
    mean: jax.Array

    def kl(self):
        return jnp.zeros(self.mean.shape[0])

    def sample(self, key):
        return self.mean


def _init(key, pixels):
    a, b = jax.random.split(key)
    draw = lambda key, *shape: 0.5 * jax.random.normal(key, shape)
    return {"in": draw(a, 3, 2), "decoder": {"conv_out": {"kernel": draw(b, 2, 3)}}}


CODER = recipe.Coder(
    _init,
    lambda p, x: Plain(jnp.tanh(x @ p["in"])),
    lambda p, z: z @ p["decoder"]["conv_out"]["kernel"],
)
JUDGE = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]


def adversary(game="hinge", start=0):
    init = lambda key, x: {
        "w": jax.random.normal(key, (3, 5)),
        "v": jax.random.normal(jax.random.key(9), (5, 1)),
    }
    return recipe.Adversary(init, JUDGE, recipe.GAMES[game], STRENGTH, start)


def made_of(player=None, perceptual=None, pixel="l1", hold=None):
    hold = hold or kl(0.0)
    return recipe.autoencoder(CODER, recipe.PIXEL_LOSSES[pixel](), hold, perceptual, player)


def run(made, params, step=5, frozen=None, x=X):
    context = Context(jnp.int32(step), {}, frozen or {}, made.carry())
    of_loss = jax.jit(jax.value_and_grad(made.loss, has_aux=True))
    (loss, report), grads = of_loss(params, context, {"image": x}, jax.random.key(1))
    return loss, report, grads


def close(a, b, **tolerance):
    tolerance = {"rtol": 2e-5, "atol": 1e-6} | tolerance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), a, b)


def reconstruct(own):
    return CODER.decode(own, CODER.encode(own, X).mean)


@pytest.mark.parametrize("game", recipe.GAMES)
def test_each_network_has_the_gradient_of_its_own_loss_alone(game):
    player = adversary(game)
    made = made_of(player)
    params = made.init(jax.random.key(3), {"image": X})
    loss, report, grads = run(made, params)
    own, other = params["autoencoder"], params["discriminator"]
    pixel = lambda own: jnp.abs(reconstruct(own) - X).mean()
    fool = lambda own: player.game.generator(JUDGE(other, reconstruct(own)))
    last = lambda tree: tree["decoder"]["conv_out"]["kernel"]
    by_hand = jnp.linalg.norm(last(jax.grad(pixel)(own))) / (
        jnp.linalg.norm(last(jax.grad(fool)(own))) + 1e-6
    )
    np.testing.assert_allclose(report.metrics["adaptive_weight"], by_hand, rtol=1e-4)
    wanted = jax.grad(lambda own: pixel(own) + STRENGTH * by_hand * fool(own))(own)
    close(grads["autoencoder"], wanted, rtol=1e-4)
    tell = lambda p: 0.5 * player.game.discriminator(JUDGE(p, X), JUDGE(p, reconstruct(own)))
    close(grads["discriminator"], jax.grad(tell)(other))
    value = pixel(own) + STRENGTH * by_hand * fool(own) + tell(other)
    np.testing.assert_allclose(loss, value, rtol=1e-5)


def test_before_the_start_the_discriminator_changes_nothing_and_stays():
    late, none = made_of(adversary(start=6)), made_of()
    params = late.init(jax.random.key(3), {"image": X})
    alone = {"autoencoder": params["autoencoder"]}
    loss, _, grads = run(late, params, step=5)
    plain, _, wanted = run(none, alone, step=5)
    np.testing.assert_array_equal(loss, plain)
    jax.tree.map(np.testing.assert_array_equal, grads["autoencoder"], wanted["autoencoder"])
    assert all(not np.any(g) for g in jax.tree.leaves(grads["discriminator"]))
    _, _, after = run(late, params, step=6)
    assert all(np.any(g) for g in jax.tree.leaves(after["discriminator"]))
    assert not np.allclose(after["autoencoder"]["in"], wanted["autoencoder"]["in"])


def test_adversarial_losses_have_the_right_sign():
    good, bad = jnp.full(4, 3.0), jnp.full(4, -3.0)
    for game in recipe.GAMES.values():
        assert game.discriminator(good, bad) < 0.2 < game.discriminator(bad, good)
        assert game.generator(good) < game.generator(bad)


def test_the_adaptive_weight_is_clipped():
    assert recipe.adaptive_weight(jnp.ones(3), jnp.zeros(3)) == 1e4
    assert recipe.adaptive_weight(jnp.zeros(3), jnp.ones(3)) == 0


def test_the_feature_distance_compares_directions_weighted_by_heads():
    a = [jnp.array([3.0, 0.0]).reshape(1, 1, 1, 2), jnp.ones((1, 2, 2, 1))]
    b = [jnp.array([0.0, 2.0]).reshape(1, 1, 1, 2), jnp.ones((1, 2, 2, 1)) * 7]
    np.testing.assert_allclose(recipe.feature_distance(a, b), [2.0], rtol=1e-6)
    heads = [jnp.array([0.25, 0.5]), jnp.ones(1)]
    np.testing.assert_allclose(recipe.feature_distance(a, b, heads), [0.75], rtol=1e-6)
    zero = jax.grad(lambda x: recipe.feature_distance([x], [b[0]]).sum())(jnp.zeros_like(a[0]))
    assert bool(jnp.isfinite(zero).all())


def test_the_perceptual_loss_moves_the_autoencoder_and_not_its_network():
    features = lambda p, x: [x @ p]
    looks = recipe.Perceptual(features, lambda p: [], 3.0)
    matrix = jax.random.normal(jax.random.key(4), (3, 4))
    made = made_of(perceptual=looks, pixel="l2")
    params = made.init(jax.random.key(3), {"image": X})
    loss, report, grads = run(made, params, frozen={"perceptual": matrix})

    def by_hand(own):
        y = reconstruct(own)
        far = recipe.feature_distance([y @ matrix], [X @ matrix]).mean()
        return jnp.square(y - X).mean() + 3 * far

    value, wanted = jax.value_and_grad(by_hand)(params["autoencoder"])
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    close(grads["autoencoder"], wanted)
    assert set(report.metrics) == {"pixel", "perceptual", "kl_nats", "code_std"}


def test_the_kl_is_weighted_per_value_of_the_image():
    code = Posterior(jnp.full((2, 3, 3, 2), 2.0), jnp.zeros((2, 3, 3, 2)))
    held = kl(0.5).apply({}, code, 36, (), jax.random.key(0))
    np.testing.assert_allclose(held.loss, 0.5 * (18 * 2.0) / 36, rtol=1e-6)
    assert float(jnp.abs(held.z - 2).mean()) > 0.3  # drawn


def test_the_codebook_moves_to_encoder_outputs_and_these_commit():
    book = jax.random.normal(jax.random.key(0), (5, 2))
    before = jax.random.normal(jax.random.key(1), (2, 4, 4, 2))
    hold = vq(5, 2, beta=0.25, revive=0.0)

    key = jax.random.key(5)
    loss = lambda book, before: (
        hold.apply({"codebook": book}, quantise(before, book), 48, hold.carry(), key).loss
    )
    of_book, of_before = jax.grad(loss, (0, 1))(book, before)
    chosen = quantise(before, book).indices
    apart = (before - book[chosen]) * 2 / before.size
    np.testing.assert_allclose(of_before, 0.25 * apart, rtol=1e-5, atol=1e-7)
    wanted = jnp.zeros_like(book).at[chosen.reshape(-1)].add(-apart.reshape(-1, 2))
    np.testing.assert_allclose(of_book, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("revive", [0.0, 1.0])
def test_dead_entries_revive_when_pulled_to_encoder_outputs(revive):
    means = jnp.array([[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]])
    before = means.reshape(1, 2, 2, 2) + 0.1 * jax.random.normal(jax.random.key(0), (4, 2, 2, 2))
    hold, tx = vq(8, 2, revive=revive, decay=0.9), optax.adam(0.05)
    book = jnp.full((8, 2), 5.0).at[0].set(0.0)  # all but one are out of reach

    def one(state, key):
        book, opt, carry = state

        def loss(book):
            held = hold.apply({"codebook": book}, quantise(before, book), 16, carry, key)
            return held.loss, (held.carry, held.metrics)

        grads, (carry, metrics) = jax.grad(loss, has_aux=True)(book)
        updates, opt = tx.update(grads, opt)
        return (book + updates, opt, carry), metrics

    state = (book, tx.init(book), hold.carry())
    metrics = jax.lax.scan(one, state, jax.random.split(jax.random.key(1), 400))[1]
    last = {name: float(value[-1]) for name, value in metrics.items()}
    if revive:
        assert last["perplexity"] > 3.5 and last["codebook"] < 0.05
    else:
        assert last["perplexity"] < 2.5 and last["dead_entries"] >= 5


def test_perplexity_counts_entries():
    share = shares(jnp.array([[0, 1], [2, 3]]), 10)
    np.testing.assert_allclose(perplexity(share), 4.0, rtol=1e-5)
    np.testing.assert_allclose(perplexity(shares(jnp.zeros((3, 3), int), 10)), 1.0, rtol=1e-6)


def test_a_step_trains_both_and_carries_the_usage():
    book = lambda p, x: quantise(jnp.tanh(x @ p["in"]), p["codebook"])
    init = lambda key, x: {**_init(key, x), "codebook": jax.random.normal(key, (6, 2))}
    coder = recipe.Coder(init, book, CODER.decode)
    made = recipe.autoencoder(coder, recipe.PIXEL_LOSSES["l1"](), vq(6, 2), None, adversary())
    tx, average = optax.adam(1e-2), ema.constant(0.9)
    state = new_state(made, tx, average, jax.random.key(0), {"image": X})
    step = jax.jit(make_step(made, tx, average, seed=0))
    losses = []
    for _ in range(60):
        state, metrics = step(state, {}, {"image": X})
        losses.append(float(metrics["pixel"]))
    assert losses[-1] < losses[0] and bool(state.finite)
    np.testing.assert_allclose(state.carry.share.sum(), 1, rtol=1e-4)
    assert set(state.params) == {"autoencoder", "discriminator"}
