"""Whole text and image encoders in NumPy's float64.

Tiny, with unequal sizes and a large epsilon, so that each setting counts; published sizes and other
implementations are in the parity tests.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import EPS, attend, close, dense, gelu, gelu_tanh, made, norm, pre_norm, rms, silu
from scipy.special import expit

from diffusion_jax.models.text.bert import Bert
from diffusion_jax.models.text.blocks import ACTIVATIONS
from diffusion_jax.models.text.clip import READS, ClipText
from diffusion_jax.models.text.t5 import T5Encoder, relative_buckets
from diffusion_jax.models.vision.clip_image import MEAN, STD, ClipImage, normalised

IDS = np.array([[3, 9, 1, 9, 0], [2, 5, 7, 11, 9]])
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
SMALL = {"vocab": 12, "width": 6, "layers": 2, "heads": 2, "mlp_width": 10}


def test_clips_text():
    module = ClipText(**SMALL, positions=7, eps=EPS, projection=4, eos=9)
    p, got = made(module, IDS)
    x = p["token"]["embedding"][IDS] + p["position"]["embedding"][:5]
    hidden = [x]
    for i in range(2):
        act = lambda x: x * expit(1.702 * x)
        hidden.append(pre_norm(hidden[-1], p[f"layer_{i}"], 2, act, np.tri(5, dtype=bool)))
    normed = [norm(x, p["norm"]) for x in hidden]
    for ours, theirs in zip((*got.hidden, *got.normed), (*hidden, *normed), strict=True):
        close(ours, theirs)
    close(got.pooled, dense(normed[-1][[0, 1], [1, 4]], p["projection"]))
    assert "bias" not in p["projection"]
    close(READS["last"](got), normed[2])
    close(READS["last"](got, 1), normed[1])
    close(READS["penultimate"](got), hidden[1])
    close(READS["penultimate"](got, skip=1), hidden[0])
    close(READS["penultimate_normed"](got), normed[1])
    largest = ClipText(**SMALL, positions=7, eps=EPS)  # no projection; the largest id ends the text
    _, other = made(largest, IDS)
    np.testing.assert_array_equal(other.pooled, other.normed[-1][[0, 1], [1, 3]])


def test_bert():
    module = Bert(**SMALL, positions=7, eps=EPS)
    p, got = made(module, IDS, MASK)
    tables = {name: p[name]["embedding"] for name in ("token", "position", "segment")}
    assert tables["segment"].shape == (2, 6)
    x = norm(tables["token"][IDS] + tables["position"][:5] + tables["segment"][0], p["norm"])
    for i in range(2):
        own = p[f"layer_{i}"]
        seen = MASK[:, None, None].astype(bool)
        x = norm(x + attend(x, own["attention"], 2, seen), own["norm_0"])
        x = norm(x + dense(gelu(dense(x, own["mlp"]["in"])), own["mlp"]["out"]), own["norm_1"])
    close(got[0], x)
    close(got[1], np.tanh(dense(x[:, 0], p["pooler"])))
    bare, none = made(Bert(**SMALL, positions=7, pooler=False), IDS)
    assert "pooler" not in bare and none[1] is None


@pytest.mark.parametrize(
    ("mlp", "act"), [("gated-gelu", gelu_tanh), ("relu", None), ("gated-silu", silu)]
)
def test_t5(mlp, act):
    module = T5Encoder(**SMALL, head_dim=4, mlp=mlp, buckets=4, max_distance=3, eps=EPS)
    p, got = made(module, IDS, MASK)
    x = p["token"]["embedding"][IDS]
    bias = p["relative"]["embedding"][relative_buckets(5, 4, 3)].transpose(2, 0, 1)
    for i in range(2):
        own = p[f"layer_{i}"]
        seen = MASK[:, None, None].astype(bool)
        h = rms(x, own["norm_0"])
        x = x + attend(h, own["attention"], 2, seen, bias=bias, scale=1.0)
        h, m = rms(x, own["norm_1"]), own["mlp"]
        if act is None:
            h = np.maximum(dense(h, m["in"]), 0)
        else:
            h = act(dense(h, m["gate"])) * dense(h, m["up"])
        x = x + dense(h, m["out"])
    close(got, rms(x, p["norm"]))
    assert not [path for path, _ in jax.tree_util.tree_leaves_with_path(p) if "bias" in str(path)]


def test_clips_images():
    fields = {name: SMALL[name] for name in ("width", "layers", "heads", "mlp_width")}
    module = ClipImage(**fields, size=4, patch=2, eps=EPS, projection=3)
    pixels = np.random.default_rng(4).normal(size=(2, 4, 4, 3)).astype(np.float32)
    p, got = made(module, pixels)
    patches = pixels.reshape(2, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, -1)
    x = patches @ p["patch_conv"]["kernel"].reshape(-1, 6)
    x = np.concatenate([np.tile(p["class_token"], (2, 1, 1)), x], 1) + p["position"]["embedding"]
    hidden = [norm(x, p["norm_in"])]
    act = lambda x: x * expit(1.702 * x)
    for i in range(2):
        hidden.append(pre_norm(hidden[-1], p[f"layer_{i}"], 2, act))
    for ours, theirs in zip(got.hidden, hidden, strict=True):
        close(ours, theirs)
    close(got.last, hidden[-1])
    close(got.pooled, dense(norm(hidden[-1][:, 0], p["norm"]), p["projection"]))
    own, other = made(ClipImage(**fields, size=4, patch=2, eps=EPS, projection=0), pixels)
    close(other.pooled, norm(np.asarray(other.last[:, 0], np.float64), own["norm"]))


def test_the_colours_that_clip_was_trained_on():
    """Radford et al. 2021, the authors' code."""
    assert MEAN == (0.48145466, 0.4578275, 0.40821073)
    assert STD == (0.26862954, 0.26130258, 0.27577711)


def test_clips_pixels_are_standardised_after_a_bicubic_resize():
    scaled = jax.jit(normalised, static_argnums=1)
    images = np.random.default_rng(5).uniform(-1, 1, (1, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(scaled(images, 4), ((images + 1) / 2 - MEAN) / STD, rtol=1e-4)
    flat = scaled(jnp.full((1, 6, 5, 3), 0.5), 3)
    np.testing.assert_allclose(
        flat, np.broadcast_to((0.75 - np.array(MEAN)) / STD, (1, 3, 3, 3)), rtol=1e-4
    )
    step = jnp.where(jnp.arange(8)[:, None] < 4, -1.0, 1.0) * jnp.ones((1, 8, 8, 1))
    sharp = scaled(jnp.broadcast_to(step[..., :1], (1, 8, 8, 3)), 16) * np.array(STD) + np.array(
        MEAN
    )
    assert sharp.min() > -1e-5 and sharp.max() < 1 + 1e-5  # what overshoots is cut


def test_activations_are_their_formulas():
    x = np.linspace(-3, 3, 13)
    wanted = {
        "quick_gelu": x * expit(1.702 * x), "gelu": gelu(x), "gelu_tanh": gelu_tanh(x),
        "silu": silu(x), "relu": np.maximum(x, 0),
    }  # fmt: skip
    assert wanted.keys() == ACTIVATIONS.keys()
    for name, act in ACTIVATIONS.items():
        np.testing.assert_allclose(act(jnp.asarray(x, jnp.float32)), wanted[name], atol=1e-5)


def test_the_standard_sizes_are_the_published_ones():
    """CLIP ViT-L/14, MiniLM-L6, T5 v1.1 XXL."""

    def defaults(cls):
        fields = inspect.signature(cls).parameters
        return {n: f.default for n, f in fields.items() if n not in ("parent", "name", "dtype")}

    assert defaults(ClipText) == {
        "vocab": 49408, "width": 768, "layers": 12, "heads": 12, "mlp_width": 3072,
        "positions": 77, "activation": "quick_gelu", "eps": 1e-5, "projection": 0, "eos": None,
    }  # fmt: skip
    assert defaults(Bert) == {
        "vocab": 30522, "width": 384, "layers": 6, "heads": 12, "mlp_width": 1536,
        "positions": 512, "segments": 2, "activation": "gelu", "eps": 1e-12, "pooler": True,
    }  # fmt: skip
    assert defaults(T5Encoder) == {
        "vocab": 32128, "width": 4096, "layers": 24, "heads": 64, "head_dim": 64,
        "mlp_width": 10240, "mlp": "gated-gelu", "buckets": 32, "max_distance": 128, "eps": 1e-6,
    }  # fmt: skip
    assert defaults(ClipImage) == {
        "width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096, "size": 224, "patch": 14,
        "activation": "quick_gelu", "eps": 1e-5, "projection": 768,
    }  # fmt: skip
