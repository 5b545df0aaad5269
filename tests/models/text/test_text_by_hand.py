"""Whole text and image encoders, and the layers of denoisers that read text, in NumPy's float64.

Tiny, with unequal sizes and a large epsilon, so that each setting counts; published sizes and other
implementations are in the parity tests.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit
from tiny_unet import quick

from diffusion_jax.models.layers import Style
from diffusion_jax.models.text.bert import Bert
from diffusion_jax.models.text.blocks import ACTIVATIONS
from diffusion_jax.models.text.clip import READS, ClipText
from diffusion_jax.models.text.t5 import T5Encoder, relative_buckets
from diffusion_jax.models.transformers.mmdit_blocks import JointLayer
from diffusion_jax.models.unet.blocks import Gates
from diffusion_jax.models.unet.transformer_2d import SpatialTransformer
from diffusion_jax.models.vision.clip_image import MEAN, STD, ClipImage, normalised

EPS = 0.1
IDS = np.array([[3, 9, 1, 9, 0], [2, 5, 7, 11, 9]])
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
SMALL = {"vocab": 12, "width": 6, "layers": 2, "heads": 2, "mlp_width": 10}


def made(module, *args, seed=0):
    """(float64 parameters, the module's output with them)."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args)["params"])
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)
    low = jax.tree.map(lambda a: a.astype(np.float32), params)
    return params, quick(lambda p, *a: module.apply({"params": p}, *a))(low, *args)


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), b, rtol=2e-3, atol=2e-4 * np.abs(b).max())


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def norm(x, p, eps=EPS):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def rms(x, p, eps=EPS):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"]


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x * expit(x)


def attention(q, k, v, heads, mask=None, bias=0.0, scale=None):
    """Of [b, n, heads·dim]; mask True where seen, broadcastable to [b, heads, m, n]."""
    q, k, v = (z.reshape(*z.shape[:2], heads, -1) for z in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = np.einsum("bmhd,bnhd->bhmn", q, k) * scale + bias
    if mask is not None:
        logits = np.where(mask, logits, -1e30)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhmn,bnhd->bmhd", weights, v).reshape(*q.shape[:2], -1)


def attend(x, p, heads, mask=None, context=None, **more):
    context = x if context is None else context
    q, k, v = dense(x, p["query"]), dense(context, p["key"]), dense(context, p["value"])
    return dense(attention(q, k, v, heads, mask, **more), p["out"])


def pre_norm(x, p, heads, act, mask=None):
    x = x + attend(norm(x, p["norm_0"]), p["attention"], heads, mask)
    return x + dense(act(dense(norm(x, p["norm_1"]), p["mlp"]["in"])), p["mlp"]["out"])


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


def test_clips_pixels_are_standardised_after_a_bicubic_resize():
    images = np.random.default_rng(5).uniform(-1, 1, (1, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(normalised(images, 4), ((images + 1) / 2 - MEAN) / STD, rtol=1e-4)
    flat = normalised(jnp.full((1, 6, 5, 3), 0.5), 3)
    np.testing.assert_allclose(
        flat, np.broadcast_to((0.75 - np.array(MEAN)) / STD, (1, 3, 3, 3)), rtol=1e-4
    )
    step = jnp.where(jnp.arange(8)[:, None] < 4, -1.0, 1.0) * jnp.ones((1, 8, 8, 1))
    sharp = normalised(jnp.broadcast_to(step[..., :1], (1, 8, 8, 3)), 16) * np.array(
        STD
    ) + np.array(MEAN)
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


def group_norm(x, p, groups):
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, var = (f((1, 3), keepdims=True) for f in (grouped.mean, grouped.var))
    return ((grouped - mean) / np.sqrt(var + EPS)).reshape(x.shape) * p["scale"] + p["bias"]


@pytest.mark.parametrize("gated", [False, True])
def test_a_spatial_transformer(gated):
    rng = np.random.default_rng(6)
    x, context = rng.normal(size=(2, 2, 3, 4)), rng.normal(size=(2, 5, 7))
    seen = MASK.astype(bool)
    identity, skip = np.array([1.0, 0.25]), np.array([0.75, 0.0])
    hooks = (identity.astype(np.float32), skip.astype(np.float32)) if gated else ()
    module = SpatialTransformer(2, 2, Style(groups=2, group_channels=1, eps=EPS))
    p, got = made(module, x.astype(np.float32), context.astype(np.float32), seen, *hooks)
    h = dense(group_norm(x, p["norm"], 2).reshape(2, 6, 4), p["proj_in"])
    for i in range(2):
        own = p[f"layer_{i}"]
        y = norm(h, own["norm_0"], 1e-5)
        a = own["self_attention"]
        heads = attention(*(dense(y, a[n]) for n in ("query", "key", "value")), 2)
        if gated:
            gate = identity[:, None, None]
            heads = (1 - gate) * heads + gate * dense(y, a["value"])
        h = h + dense(heads, a["out"])
        y = norm(h, own["norm_1"], 1e-5)
        h = h + attend(y, own["cross_attention"], 2, seen[:, None, None], context)
        value, gate = np.split(dense(norm(h, own["norm_2"], 1e-5), own["mlp"]["in"]), 2, -1)
        assert value.shape[-1] == 16
        h = h + dense(value * gelu(gate), own["mlp"]["out"])
    out = x + dense(h, p["proj_out"]).reshape(x.shape)
    if gated:
        gate = skip[:, None, None, None]
        out = (1 - gate) * out + gate * x
    close(got, out)
    assert "bias" not in p["layer_0"]["cross_attention"]["key"]


def modulated(x, shift, scale):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale) + shift


@pytest.mark.parametrize(("second", "last"), [(False, False), (True, False), (False, True)])
def test_a_joint_layer(second, last):
    rng = np.random.default_rng(7)
    image, text, emb = (rng.normal(size=s) for s in ((2, 3, 4), (2, 5, 4), (2, 1, 6)))
    mask = np.concatenate([np.ones((2, 3), bool), MASK.astype(bool)], 1)
    identity, skip = np.array([0.0, 0.5]), np.array([0.25, 0.0])
    gates = (
        Gates(*(g.astype(np.float32) for g in (identity, skip))) if second else Gates(None, None)
    )
    arrays = (*(a.astype(np.float32) for a in (image, text, emb)), mask)
    module = JointLayer(2, last=last, second=second, qk_norm="rms")
    p, got = made(module, *arrays, gates)

    def qkv(name, x):
        own = p[name]
        heads = lambda z: z.reshape(2, -1, 2, 2)
        q, k = (rms(heads(dense(x, own[n])), own[f"{n}_norm"], 1e-6) for n in ("query", "key"))
        return q.reshape(x.shape), k.reshape(x.shape), dense(x, own["value"])

    def mlp(name, x, shift, scale, gate):
        own = p[name]
        assert own["in"]["kernel"].shape == (4, 16)
        return x + gate * dense(gelu_tanh(dense(modulated(x, shift, scale), own["in"])), own["out"])

    of_image = np.split(dense(emb, p["image_modulation"]), 9 if second else 6, -1)
    of_text = np.split(dense(emb, p["context_modulation"]), 2 if last else 6, -1)
    a, b = (
        qkv("image_qkv", modulated(image, *of_image[:2])),
        qkv("context_qkv", modulated(text, *of_text[:2])),
    )
    q, k, v = (np.concatenate(pair, 1) for pair in zip(a, b, strict=True))
    both = attention(q, k, v, 2, mask[:, None, None])
    own, other = both[:, :3], both[:, 3:]
    blend = lambda gate, x, y: (1 - gate[:, None, None]) * x + gate[:, None, None] * y
    if second:
        own = blend(identity, own, a[2])
    h = image + of_image[2] * dense(own, p["image_out"])
    if second:
        q, k, v = qkv("second_qkv", modulated(image, *of_image[6:8]))
        again = blend(identity, attention(q, k, v, 2), v)
        h = h + of_image[8] * dense(again, p["second_out"])
    h = mlp("image_mlp", h, *of_image[3:6])
    close(got[0], blend(skip, h, image) if second else h)
    if last:
        np.testing.assert_array_equal(got[1], arrays[1])
        return
    t = mlp("context_mlp", text + of_text[2] * dense(other, p["context_out"]), *of_text[3:])
    close(got[1], blend(skip, t, text) if second else t)
