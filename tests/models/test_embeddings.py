"""The vector that conditions every block, by hand: what is added before and after which layer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.embeddings import ConditionEmbedding, sinusoidal

FEATURES = partial(sinusoidal, max_period=100.0)


def made(module, time, cond):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), time, cond)["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)
    return params, jax.jit(module.apply)({"params": params}, time, cond)


def dense(x, layer):
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def silu(x):
    return x / (1 + np.exp(-x))


def by_hand(params, time, cond, scalars=(), guidance=0, classes=0):
    h = FEATURES(time, 4)
    if guidance:
        w = 1000 * (cond["guidance_scale"] - 1)
        told = sinusoidal(w, guidance, cos_first=False, shift=1.0)
        h = h + dense(told, params["guidance"])
    h = dense(silu(dense(h, params["time_0"])), params["time_1"])
    for name in scalars:
        own = params[name]
        h = h + dense(silu(dense(sinusoidal(cond[name], 4), own["dense_0"])), own["dense_1"])
    if classes:
        label = np.minimum(cond.get("label", np.full(len(time), classes)), classes)
        h = h + params["label"]["embedding"][label]
    return h


TIME = jnp.array([0.3, 2.0])
COND = {
    "label": jnp.array([1, 9]),
    "end": jnp.array([0.5, 7.0]),
    "guidance_scale": jnp.array([1.0, 1.004]),
}


@pytest.mark.parametrize(
    ("keys", "fields", "settings"),
    [
        ((), {}, {}),
        (("label",), {"num_classes": 3}, {"classes": 3}),
        ((), {"num_classes": 3}, {"classes": 3}),
        (("end", "guidance_scale"), {"scalars": ("end", "guidance_scale")},
         {"scalars": ("end", "guidance_scale")}),
        (("guidance_scale", "end", "label"),
         {"scalars": ("end",), "guidance_features": 6, "num_classes": 5},
         {"scalars": ("end",), "guidance": 6, "classes": 5}),
    ],
)  # fmt: skip
def test_it_is_its_sum(keys, fields, settings):
    cond = {key: COND[key] for key in keys}
    params, out = made(ConditionEmbedding(5, 4, FEATURES, **fields), TIME, cond)
    assert out.shape == (2, 5) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, by_hand(params, TIME, cond, **settings), rtol=2e-4, atol=2e-4)
    assert "bias" not in params.get("guidance", {})
    if "num_classes" in fields:
        assert params["label"]["embedding"].shape == (fields["num_classes"] + 1, 5)


def test_a_vector_of_each_token_has_the_examples_own_label_and_numbers():
    time = jnp.array([[0.3, 1.0, 2.0], [4.0, 0.0, 0.1]])
    module = ConditionEmbedding(5, 4, FEATURES, num_classes=10, scalars=("end",))
    cond = {key: COND[key] for key in ("label", "end")}
    params, out = made(module, time, cond)
    each = [
        by_hand(params, time[:, i], cond, ("end",), classes=10)
        for i in range(3)
    ]  # fmt: skip
    np.testing.assert_allclose(out, np.stack(each, 1), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("fields", "keys", "words"),
    [
        ({}, ("label",), r"cond has \['label'\].*knows no key"),
        ({"num_classes": 2}, ("end",), r"cond has \['end'\].*knows \['label'\]"),
        ({"scalars": ("end",)}, (), "cond lacks 'end'"),
        ({"guidance_features": 6}, ("end", "guidance_scale"), r"cond has \['end'\]"),
    ],
)
def test_what_it_does_not_know_or_lacks_is_named(fields, keys, words):
    module = ConditionEmbedding(5, 4, FEATURES, **fields)
    cond = {key: COND[key] for key in keys}
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: module.init(jax.random.key(0), TIME, cond))


def test_labels_are_integers():
    module = ConditionEmbedding(5, 4, FEATURES, num_classes=2)
    with pytest.raises(ValueError, match="label has dtype float32: pass integers, 0 to 2"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), TIME, {"label": jnp.zeros(2)}))
