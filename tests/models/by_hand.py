"""Layers in NumPy's float64, to hold networks with random parameters against."""

import jax
import numpy as np
from scipy.special import erf, expit
from tiny_unet import quick

EPS = 0.1  # large, so that it counts


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
