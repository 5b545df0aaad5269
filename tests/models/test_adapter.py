"""From a module to a pure function: what of the call reaches the module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import MODELS
from diffusion_jax.models.adapter import features_from_module, init_params, net_from_module
from diffusion_jax.models.vision.classifier import Classifier
from diffusion_jax.models.vision.discriminator import FeatureHeads


class Told(nn.Module):
    """Its output says what it was called with; its parameters too."""

    @nn.compact
    def __call__(self, x, time, cond, *, train):
        gain = self.param("gain", lambda key: jnp.float32(2.0))
        told = 100.0 * train + 10 * time[:, None] + cond.get("a", jnp.float32(0))
        noise = jax.random.uniform(self.make_rng("dropout"), x.shape) if train else 0.0
        inner = nn.Dense(3, name="inner")(x)
        return (gain * x + told + noise + 0 * inner[:, :1]).astype(
            jnp.bfloat16 if x.shape[0] == 3 else x.dtype
        )


X, TIME = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([0.25, 0.5])


def test_a_key_means_training():
    params = init_params(Told(), jax.random.key(0), (5, 2), {"a": jnp.float32(1)})
    net = jax.jit(net_from_module(Told()))
    cond = {"a": jnp.float32(7)}
    still = net(params, X, TIME, cond)
    np.testing.assert_allclose(still, 2 * X + 10 * TIME[:, None] + 7)
    key = jax.random.key(3)
    moved = [net(params, X, TIME, cond, key=k) - still - 100 for k in (key, jax.random.key(4))]
    assert (
        all(m.min() > 0 and m.max() < 1 for m in moved) and np.abs(moved[0] - moved[1]).max() > 0.1
    )
    np.testing.assert_array_equal(moved[0], net(params, X, TIME, cond, key=key) - still - 100)
    low = net(params, jnp.ones((3, 2)), jnp.ones(3), {})
    assert low.dtype == jnp.float32


def test_features_are_of_the_same_call():
    params = init_params(Told(), jax.random.key(0), (5, 2))
    (inner,) = features_from_module(Told(), ("inner",))(params, X, TIME, {})
    own = params["inner"]
    np.testing.assert_allclose(inner, X @ own["kernel"] + own["bias"], rtol=1e-5)
    (again,) = features_from_module(Told(), ("inner",))(params, X, TIME, {}, key=jax.random.key(1))
    np.testing.assert_array_equal(inner, again)


def shapes(module, *args):
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), *args)["params"])
    return jax.tree.map(lambda leaf: leaf.shape, made)


def test_the_classifier_halves_at_each_width_but_the_last():
    made = shapes(Classifier(7), jnp.zeros((1, 28, 20, 1)))
    assert made["hidden"]["kernel"] == (7 * 5 * 64, 128) and made["logits"]["kernel"] == (128, 7)
    assert [made[f"conv_{i}"]["kernel"][-1] for i in range(3)] == [32, 64, 64]
    module = Classifier(3, widths=(2,), hidden=4, dropout=0.5)
    params = module.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    call = lambda train, seed: module.apply(
        params, jnp.ones((1, 2, 2, 1)), train=train, rngs={"dropout": jax.random.key(seed)}
    )
    same = lambda *pairs: all(np.array_equal(call(*a), call(*b)) for a, b in pairs)
    assert same(((False, 0), (False, 1)))
    assert not all(same(((True, 0), (True, seed))) for seed in range(1, 6))


def test_heads_have_no_affine_map_of_what_they_normalise():
    made = shapes(FeatureHeads(width=5), [jnp.zeros((2, 3, 4)), jnp.zeros((2, 6))])
    assert not [name for name in made if name.startswith("norm")]


def test_the_perceptron_has_64_features_of_time_and_two_numbers_of_each_channel():
    module = MODELS["mlp"](width=6, depth=2, out_channels=3, num_classes=4)
    made = shapes(module, jnp.zeros((2, 5)), jnp.zeros(2), {})
    assert made["embed"]["time_0"]["kernel"] == (64, 6)
    assert made["film_1"]["kernel"] == (6, 12) and made["dense_in"]["kernel"] == (5, 6)
    assert made["dense_out"]["kernel"] == (6, 3) and "film_2" not in made
    assert made["embed"]["label"]["embedding"] == (5, 6)
    assert not [name for name in made if name.startswith("norm")]


SMALL = {
    "unet": ({"channels": 8, "channel_mults": (1,), "num_res_blocks": 1}, (4, 4, 3), {}),
    "text_unet": (
        {"channels": 8, "channel_mults": (1,), "num_res_blocks": 1, "depths": 1, "heads": 2},
        (4, 4, 4), {"context": jnp.zeros((2, 3, 5))},
    ),
    "dit": ({"width": 8, "depth": 1, "heads": 2}, (4, 4, 3), {}),
    "mmdit": (
        {"width": 8, "depth": 1, "heads": 2, "pooled_features": 0}, (4, 4, 3),
        {"context": jnp.zeros((2, 3, 5))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_network_in_half_precision_has_an_output_in_single(name):
    fields, shape, cond = SMALL[name]
    module = MODELS[name](**fields, dtype=jnp.bfloat16)
    out, _ = jax.eval_shape(
        lambda: module.init_with_output(
            jax.random.key(0), jnp.zeros((2, *shape)), jnp.zeros(2), cond
        )
    )
    assert out.dtype == jnp.float32


def test_blocks_of_a_unet_read_what_comes_before_beside_its_skip():
    module = MODELS["unet"](channels=8, channel_mults=(1, 2), num_res_blocks=1, out_channels=2)
    made = shapes(module, jnp.zeros((1, 4, 4, 3)), jnp.zeros(1), {})
    reads = lambda block: block["res"]["norm_0"]["scale"][0]
    assert [reads(made[f"down_{i}"]["block_0"]) for i in (0, 1)] == [8, 8]
    assert [reads(made["up_0"][f"block_{j}"]) for j in (0, 1)] == [16 + 16, 16 + 8]
    assert [reads(made["up_1"][f"block_{j}"]) for j in (0, 1)] == [16 + 8, 8 + 8]
    assert made["up_0"]["block_0"]["res"]["shortcut"]["kernel"] == (32, 16)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_starts_at_zero(name):
    fields, shape, cond = SMALL[name]
    module, inits = MODELS[name](**fields), {}

    def note(rest, args, kwargs, context):
        inits[context.module.name] = getattr(context.module, "kernel_init", None)
        return rest(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes(module, jnp.zeros((2, *shape)), jnp.zeros(2), cond)
    first, last = ("conv_in", "conv_out") if "unet" in name else ("time_0", "proj_out")
    starts = [np.asarray(inits[layer](jax.random.key(0), (2, 2))) for layer in (first, last)]
    assert starts[0].any() and not starts[1].any()
