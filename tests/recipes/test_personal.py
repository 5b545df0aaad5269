"""DreamBooth and textual inversion on tiny nets: the loss falls, what should stay stays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.core.ema import warmup
from diffusion_jax.core.types import Context, Recipe, Report
from diffusion_jax.recipes import lora
from diffusion_jax.recipes.dreambooth import dreambooth
from diffusion_jax.recipes.textual_inversion import extended, textual_inversion, with_vectors
from diffusion_jax.train.state import init_state
from diffusion_jax.train.step import make_step

RNG = np.random.default_rng(0)
BASE = {"net": {"out": {"kernel": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}}}
TABLE = RNG.normal(size=(6, 4)).astype(np.float32)
ROWS = {"image": np.ones((2, 3), np.float32), "ids": np.array([[1, 6], [6, 2]])}


def _loss(params, context, batch, key):
    state = context.frozen["text"][0]["token"]["embedding"][batch["ids"]].mean(1)
    error = jnp.tanh(state) @ params["net"]["out"]["kernel"] - batch["image"]
    return jnp.mean(error**2), Report({}, context.carry + 1)


WHOLE = Recipe(lambda key, batch: BASE, _loss, lambda: jnp.zeros(()))
TEXT = (extended({"token": {"embedding": TABLE}}, row=3, count=1),)
FROZEN = {"base": BASE, "text": TEXT}


def trained(recipe, batch, steps=40):
    tx, ema = optax.adam(3e-2), warmup(decay=0.9)
    state = first = init_state(recipe, tx, ema, jax.random.key(0), batch)
    step = jax.jit(make_step(recipe, tx, ema, seed=0))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, FROZEN, batch)
        losses.append(float(metrics["loss"]))
    return first.params, state, losses, metrics


def test_textual_inversion_moves_the_new_word_alone():
    assert TEXT[0]["token"]["embedding"].shape == (7, 4)
    recipe = textual_inversion(WHOLE, [TABLE[3:4]])
    before, state, losses, _ = trained(recipe, ROWS)
    np.testing.assert_array_equal(before["vectors"][0], TABLE[3:4])
    plain = _loss(BASE, Context(0, {}, FROZEN, 0), ROWS, None)[0]
    assert losses[0] == pytest.approx(float(plain)) and losses[-1] < 0.7 * losses[0]
    assert np.all(np.abs(np.asarray(state.params["vectors"][0]) - TABLE[3]) > 1e-3)
    made = with_vectors(FROZEN, state.params["vectors"])["text"][0]["token"]["embedding"]
    np.testing.assert_array_equal(made[:6], TABLE)
    np.testing.assert_array_equal(made[6:], state.params["vectors"][0])
    # No gradient to anything frozen, nor to a word that no text has.
    of = lambda frozen, params, batch: recipe.loss(
        params, Context(0, params, frozen, jnp.zeros(())), batch, None
    )[0]
    to_frozen, to_word = jax.grad(of, (0, 1))(FROZEN, state.params, ROWS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(to_frozen))
    assert np.any(to_word["vectors"][0])
    elsewhere = jax.grad(of, 1)(FROZEN, state.params, {**ROWS, "ids": np.array([[1, 2], [3, 4]])})
    assert not np.any(elsewhere["vectors"][0])


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_dreambooth_weights_both_losses(kind):
    prior = {"prior_image": -np.ones((3, 3), np.float32), "prior_ids": np.array([[1, 2]] * 3)}
    batch = {**ROWS, **prior}
    inner = WHOLE if kind == "whole" else lora.adapted(WHOLE, 2, "kernel$")
    before, state, losses, metrics = trained(dreambooth(inner, 0.25), batch)
    total = float(metrics["instance_loss"] + 0.25 * metrics["prior_loss"])
    assert losses[-1] == pytest.approx(total, rel=1e-6) and losses[-1] < 0.8 * losses[0]
    assert float(state.carry) == 2 * 40  # both losses pass the carry on
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, state.params)
    assert all(jax.tree.leaves(moved)) and list(moved) == (["net"] if kind == "whole" else ["lora"])
    kinds = {**{n: x for n, x in batch.items() if n in ROWS}}
    swapped = {n.removeprefix("prior_"): x for n, x in prior.items()}
    alone = _loss(BASE, Context(0, {}, FROZEN, 0), kinds, None)[0]
    other = _loss(BASE, Context(0, {}, FROZEN, 0), swapped, None)[0]
    assert losses[0] == pytest.approx(float(alone + 0.25 * other), rel=1e-6)


def test_dreambooth_needs_both_and_a_weight():
    with pytest.raises(ValueError, match=r"prior\.weight = -1"):
        dreambooth(WHOLE, -1)
    context = Context(0, {}, FROZEN, 0)
    with pytest.raises(ValueError, match="the same arrays of both"):
        dreambooth(WHOLE).loss(BASE, context, ROWS, jax.random.key(0))
