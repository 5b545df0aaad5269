import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import guidance, oracles, schedules
from diffusion_jax.core.process import PATHS, Process, corrupt
from diffusion_jax.core.types import Prediction

NULL = 2


def _denoiser():
    return oracles.denoiser(
        oracles.mixture(
            [1, 2, 3], [[-1.0, 0.5], [1.5, -0.3], [0.2, 2.0]], [0.2, 0.3, 0.1], [0, 1, 0]
        )
    )


def _setting(t=0.5):
    level = jax.jit(Process(schedules.cosine(), PATHS["vp"]).at)(jnp.asarray(t))
    x = jax.random.normal(jax.random.key(0), (3, 2))
    labels = lambda *values: {"label": jnp.array(values)}
    return x, level, labels(0, 1, 1), labels(NULL, NULL, NULL), labels


def _close(a, b, rtol=1e-5):
    assert_allclose(a.x0, b.x0, rtol=rtol, atol=1e-6)
    assert_allclose(a.eps, b.eps, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("t", [0.5, [0.2, 0.5, 0.9]])
def test_scale_1_is_the_conditional_model_and_0_the_unconditional(t):
    x, level, cond, null, _ = _setting(t)
    denoiser = _denoiser()
    guided = jax.jit(lambda scale: guidance.cfg(denoiser, cond, null, scale)(x, level))
    plain = jax.jit(lambda cond: guidance.condition(denoiser, cond)(x, level))
    _close(guided(1.0), plain(cond))
    _close(guided(0.0), plain(null))
    one, zero = plain(cond), plain(null)
    wanted = jax.tree.map(lambda a, b: b + 3.0 * (a - b), one, zero)
    _close(guided(3.0), wanted)
    assert guided._cache_size() == 1  # a new scale compiles nothing


def test_guided_exact_scores_are_the_weighted_score(x64):
    """eps = -sigma·score, so guidance is the score of p(x) (p(x | c)/p(x))^scale."""
    x, level, _, null, labels = _setting()
    data = oracles.mixture([1, 2], [[-1.0, 0.5], [1.5, -0.3]], [0.2, 0.3])
    got = guidance.cfg(oracles.denoiser(data), labels(1, 1, 1), null, 2.5)(x, level)
    only = oracles.of_class(data, jnp.asarray(1))
    log_p = lambda x: (
        oracles.log_prob(data, x, level)
        + 2.5 * (oracles.log_prob(only, x, level) - oracles.log_prob(data, x, level))
    ).sum()
    assert_allclose(got.eps, -level.sigma * jax.grad(log_p)(x), rtol=1e-9)
    assert_allclose(corrupt(got.x0, got.eps, level), x, rtol=1e-9)  # still consistent with x


def test_a_scale_per_example_and_one_that_depends_on_the_level():
    x, level, cond, null, _ = _setting()
    denoiser = _denoiser()
    each = guidance.cfg(denoiser, cond, null, jnp.array([0.0, 1.0, 4.0]))(x, level)
    for i, scale in enumerate((0.0, 1.0, 4.0)):
        alone = guidance.cfg(denoiser, cond, null, scale)(x, level)
        assert_allclose(each.x0[i], alone.x0[i], rtol=1e-5, atol=1e-6)
    interval = lambda level: jnp.where(level.t < 0.7, 3.0, 1.0)
    got = guidance.cfg(denoiser, cond, null, interval)
    _close(got(x, level), guidance.cfg(denoiser, cond, null, 3.0)(x, level))
    late = _setting(0.9)[1]
    _close(got(x, late), guidance.condition(denoiser, cond)(x, late))


def test_a_negative_condition_pushes_away():
    x, level, _, _, labels = _setting()
    denoiser = _denoiser()
    positive, negative = labels(0, 0, 0), labels(1, 1, 1)
    got = guidance.cfg(denoiser, positive, negative, 2.0)(x, level)
    a, b = (guidance.condition(denoiser, c)(x, level) for c in (positive, negative))
    _close(got, Prediction(2 * a.x0 - b.x0, 2 * a.eps - b.eps))


def test_mix_calls_the_network_once_for_any_number_of_conditions():
    calls = []

    def denoiser(x, level, cond):
        calls.append(x.shape)
        assert level.t.shape in ((), x.shape[:1])
        c = cond["label"][:, None].astype(x.dtype)
        return Prediction(c + 0 * x, 10 * c + 0 * x, 100 * c + 0 * x)

    x, level, _, _, labels = _setting([0.2, 0.5, 0.9])
    got = guidance.mix(
        denoiser, [labels(1, 2, 3), labels(4, 5, 6), labels(7, 8, 9)], (2.0, -3.0, 2.0)
    )(x, level)
    assert calls == [(9, 2)]
    wanted = 2 * np.array([1, 2, 3]) - 3 * np.array([4, 5, 6]) + 2 * np.array([7, 8, 9])
    assert_allclose(got.x0, np.broadcast_to(wanted[:, None], x.shape))
    assert_allclose(got.eps, 10 * np.broadcast_to(wanted[:, None], x.shape))
    assert_allclose(got.aux, 100 * np.broadcast_to(np.array([[7], [8], [9]]), x.shape))


def test_aux_may_have_other_channels_than_x():
    def denoiser(x, level, cond):
        return Prediction(x, x, jnp.concatenate([x, x, x], -1))

    x, level, cond, null, _ = _setting()
    assert guidance.cfg(denoiser, cond, null, 2.0)(x, level).aux.shape == (3, 6)
