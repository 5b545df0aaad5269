"""The recipe against closed forms: what its loss is in expectation for known networks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import network_io, process, proposals, schedules, targets, weighting
from diffusion_jax.core.types import Context, Model
from diffusion_jax.models.autoencoders.codec import IDENTITY
from diffusion_jax.recipes import diffusion as recipe

B, D = 4096, 3


def model_of(net, schedule=None, target=None):
    return Model(
        net=net,
        process=process.Process(schedule or schedules.cosine(), process.vp),
        target=target or targets.eps(),
        scale_in=network_io.unit(),
        time_in=network_io.log_snr(),
        codec=IDENTITY,
        condition=lambda frozen, batch: {"label": batch["label"]},
        null=lambda frozen, cond: {"label": jnp.full_like(cond["label"], -1)},
    )


def loss_of(model, terms=None, proposal=None, dropout=0.0, params=None, labels=None):
    terms = terms or [recipe.regression(weighting.simple())]
    made = recipe.diffusion(
        model, lambda key, x, cond: {}, proposal or proposals.uniform(), terms, dropout
    )
    x0 = 0.5 * jax.random.normal(jax.random.key(1), (B, D))
    batch = {"image": x0, "label": jnp.zeros(B, jnp.int32) if labels is None else labels}
    own = made.init(jax.random.key(0), batch)["terms"] if params is None else params
    context = Context(jnp.int32(0), {}, {}, made.carry())
    return made.loss({"net": {}, "terms": own}, context, batch, jax.random.key(2))


def test_a_zero_output_leaves_the_variance_of_the_noise():
    silent = lambda params, x, time, cond, key=None: jnp.zeros_like(x)
    loss, _ = loss_of(model_of(silent))
    assert abs(float(loss) - 1) < 4 * np.sqrt(2 / (B * D))


def test_the_best_linear_network_reaches_the_bayes_error():
    # x0 ~ N(0, 1/4): E[eps | x] = sigma x / (alpha²/4 + sigma²); its error is
    # E[alpha² / (alpha² + 4 sigma²)] over uniform t.
    def best(params, x, time, cond, key=None):
        lam = 20 - 40 * time / 1000
        alpha, sigma = process.vp(lam)
        return (sigma / (alpha**2 / 4 + sigma**2))[:, None] * x

    t = jnp.linspace(0, 1, 20001)
    alpha, sigma = process.vp(schedules.cosine().log_snr(t))
    expected = float(jnp.mean(alpha**2 / (alpha**2 + 4 * sigma**2)))
    loss, _ = loss_of(model_of(best), proposal=proposals.stratified())
    assert abs(float(loss) - expected) < 0.02


def test_the_condition_is_dropped_at_its_rate():
    seen = lambda params, x, time, cond, key=None: jnp.broadcast_to(
        1e3 * (cond["label"] == -1)[:, None], x.shape
    ).astype(x.dtype)
    loss, _ = loss_of(model_of(seen), dropout=0.25)
    assert abs(float(loss) / 1e6 - 0.25) < 4 * np.sqrt(0.25 * 0.75 / B)


def test_uncertainty_learns_the_log_of_the_error():
    silent = lambda params, x, time, cond, key=None: jnp.zeros_like(x)
    terms = [recipe.uncertain_regression(weighting.simple())]
    loss, _ = loss_of(model_of(silent), terms)
    assert abs(float(loss) - 1) < 0.05  # u starts at 0: the plain loss

    value = lambda params: loss_of(model_of(silent), terms, params=params)[0]
    gradient = jax.grad(value)([{"kernel": jnp.zeros(32)}])
    # d/du (loss e^-u + u) = 1 - loss, 0 on average for unit error
    assert float(jnp.abs(gradient[0]["kernel"]).max()) < 0.05


def test_the_variational_term_trains_the_variance_only():
    def net(params, x, time, cond, key=None):
        return jnp.concatenate([params["mean"] * x, params["variance"] * jnp.ones_like(x)], -1)

    model = model_of(net, schedule=schedules.linear())

    def loss(params):
        made = recipe.diffusion(
            model, lambda *a: params, proposals.uniform(), [recipe.variational()], 0.0
        )
        x0 = jnp.round(127.5 * jnp.tanh(jax.random.normal(jax.random.key(1), (256, D)))) / 127.5
        batch = {"image": x0, "label": jnp.zeros(256, jnp.int32)}
        return made.loss(
            {**params, "terms": [{}]},
            Context(jnp.int32(0), {}, {}, ()),
            batch,
            jax.random.key(2),
        )[0]

    gradient = jax.grad(loss)({"mean": jnp.float32(0.5), "variance": jnp.float32(0.0)})
    assert float(gradient["mean"]) == 0.0
    assert np.isfinite(gradient["variance"]) and float(gradient["variance"]) != 0.0


@pytest.mark.parametrize("first", [False, True])
def test_the_variational_term_is_in_bits_of_the_published_size(x64, first):
    """T/1000 of a term's bits per dimension (improved DDPM), of the KL and of the decoder."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bar, f, off = np.cumprod(1 - betas), 0.3, 0.013
    i = 0 if first else 399  # of the step from t = i + 1
    level = process.Process(schedules.linear(), process.vp).at(jnp.full(1, (i + 1) / 1000))
    x0 = jnp.array([[3.0, 120.0]]) / 127.5 - 1
    eps = jnp.array([[0.4, -1.1]])
    x = bar[i] ** 0.5 * x0 + (1 - bar[i]) ** 0.5 * eps
    guess = (x - bar[i] ** 0.5 * (x0 + off)) / (1 - bar[i]) ** 0.5
    out = jnp.concatenate([guess, jnp.full((1, 2), 2 * f - 1)], -1)
    noised = recipe.Noised(x0, eps, x, level, out)
    model = model_of(None, schedule=schedules.linear())
    small = betas[1:] * (1 - bar[:-1]) / (1 - bar[1:])  # of the steps from t = 2 on
    log_p = f * np.log(betas[i]) + (1 - f) * np.log(small[max(i - 1, 0)])
    if first:
        cdf = lambda z: 0.5 * (1 + math.erf(z / 2**0.5))
        ends = [(side / 255 - off) / np.exp(log_p / 2) for side in (-1, 1)]
        bits = -np.log2(cdf(ends[1]) - cdf(ends[0]))
    else:
        gap = bar[i - 1] ** 0.5 * betas[i] / (1 - bar[i]) * off
        ratio = np.log(small[i - 1]) - log_p
        bits = 0.5 * (np.exp(ratio) - 1 - ratio + gap**2 / np.exp(log_p)) / np.log(2)
    assert_allclose(recipe.variational().loss({}, model, noised), bits, rtol=1e-5)
    scaled = recipe.variational(0.5, steps=1000).loss({}, model, noised)
    assert_allclose(scaled, 500 * bits, rtol=1e-5)


def test_variational_needs_steps_on_a_continuous_schedule():
    twice = lambda params, x, time, cond, key=None: jnp.concatenate([x, x], -1)
    with pytest.raises(ValueError, match="variational\\(steps=1000\\)"):
        loss_of(model_of(twice), [recipe.variational()])


def test_loss_aware_draws_carry_their_history():
    silent = lambda params, x, time, cond, key=None: jnp.zeros_like(x)
    _, report = loss_of(model_of(silent), proposal=proposals.loss_aware(bins=10))
    assert float(report.carry.count.sum()) == B
    # E[(mean of D squares)²] of standard normals is 1 + 2/D
    np.testing.assert_allclose(report.carry.mean_square.mean(), 1 + 2 / D, rtol=0.1)


def test_the_noise_offset_is_one_shift_of_each_channel():
    silent = lambda params, x, time, cond, key=None: jnp.zeros_like(x)
    # E[(mean over 4x4 places of eps)²] = 1/16, and offset² more for what all places share.
    shared = recipe.Term(lambda params, model, noised: jnp.mean(noised.eps.mean((1, 2)) ** 2, -1))
    batch = {"image": jnp.zeros((2048, 4, 4, 2)), "label": jnp.zeros(2048, jnp.int32)}
    for offset, want in ((0.0, 1 / 16), (0.5, 1 / 16 + 0.25)):
        made = recipe.diffusion(
            model_of(silent), lambda key, x, cond: {}, proposals.uniform(), [shared], 0.0, offset
        )
        context = Context(jnp.int32(0), {}, {}, made.carry())
        params = {"net": {}, "terms": [{}]}
        loss, _ = made.loss(params, context, batch, jax.random.key(2))
        assert abs(float(loss) / want - 1) < 4 * np.sqrt(2 / (2048 * 2))
