"""Guidance over a picture and a text, where all conditional laws are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import guidance, oracles, oracles_conditional, schedules
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.types import Prediction

# x0 ~ N(m, C); a picture of two numbers and a text of one, both linear in x0 with noise.
MEAN = np.array([0.4, -0.2, 0.1])
COVARIANCE = np.array([[0.5, 0.2, 0.1], [0.2, 0.3, -0.1], [0.1, -0.1, 0.8]])
PICTURE, TEXT = np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]]), np.array([[-0.4, 0.8, 1.1]])
NOISE = 0.35
COND = {
    "picture": jnp.array([[0.9, -0.6, 1.0], [0.1, 0.4, 1.0]]),
    "text": jnp.array([[1.2, 1.0], [-0.5, 1.0]]),
}
NULL = jax.tree.map(jnp.zeros_like, COND)


def _denoiser(x, level, cond):
    """Exact, by precisions; the last number of a condition says whether it is there."""
    picture, text = cond["picture"], cond["text"]

    def one(x, alpha, sigma, picture, text):
        prior = jnp.linalg.inv(COVARIANCE)
        precision, pull = (
            prior + (alpha / sigma) ** 2 * jnp.eye(3),
            prior @ MEAN + alpha / sigma**2 * x,
        )
        for matrix, y in ((PICTURE, picture), (TEXT, text)):
            precision = precision + y[-1] / NOISE**2 * matrix.T @ matrix
            pull = pull + y[-1] / NOISE**2 * matrix.T @ y[:-1]
        x0 = jnp.linalg.solve(precision, pull)
        return Prediction(x0, (x - alpha * x0) / sigma)

    alpha, sigma = (jnp.broadcast_to(c, len(x)) for c in (level.alpha, level.sigma))
    return jax.vmap(one)(x, alpha, sigma, picture, text)


def _exact(x, level, i, picture, text):
    """E[x0 | x, the given], by the textbook's posterior."""
    rows = [(PICTURE, COND["picture"][i, :-1])] * picture + [(TEXT, COND["text"][i, :-1])] * text
    law = oracles.mixture([1.0], [MEAN], [COVARIANCE])
    if rows:
        operator, y = np.concatenate([a for a, _ in rows]), np.concatenate([b for _, b in rows])
        law = oracles_conditional.posterior(law, jnp.asarray(operator), jnp.asarray(y), NOISE)
    return oracles.predict(law, x[i : i + 1], jax.tree.map(lambda c: c[i], level))


def _setting():
    level = jax.jit(Process(schedules.cosine(), PATHS["vp"]).at)(jnp.array([0.3, 0.6]))
    x = jax.random.normal(jax.random.key(0), (2, 3), jnp.result_type(float))
    conds = (
        guidance.emptied(COND, NULL, ["picture", "text"]),
        guidance.emptied(COND, NULL, ["text"]),
        COND,
    )
    return x, level, conds


def test_scales_of_picture_and_text_mix_three_exact_predictions(x64):
    """At (1, 1) the exact conditional; else affine in the three of them, in one call."""
    x, level, conds = _setting()
    calls = []

    def denoiser(x, level, cond):
        calls.append(x.shape)
        return _denoiser(x, level, cond)

    run = jax.jit(lambda s_i, s_t: guidance.chain(denoiser, conds, (s_i, s_t))(x, level))
    for s_i, s_t in ((1.0, 1.0), (1.5, 7.5), (0.0, 0.0), (1.3, 0.0)):
        got = run(s_i, s_t)
        for i in range(2):
            none, picture, both = (
                _exact(x, level, i, *given) for given in ((0, 0), (1, 0), (1, 1))
            )
            for field in ("x0", "eps"):
                a, b, c = (getattr(each, field)[0] for each in (none, picture, both))
                wanted = a + s_i * (b - a) + s_t * (c - b)
                assert_allclose(getattr(got, field)[i], wanted, rtol=1e-6, atol=1e-9)
                if (s_i, s_t) == (1.0, 1.0):
                    assert_allclose(getattr(got, field)[i], c, rtol=1e-6, atol=1e-9)
    assert calls == [(6, 3)] and run._cache_size() == 1


def test_scales_may_differ_between_examples_and_levels(x64):
    x, level, conds = _setting()
    late = lambda level: jnp.where(level.t < 0.5, 4.0, 1.0)  # the second example's t is 0.6
    got = guidance.chain(_denoiser, conds, (jnp.array([2.0, 0.5]), late))(x, level)
    for i, scales in enumerate(((2.0, 4.0), (0.5, 1.0))):
        alone = guidance.chain(_denoiser, conds, scales)(x, level)
        assert_allclose(got.x0[i], alone.x0[i], rtol=1e-9)
    plain = guidance.cfg(_denoiser, COND, conds[0], 3.0)(x, level)
    assert_allclose(
        guidance.chain(_denoiser, (conds[0], COND), (3.0,))(x, level).eps, plain.eps, rtol=1e-9
    )


def test_slots_are_emptied_by_name():
    got = guidance.emptied(COND, NULL, ["text"])
    assert (
        (got["text"] == 0).all() and got["picture"] is COND["picture"] and COND["text"][0, 0] != 0
    )
    with pytest.raises(
        ValueError, match=r"no slots \['txt'\] to empty: it has \['picture', 'text'\]"
    ):
        guidance.emptied(COND, NULL, ["txt"])
    with pytest.raises(ValueError, match="3 conditions need 2 scales, got 1"):
        guidance.chain(_denoiser, (NULL, NULL, COND), (2.0,))
