"""The layers of denoisers that read text, in NumPy's float64."""

import numpy as np
import pytest
from by_hand import EPS, attend, attention, close, dense, gelu, gelu_tanh, made, norm, rms

from diffusion_jax.models.layers import Style
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


def modulated(x, shift, scale):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale) + shift


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
