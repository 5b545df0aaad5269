"""The layers of denoisers, and the smaller ones of them whole, in NumPy's float64."""

import numpy as np
import pytest
from by_hand import EPS, attend, attention, close, dense, gelu, gelu_tanh, made, norm, rms, silu

from diffusion_jax.models.attention import SelfAttention
from diffusion_jax.models.embeddings import sinusoidal
from diffusion_jax.models.layers import Style
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.transformers.dit import DiT
from diffusion_jax.models.transformers.mmdit_blocks import JointLayer
from diffusion_jax.models.unet.blocks import Gates
from diffusion_jax.models.unet.transformer_2d import SpatialTransformer

MASK = np.array([[True, True, True, False, False], [True] * 5])


def group_norm(x, p, groups):
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, var = (f((1, 3), keepdims=True) for f in (grouped.mean, grouped.var))
    return ((grouped - mean) / np.sqrt(var + EPS)).reshape(x.shape) * p["scale"] + p["bias"]


@pytest.mark.parametrize("gated", [False, True])
def test_a_spatial_transformer(gated):
    rng = np.random.default_rng(6)
    x, context = rng.normal(size=(2, 2, 3, 4)), rng.normal(size=(2, 5, 7))
    seen = MASK
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


def modulated(x, shift, scale, eps=1e-6):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * (1 + scale) + shift


@pytest.mark.parametrize(("second", "last"), [(False, False), (True, False), (False, True)])
def test_a_joint_layer(second, last):
    rng = np.random.default_rng(7)
    image, text, emb = (rng.normal(size=s) for s in ((2, 3, 4), (2, 5, 4), (2, 1, 6)))
    mask = np.concatenate([np.ones((2, 3), bool), MASK], 1)
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


def embedded(time, label, p, features=256, **options):
    told = np.asarray(sinusoidal(time, features, **options), np.float64)
    h = dense(silu(dense(told, p["time_0"])), p["time_1"])
    return silu(h + p["label"]["embedding"][label])[:, None]


def test_a_dit():
    """Two layers over 2 x 3 patches, with a width of the MLP and an epsilon of their own."""
    module = DiT(
        width=8, depth=2, heads=2, out_channels=3, num_classes=4, mlp_ratio=1.5, mlp_eps=EPS,
        time_options={"shift": 1.0},
    )  # fmt: skip
    x = np.random.default_rng(8).normal(size=(2, 4, 6, 3)).astype(np.float32)
    time, label = np.array([3.0, 500.0], np.float32), np.array([1, 4])
    p, got = made(module, x, time, {"label": label})
    emb = embedded(time, label, p["embed"], shift=1.0)
    patches = x.reshape(2, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, -1)
    h = patches @ p["patches"]["kernel"].reshape(-1, 8) + p["patches"]["bias"]
    row, column = np.divmod(np.arange(6), 3)
    angles = lambda n: np.outer(n, [1.0, 0.01])
    sines = lambda n: np.concatenate([np.sin(angles(n)), np.cos(angles(n))], 1)
    h = h + np.concatenate([sines(column), sines(row)], 1)
    for i in range(2):
        own = p[f"layer_{i}"]
        parts = np.split(dense(emb, own["modulation"]), 6, -1)
        h = h + parts[2] * attend(modulated(h, *parts[:2]), own["attention"], 2)
        assert own["mlp"]["in"]["kernel"].shape == (8, 12)
        hidden = gelu_tanh(dense(modulated(h, *parts[3:5], EPS), own["mlp"]["in"]))
        h = h + parts[5] * dense(hidden, own["mlp"]["out"])
    h = modulated(h, *np.split(dense(emb, p["modulation_out"]), 2, -1))
    out = dense(h, p["proj_out"]).reshape(2, 2, 3, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    close(got, out.reshape(2, 4, 6, 3))


def test_the_attention_of_a_unet():
    """Heads of three channels of seven: the last channel belongs to none."""
    style = Style(groups=7, group_channels=1, eps=EPS, head_dim=3, skip_scale=0.5)
    x = np.random.default_rng(9).normal(size=(2, 2, 3, 7)).astype(np.float32)
    for normalise in (True, False):
        p, got = made(SelfAttention(style, normalise), x)
        h = (group_norm(x, p["norm"], 7) if normalise else x).reshape(2, 6, 7)
        assert p["query"]["kernel"].shape == (7, 6)
        close(got, 0.5 * (x + attend(h, p, 2).reshape(x.shape)))
    p, got = made(SelfAttention(Style(groups=1, head_dim=None)), x)
    assert p["query"]["kernel"].shape == (7, 7)


def test_the_perceptron():
    module = MLP(width=6, depth=2, out_channels=3, num_classes=4)
    x = np.random.default_rng(10).normal(size=(2, 5)).astype(np.float32)
    time, label = np.array([3.0, 500.0], np.float32), np.array([1, 4])
    p, got = made(module, x, time, {"label": label})
    emb = embedded(time, label, p["embed"], 64)[:, 0]
    h = dense(x, p["dense_in"])
    for i in range(2):
        scale, shift = np.split(dense(emb, p[f"film_{i}"]), 2, -1)
        h = h + dense(silu(modulated(h, shift, scale)), p[f"dense_{i}"])
    close(got, dense(silu(h), p["dense_out"]))
