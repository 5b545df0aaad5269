"""Properties of the text encoders and of CLIP's image tower, tiny, without another library."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_unet import quick

from diffusion_jax.convert.names import by_path
from diffusion_jax.models.partition import PARTITIONS
from diffusion_jax.models.text.bert import Bert, mean_pool, sentence_vector
from diffusion_jax.models.text.blocks import Embedding, attend
from diffusion_jax.models.text.clip import ClipText, end_of_text
from diffusion_jax.models.text.t5 import T5Encoder, relative_buckets
from diffusion_jax.models.vision.clip_image import ClipImage

SIZES = {"width": 32, "layers": 2, "heads": 4, "mlp_width": 48}
TEXT = {**SIZES, "vocab": 50, "positions": 16}
T5 = {**SIZES, "vocab": 50, "head_dim": 6, "buckets": 8, "max_distance": 12}
MODULES = {
    "clip_text": ClipText(**TEXT, projection=20),
    "t5": T5Encoder(**T5),
    "bert": Bert(**TEXT),
    "clip_image": ClipImage(**SIZES, size=12, patch=4, projection=20),
}
IDS = np.random.default_rng(0).integers(1, 50, (2, 9)).astype(np.int32)
IMAGES = np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype(np.float32)


def _inputs(name):
    return IMAGES if name == "clip_image" else IDS


def _params(name):
    """Random parameters in place of the initial ones, where every norm is the identity."""
    shapes = jax.eval_shape(MODULES[name].init, jax.random.key(0), _inputs(name))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(2)
    return jax.tree.unflatten(
        tree, [rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    )


def _arrays(out):
    """The arrays of a network's output that hold all of its layers."""
    return [x for x in (getattr(out, "last", out), getattr(out, "pooled", None)) if x is not None]


@pytest.fixture(scope="module", params=MODULES)
def probed(request):
    """Of each network, by one program: outputs in both precisions, slopes both ways, and vmap."""
    name = request.param
    module, x = MODULES[name].clone(layers=1), _inputs(name)
    params = {part: p for part, p in _params(name).items() if part != "layer_1"}
    direction = jax.tree.map(
        lambda p: np.sin(np.arange(p.size, dtype="f")).reshape(p.shape), params
    )
    low = module.clone(dtype=jnp.bfloat16)

    def mean_square(params, x):
        return sum(jnp.square(y).mean() for y in _arrays(module.apply({"params": params}, x)))

    def program(params, direction, x):
        value, slope = jax.jvp(lambda p: mean_square(p, x), (params,), (direction,))
        gradient = jax.grad(mean_square)(params, x)
        dots = jax.tree.map(jnp.vdot, gradient, direction)
        return {
            "exact": _arrays(module.apply({"params": params}, x)),
            "low": _arrays(low.apply({"params": params}, x)),
            "value": value,
            "slope": slope,
            "slope backwards": sum(jax.tree.leaves(dots)),
            "value of each": jax.vmap(mean_square, (None, 0))(params, x[:, None]),
        }

    return quick(program)(params, direction, x)


def test_bfloat16_is_near_float32(probed):
    for exact, low in zip(probed["exact"], probed["low"], strict=True):
        assert exact.dtype == jnp.float32 and low.dtype == jnp.bfloat16
        error = np.linalg.norm(exact - low.astype(np.float32)) / np.linalg.norm(exact)
        assert 1e-4 < error < 0.05


@pytest.mark.parametrize("name", MODULES)
def test_parameters_are_float32(name):
    low = MODULES[name].clone(dtype=jnp.bfloat16)
    initial = jax.eval_shape(low.init, jax.random.key(0), _inputs(name))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}


def test_forward_and_reverse_slopes_and_vmap(probed):
    assert abs(probed["slope"]) > 1e-4
    np.testing.assert_allclose(probed["slope"], probed["slope backwards"], rtol=1e-3)
    np.testing.assert_allclose(probed["value of each"].mean(), probed["value"], rtol=1e-5)


def test_clip_text_looks_back_only():
    params = _params("clip_text")
    apply = quick(lambda ids: MODULES["clip_text"].apply({"params": params}, ids))
    other = IDS.copy()
    other[:, 5] = (IDS[:, 5] + 7) % 50
    states = apply(IDS)
    a, b = states.last, apply(other).last
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert (np.abs(a - b)[:, 5:].max(-1) > 1e-3).all()
    assert len(states.hidden) == len(states.normed) == 3


def test_end_of_text():
    ids = jnp.array([[9, 3, 7, 7, 0], [9, 12, 7, 4, 7], [1, 1, 1, 1, 1]])
    assert end_of_text(ids, 7).tolist() == [2, 2, 0]
    assert end_of_text(ids, None).tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_padding_changes_nothing(name):
    """Neither its length nor its ids reach the states of the text."""
    module, params = MODULES[name], _params(name)
    mask = np.array([[1] * 9, [1] * 6 + [0] * 3], np.int32)
    apply = quick(lambda ids, mask: _arrays(module.apply({"params": params}, ids, mask))[0])
    other = IDS.copy()
    other[1, 6:] = 3
    shorter = apply(IDS[1:, :6], None)
    for ids in (IDS, other):
        np.testing.assert_allclose(apply(ids, mask)[1, :6], shorter[0], atol=2e-5)
    # And a mask of ones is none, while a token that is seen does matter.
    whole = apply(IDS, np.ones_like(mask))
    np.testing.assert_allclose(whole[0], apply(IDS, mask)[0], atol=2e-5)
    assert np.abs(whole[1, :6] - shorter[0]).max() > 1e-2


def test_pooling():
    states = jnp.array([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 5.0]] * 3])
    mask = jnp.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(mean_pool(states, mask), [[2.0, 4.0], [0.0, 0.0]])
    vector = sentence_vector(states, mask)
    np.testing.assert_allclose(vector, [[5**-0.5, 2 * 5**-0.5], [0.0, 0.0]], rtol=1e-6)


def test_attend_is_a_masked_mean():
    """Equal logits: the mean of what the mask lets through; a bias of log 3 counts a key thrice."""
    v = jnp.arange(4.0).reshape(1, 4, 1, 1)
    zero = jnp.zeros((1, 4, 1, 1))
    mask = jnp.array([True, True, False, True])
    assert jnp.allclose(attend(zero, zero, v, mask), 4 / 3)
    bias = jnp.array([0.0, jnp.log(3.0), 0.0, 0.0])
    assert jnp.allclose(attend(zero, zero, v, mask, bias), 6 / 5)
    assert jnp.allclose(attend(zero, zero, v, jnp.zeros(4, bool)), 1.5)


def test_relative_buckets_by_hand():
    """Of 8 buckets 4 are for each side: distances 0, 1, then 2 to 4, then beyond."""
    buckets = relative_buckets(14, 8, 12)
    assert buckets[0, :6].tolist() == [0, 5, 6, 6, 6, 7]
    assert buckets[13, ::-1].tolist() == [0, 1, 2, 2, 2] + [3] * 9
    assert buckets.dtype == np.int32


def test_faults_are_said_or_seen():
    long = np.ones((1, 17), np.int32)
    for name in ("clip_text", "bert"):
        with pytest.raises(ValueError, match=r"17 tokens.*16 positions"):
            MODULES[name].apply({"params": _params(name)}, long)
    with pytest.raises(ValueError, match=r"12 x 16, but the encoder takes 12 x 12"):
        MODULES["clip_image"].apply({"params": _params("clip_image")}, np.ones((1, 12, 16, 3)))
    table = {"params": {"embedding": np.ones((50, 3), np.float32)}}
    out = Embedding(50, 3).apply(table, np.array([0, 49, 50]))
    np.testing.assert_array_equal(out, np.array([[1.0], [1.0], [np.nan]]) * np.ones(3))


@pytest.mark.parametrize("name", MODULES)
def test_split_rules_reach_each_layer(name):
    """q, k, v and the MLP's inner layer by outputs; the layers that follow them by inputs."""
    expected = {"query": 1, "key": 1, "value": 1, "in": 1, "gate": 1, "up": 1, "out": 0}
    count = 0
    for path, leaf in by_path(_params(name)).items():
        rules = [axes for pattern, axes in PARTITIONS[name] if re.search(pattern, path)]
        if not re.match(r"layer_\d+/(attention|mlp)/\w+/kernel$", path):
            assert not rules
            continue
        (axes,) = rules
        assert len(axes) == leaf.ndim and axes.index("tensor") == expected[path.split("/")[-2]]
        count += 1
    assert count == 2 * (7 if name == "t5" else 6)
