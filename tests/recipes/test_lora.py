"""Low-rank adaptation: what it changes, what it leaves, and what it can reach."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.core.ema import warmup
from diffusion_jax.core.types import Context, Recipe, Report
from diffusion_jax.recipes import lora
from diffusion_jax.train.state import init_state
from diffusion_jax.train.step import make_step

KERNELS = r"kernel$"


def net(params, x):
    """[b, 6, 6, 3] -> [b, 5], a 3x3 convolution and a dense layer."""
    conv, dense = params["net"]["conv"], params["net"]["dense"]
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, conv["kernel"], (1, 1), "SAME", dimension_numbers=numbers)
    return jnp.tanh(x + conv["bias"]).mean((1, 2)) @ dense["kernel"] + dense["bias"]


def weights(key, dtype=jnp.float32):
    rng = np.random.default_rng(key)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    conv = {"kernel": normal(3, 3, 3, 8), "bias": jnp.ones(8, dtype)}
    dense = {"kernel": normal(8, 5), "bias": jnp.ones(5, dtype)}
    return {"net": {"conv": conv, "dense": dense}, "terms": [{}]}


def moved(factors, seed=1):
    """The same with no zero in it."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), factors)


def _loss(params, context, batch, key):
    error = net(params, batch["x"]) - batch["y"]
    return jnp.mean(error**2), Report({"average": jnp.sum(context.ema["net"]["dense"]["bias"])})


WHOLE = Recipe(lambda key, batch: weights(9), _loss)
X = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
BATCH = {"x": X, "y": np.ones((4, 5), np.float32)}


def test_it_starts_by_changing_nothing():
    for dtype in (jnp.float32, jnp.bfloat16):
        params = weights(0, dtype)
        factors = lora.init(jax.random.key(1), params, 2, KERNELS)
        same = lora.merged(params, factors, 0.7, 3.0)
        jax.tree.map(np.testing.assert_array_equal, same, params)
        assert same["net"]["conv"]["kernel"].dtype == dtype
    assert {path: jax.tree.map(jnp.shape, pair) for path, pair in factors.items()} == {
        "net/conv/kernel": {"down": (3, 3, 3, 2), "up": (2, 8)},
        "net/dense/kernel": {"down": (8, 2), "up": (2, 5)},
    }
    assert np.abs(np.asarray(factors["net/dense/kernel"]["down"])).max() > 0


def test_merged_is_the_layers_side_by_side():
    """The adapted layer is the old one plus up(down(x)), down a 3x3 convolution, up a 1x1."""
    params = weights(0)
    pair = moved(lora.init(jax.random.key(1), params, 2, "conv/kernel"))
    scale, alpha = 0.7, 3.0
    made = lora.merged(params, pair, scale, alpha)["net"]["conv"]["kernel"]
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=numbers, precision="highest"
    )
    factors = pair["net/conv/kernel"]
    beside = conv(conv(X, factors["down"]), factors["up"][None, None])
    want = conv(X, params["net"]["conv"]["kernel"]) + scale * alpha / 2 * beside
    np.testing.assert_allclose(conv(X, made), want, rtol=1e-4, atol=1e-4)
    back = lora.unmerged(lora.merged(params, pair, scale, alpha), pair, scale, alpha)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), back, params)


def test_several_adapters_add():
    params = weights(0)
    first = moved(lora.init(jax.random.key(1), params, 2, KERNELS))
    second = moved(lora.init(jax.random.key(2), params, 3, "dense/kernel"), 2)
    alphas = {"net/dense/kernel": 6.0}
    both = lora.merged_all(params, [lora.Adapter(first, 0.5), lora.Adapter(second, -2.0, alphas)])
    turn = lora.merged(lora.merged(params, second, -4.0), first, 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both, turn)


def test_full_rank_reaches_every_weight():
    params, wanted = weights(0), weights(5)
    change = wanted["net"]["dense"]["kernel"] - params["net"]["dense"]["kernel"]
    factors = {"net/dense/kernel": {"down": np.eye(8, dtype=np.float32), "up": change}}
    kernel = wanted["net"]["conv"]["kernel"] - params["net"]["conv"]["kernel"]
    u, s, v = np.linalg.svd(np.asarray(kernel).reshape(27, 8), full_matrices=False)
    down = (u * s).reshape(3, 3, 3, 8).astype(np.float32)
    factors["net/conv/kernel"] = {"down": down, "up": v.astype(np.float32)}
    made = lora.merged(params, factors)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), made, wanted)


def test_only_the_factors_are_trained():
    base = weights(0)
    recipe = lora.adapted(WHOLE, 2, KERNELS, alpha=4.0)
    tx, ema = optax.adam(3e-2), warmup(decay=0.9)
    state = init_state(recipe, tx, ema, jax.random.key(0), BATCH)
    assert list(state.params) == ["lora"]
    step = jax.jit(make_step(recipe, tx, ema, seed=0))
    frozen = {"base": base}
    losses = []
    for _ in range(30):
        state, metrics = step(state, frozen, BATCH)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(float(_loss(base, Context(0, base, {}, ()), BATCH, None)[0]))
    assert losses[-1] < 0.5 * losses[0]
    # What the inner loss saw as its average is the whole network.
    assert float(metrics["average"]) == 5.0

    def of(base, params):
        context = Context(jnp.int32(0), params, {"base": base}, ())
        return recipe.loss(params, context, BATCH, jax.random.key(0))[0]

    to_base, to_lora = jax.grad(of, (0, 1))(base, state.params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(to_base))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(to_lora))


def test_half_precision_weights_do_not_swallow_small_changes():
    base = weights(0)
    base["net"]["dense"] = weights(0, jnp.bfloat16)["net"]["dense"]
    recipe = lora.adapted(WHOLE, 2, "dense/kernel")
    params = recipe.init(jax.random.key(0), BATCH)
    # Their product is 2e-4: below what bfloat16 resolves at 1, far above what float32 does.
    small = jax.tree.map(lambda x: 1e-2 * jnp.ones_like(x), params)

    def of(params):
        context = Context(jnp.int32(0), params, {"base": base}, ())
        return recipe.loss(params, context, BATCH, jax.random.key(0))[0]

    assert of(small) != of(params)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), base)
    want = _loss(lora.merged(exact, small["lora"]), Context(0, exact, {}, ()), BATCH, None)[0]
    np.testing.assert_allclose(of(small), want, rtol=1e-6)


def test_wrong_targets_are_sentences():
    params = weights(0)
    for rank, targets, words in (
        (0, KERNELS, "rank=0"),
        (2, "attention", r"targets=.attention.\) matches no parameter.*net/conv/bias"),
        (2, "bias", "is no kernel"),
    ):
        with pytest.raises(ValueError, match=words):
            lora.init(jax.random.key(0), params, rank, targets)
    pair = {"down": np.zeros((8, 2)), "up": np.zeros((2, 6))}
    with pytest.raises(ValueError, match="'net/other', which the network has not"):
        lora.merged(params, {"net/other": pair})
    with pytest.raises(ValueError, match=r"shape \(8, 6\), the weight \(8, 5\)"):
        lora.merged(params, {"net/dense/kernel": pair})
