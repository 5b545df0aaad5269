"""The judge of captions: its loss in closed form, what retrieval counts, what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluate.contrast import (
    adherence,
    contrast,
    diversity,
    ranks,
    retrieval,
    train_caption_judge,
)
from diffusion_jax.models.vision.towers import Towers


def test_the_loss_of_vectors_at_right_angles_is_its_closed_form():
    n, scale = 5, np.log(3.0)
    same = jnp.eye(n)
    wanted = np.log(np.exp(3.0) + n - 1) - 3.0
    np.testing.assert_allclose(contrast(same, same, scale), wanted, rtol=1e-6)
    turned = jnp.roll(same, 1, 0)  # each image next to another's caption
    np.testing.assert_allclose(contrast(same, turned, scale), wanted + 3.0, rtol=1e-6)
    assert contrast(same, same, jnp.float32(9.0)) == contrast(same, same, jnp.float32(20.0))


@pytest.mark.parametrize(("scale", "used"), [(np.log(7.0), 7.0), (np.log(150.0), 100.0)])
def test_the_loss_is_the_mean_of_both_directions(scale, used):
    draw = np.random.default_rng(3)
    image, text = draw.normal(size=(2, 5, 4))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    logits = used * image @ text.T
    of_texts = np.log(np.exp(logits).sum(1)) - np.diag(logits)  # an image among all captions
    of_images = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    assert abs(of_texts.mean() - of_images.mean()) > 0.05
    wanted = (of_texts.mean() + of_images.mean()) / 2
    got = contrast(jnp.asarray(image), jnp.asarray(text), jnp.float32(scale))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_training_is_adamw_with_a_warm_up_from_zero_and_half_a_cosine():
    """Rates of three epochs of one step: 0, the peak and half of it.

    So small that the gradient's signs, which are what Adam's steps are, stay the same.
    """
    draw = np.random.default_rng(0)
    start, image, text = (
        draw.normal(size=(3, 2)),
        draw.normal(size=(1, 6, 3)),
        draw.normal(size=(6, 2)),
    )

    def embed(params, image, text, key):
        unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return unit(image @ params), unit(text), jnp.log(3.0)

    start, image, text = (jnp.asarray(x, jnp.float32) for x in (start, image, text))
    judge = train_caption_judge(
        lambda key: start, embed, np.asarray(image), np.asarray(text), epochs=3, learning_rate=1e-3
    )
    loss = lambda params: contrast(*embed(params, image[0], text, None))
    slope = jax.jit(jax.grad(loss))(start)
    np.testing.assert_allclose(
        judge.params, start - 1.5e-3 * (jnp.sign(slope) + 0.01 * start), rtol=0, atol=3e-6
    )


def test_ranks_count_nearer_captions_and_half_of_equal_ones():
    similarity = np.array([[0.9, 0.1, 0.1], [0.5, 0.2, 0.1], [0.3, 0.3, 0.3]])
    assert ranks(similarity).tolist() == [0, 1, 1]
    found = retrieval(similarity, "here")
    np.testing.assert_allclose(found["caption found first of 3, here"].value, 1 / 3)
    with pytest.raises(FloatingPointError, match="NaN"):
        ranks(np.full((2, 2), np.nan))
    # One, two and three ties count as one, one and two of those that are nearer.
    tied = np.array([[2, 2, 1, 9], [2, 2, 2, 1], [5, 5, 5, 5], [0, 8, 8, 7]])
    assert ranks(tied).tolist() == [2, 1, 2, 2]
    np.testing.assert_allclose(adherence(np.eye(4)).value, 1.0)
    uneven = adherence(np.array([[0.9, 0.1, 0.3], [0.2, 0.4, 0.0], [0.5, 0.5, 0.3]]))
    each = np.array([0.7, 0.3, -0.2])
    np.testing.assert_allclose(uneven, (each.mean(), each.std(ddof=1) / np.sqrt(3), 3))
    assert adherence(np.ones((4, 4))).value == 0


def test_first_and_among_five_are_shares_of_ranks():
    """Row i of 8: i captions are nearer than its own, which is among five up to i = 4."""
    similarity = np.where(np.arange(8)[:, None] > np.arange(8), 0.9, 0.1)
    np.fill_diagonal(similarity, 0.5)
    found = {name: figure.value for name, figure in retrieval(similarity, "x").items()}
    assert found == {"caption found first of 8, x": 1 / 8, "caption among first 5 of 8, x": 5 / 8}


def test_diversity_is_the_mean_distance_of_pairs():
    features = np.array([[[0.0], [1.0], [3.0]]])
    np.testing.assert_allclose(diversity(features).value, (1 + 2 + 3) / 3)
    two = np.stack([features[0], 5 * features[0]])  # of each caption, 2 and 10
    np.testing.assert_allclose(diversity(two), (6, np.sqrt(32) / np.sqrt(2), 2))


@pytest.fixture(scope="module")
def judged():
    """Captions are a linear map of the images, with noise; the last 40 pairs are held out."""
    draw = np.random.default_rng(0)
    meaning = draw.normal(size=(240, 6)).astype(np.float32)
    image = meaning @ draw.normal(size=(6, 24)) + 0.1 * draw.normal(size=(3, 240, 24))
    text = (meaning @ draw.normal(size=(6, 12))).astype(np.float32)
    module = Towers(hidden=32, width=8, dropout=0.0)
    image = image.astype(np.float32)

    def init(key):
        return module.init(key, image[0, :2], text[:2])["params"]

    def embed(params, image, text, key):
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, image, text, train=key is not None, rngs=rngs)

    judge = train_caption_judge(init, embed, image[:, :200], text[:200], 60, 50, 3e-3)
    return judge, image[0, 200:], text[200:]


def test_it_finds_captions_that_it_was_not_trained_on(judged):
    judge, image, text = judged
    similarity = judge.similarity(image, text)
    assert similarity.shape == (40, 40) and np.abs(similarity).max() <= 1 + 1e-5
    assert (ranks(similarity) < 1).mean() > 0.5  # chance is 1/40
    assert (ranks(similarity[:, ::-1]) < 1).mean() < 0.2
    fewer = judge.similarity(image[:7], text)  # as many of one as one likes
    np.testing.assert_allclose(fewer, similarity[:7], atol=1e-5)


def test_dropout_acts_while_training_alone():
    module = Towers(hidden=8, width=4, dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (3, 10))
    variables = module.init(jax.random.key(1), x, x)
    call = lambda seed: module.apply(variables, x, x, train=True, rngs={"dropout": seed})[0]
    assert not np.allclose(call(jax.random.key(0)), call(jax.random.key(1)))
    np.testing.assert_allclose(jnp.linalg.norm(module.apply(variables, x, x)[0], axis=1), 1, 1e-4)


def test_features_that_are_all_equal_have_a_gradient():
    module = Towers(hidden=8, width=4, dropout=0.0)
    x = jnp.ones((3, 10))
    params = module.init(jax.random.key(0), x, x)["params"]
    grads = jax.grad(lambda p: contrast(*module.apply({"params": p}, x, x)))(params)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
