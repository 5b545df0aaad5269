"""Thresholds of x0, and everything composed in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import guidance, oracles, schedules, targets
from diffusion_jax.core.process import PATHS, Process, corrupt
from diffusion_jax.core.types import Prediction


def _level(t, path="vp"):
    return jax.jit(Process(schedules.cosine(), PATHS[path]).at)(jnp.asarray(t))


def _images(size, shape=(3, 4, 5, 2)):
    return size * jax.random.normal(jax.random.key(1), shape, jnp.result_type(float))


def _denoise(x0):
    def denoise(x, level):
        return targets.from_x0(x0, x, level, aux=x)

    return denoise


@pytest.mark.parametrize("path", ["vp", "ve", "rectified"])
def test_dynamic_threshold_by_the_recipe(x64, path):
    """s = percentile of |x0|; clip to [-s, s] and divide by s where s > 1 (Saharia et al. 2022)."""
    x0 = _images(jnp.array([0.2, 1.0, 4.0])[:, None, None, None])
    x, level = _images(1.0)[::-1], _level([0.2, 0.5, 0.9], path)
    run = jax.jit(lambda q: guidance.dynamic_threshold(q)(_denoise(x0))(x, level))
    for q in (0.9, 0.995):
        got = run(q)
        for i in range(3):
            s = np.quantile(np.abs(x0[i]), q)
            wanted = np.clip(x0[i], -s, s) / s if s > 1 else np.clip(x0[i], -1, 1)
            assert_allclose(got.x0[i], wanted, rtol=1e-12)
        assert_allclose(corrupt(got.x0, got.eps, level), x, rtol=1e-9, atol=1e-12)
        assert_allclose(got.aux, x)
    assert run._cache_size() == 1
    assert np.abs(got.x0).max() == 1.0


def test_static_threshold(x64):
    x0, x, level = _images(2.0), _images(1.0)[::-1], _level(0.4)
    got = guidance.clip(-0.5, 1.5)(_denoise(x0))(x, level)
    assert_allclose(got.x0, np.clip(x0, -0.5, 1.5))
    assert_allclose(corrupt(got.x0, got.eps, level), x, rtol=1e-9)
    inside = guidance.clip()(_denoise(x0 / 100))(x, level)
    assert_allclose(inside.eps, _denoise(x0 / 100)(x, level).eps, rtol=1e-12)


def test_bounds_keep_the_other_noise_of_cfg_plus_plus(x64):
    """Where nothing is bounded nothing changes, though its prediction is not consistent with x."""
    x, level = _images(0.1), _level(0.5)
    pair = guidance.between(_denoise(_images(0.2)), _denoise(_images(0.3)[::-1]))
    denoise = guidance.guide(pair, guidance.cfg_plus_plus(0.5))
    same = guidance.clip(-9.0, 9.0)(denoise)(x, level)
    assert_allclose(same.eps, denoise(x, level).eps, rtol=1e-12)
    bounded, free = guidance.clip(-0.1, 0.1)(denoise)(x, level), denoise(x, level)
    together = lambda p: corrupt(p.x0, p.eps, level)
    assert_allclose(together(bounded), together(free), rtol=1e-9, atol=1e-12)
    assert not np.allclose(together(free), x)


def _data():
    means = [[-1.0, 0.5, 0.2], [1.5, -0.3, -1.0]]
    return oracles.mixture([1, 2], means, [0.2, 0.3])


def _composed(x, level, q):
    """Interval, autoguidance, classifier-free guidance, APG, a classifier and a bound, at once."""
    label = lambda k: {"label": jnp.full((len(x),), k)}
    reference = oracles.denoiser(_data()._replace(variances=2 * _data().variances))
    model = oracles.denoiser(_data())

    def better(x, level, cond):
        scale = guidance.interval(q["auto"], q["low"], q["high"])
        return guidance.autoguidance(model, reference, cond, scale)(x, level)

    rule = guidance.rescaled(guidance.apg(q["scale"], q["eta"], q["r"]), q["phi"], targets.v())
    denoise = guidance.guide(guidance.pair(better, label(2), label(1)), rule)
    denoise = guidance.classifier(denoise, lambda x, level: -(x**2).sum(-1), q["classifier"])
    return guidance.dynamic_threshold(q["percentile"], q["limit"])(denoise)(x, level)


def test_everything_composes_in_one_program_and_new_numbers_compile_nothing(x64):
    names = ["auto", "low", "high", "scale", "eta", "r", "phi", "classifier", "percentile", "limit"]
    numbers = [
        (1.5, -2.0, 2.0, 3.0, 0.2, 0.8, 0.5, 0.1, 0.9, 0.7),
        (2.5, -9.0, 9.0, 4.0, 0.0, 2.0, 0.1, 0.2, 0.8, 0.4),
    ]
    x = jax.random.normal(jax.random.key(2), (4, 3), jnp.float64)
    run, outputs = jax.jit(_composed), []
    for row in numbers:
        q = dict(zip(names, (jnp.asarray(n) for n in row), strict=True))
        for t in ([0.2, 0.4, 0.6, 0.9], [0.3, 0.5, 0.7, 0.8]):
            level = _level(t)
            outputs.append(run(x, level, q))
            assert_allclose(corrupt(*outputs[-1][:2], level), x, rtol=1e-8)
            assert np.abs(outputs[-1].x0).max() <= row[-1] + 1e-12
    assert run._cache_size() == 1
    assert not np.allclose(outputs[0].x0, outputs[2].x0)


def test_with_every_strength_at_its_neutral_value_the_model_is_left(x64):
    x, level = jax.random.normal(jax.random.key(2), (4, 3), jnp.float64), _level(0.5)
    names = ["auto", "low", "high", "scale", "eta", "r", "phi", "classifier", "percentile", "limit"]
    neutral = (1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1e9)
    got = _composed(x, level, dict(zip(names, neutral, strict=True)))
    plain = oracles.denoiser(_data())(x, level, {"label": jnp.full(4, 1)})
    assert_allclose(got.x0, plain.x0, rtol=1e-9)
    assert_allclose(got.eps, plain.eps, rtol=1e-9)


def test_types_and_ranks_are_kept():
    """float32 in, float32 out; videos; gradients through the bound."""
    x, level = _images(1.0, (2, 2, 3, 3, 1)).astype(jnp.float32), _level([0.3, 0.6])
    label = lambda k: {"label": jnp.full((2,), k)}
    denoiser = lambda x, level, cond: Prediction(x * cond["label"][:, None, None, None, None], x)
    pair = guidance.pair(denoiser, label(1), label(2))
    rule = guidance.rescaled(guidance.apg(2.0, 0.5, 3.0), 0.7, targets.v())
    run = guidance.dynamic_threshold()(guidance.guide(pair, rule))
    out, slope = jax.jit(lambda x: (run(x, level), jax.grad(lambda x: run(x, level).x0.sum())(x)))(
        x
    )
    assert out.x0.dtype == out.eps.dtype == jnp.float32
    assert out.x0.shape == x.shape
    assert np.isfinite(slope).all()


def test_projections_of_x0(x64):
    """Known numbers, and the mean of pairs: A(x) = (x0 + x1)/2, A⁺(y) = (y, y)."""
    x0, given = _images(1.0, (2, 6)), _images(0.5, (2, 6))[::-1]
    mask = jnp.array([0, 1, 0.25, 1, 0, 1])
    soft = (1 - mask) * given + mask * x0
    assert_allclose(guidance.known(mask, given)(x0), soft, rtol=1e-12)
    forward = lambda x: x.reshape(2, 3, 2).mean(-1)
    inverse = lambda y: jnp.repeat(y, 2, axis=-1)
    y = forward(given)
    got = guidance.agreeing(forward, inverse, y)(x0)
    assert_allclose(got, x0 + np.repeat(np.asarray(y - forward(x0)), 2, -1), rtol=1e-12)
    assert_allclose(forward(got), y, rtol=1e-12)
    level, x = _level([0.3, 0.6]), _images(1.0, (2, 6))
    moved = guidance.projected(lambda x, now, end=None: _denoise(x0)(x, now), lambda x0: x0 + 0.2)
    assert_allclose(moved(x, level).x0, x0 + 0.2, rtol=1e-12)
    assert_allclose(corrupt(moved(x, level).x0, moved(x, level).eps, level), x, rtol=1e-9)
