"""Guidance of a pair of predictions, by several models or by a classifier, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import guidance, oracles, schedules, targets
from diffusion_jax.core.process import PATHS, Process, corrupt
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.types import NoiseLevel, Prediction

NULL = 2
TARGET = targets.v()


def _data():
    means = [[-1.0, 0.5, 0.2], [1.5, -0.3, -1.0], [0.2, 2.0, 0.4]]
    return oracles.mixture([1, 2, 3], means, [0.2, 0.3, 0.1], [0, 1, 0])


def _level(t, path="vp"):
    return jax.jit(Process(schedules.cosine(), PATHS[path]).at)(jnp.asarray(t))


def _x(n=4):
    return jax.random.normal(jax.random.key(0), (n, 3), jnp.result_type(float))


def _labels(n, value):
    return {"label": jnp.full((n,), value)}


def _close(a, b, rtol=1e-9):
    assert_allclose(a.x0, b.x0, rtol=rtol, atol=1e-12)
    assert_allclose(a.eps, b.eps, rtol=rtol, atol=1e-12)


def _guided_pair(x, level, cond=1):
    pair = guidance.pair(oracles.denoiser(_data()), _labels(len(x), NULL), _labels(len(x), cond))
    return pair, pair(x, level)


@jax.jit
def _all_rules(x, level, w, eta, r, phi):
    """Every rule on the same pair, all numbers traced; and the pair."""
    pair, (weak, strong) = _guided_pair(x, level)
    out = {
        "linear": guidance.linear(w),
        "apg": guidance.apg(w, eta, r),
        "apg without limits": guidance.apg(w, 1.0),
        "rescaled": guidance.rescaled(guidance.linear(w), phi, TARGET),
        "not rescaled": guidance.rescaled(guidance.linear(w), 0.0, TARGET),
        "zero_star": guidance.zero_star(w, TARGET),
        "plus_plus": guidance.cfg_plus_plus(w),
        "rescaled apg": guidance.rescaled(guidance.apg(w, eta, r), phi, TARGET),
    }
    return weak, strong, {name: guidance.guide(pair, rule)(x, level) for name, rule in out.items()}


def _numpy_apg(weak, strong, w, eta, r):
    """Sadat et al. 2024, one example: a projection matrix, and a norm that is cut at r."""
    d = strong - weak
    d = d * min(1.0, r / np.linalg.norm(d))
    along = np.outer(strong, strong) / (strong @ strong)
    return strong + (w - 1) * (d - along @ d + eta * along @ d)


def _numpy_rescaled(strong, guided, phi):
    return guided * (phi * np.std(strong) / np.std(guided) + 1 - phi)


def _numpy_zero_star(weak, strong, w):
    s = np.linalg.lstsq(weak[:, None], strong, rcond=None)[0][0]
    return (1 - w) * s * weak + w * strong


@pytest.mark.parametrize("path", ["vp", "ve", "rectified"])
def test_rules_are_their_papers_formulas_example_by_example(x64, path):
    level = _level([0.2, 0.4, 0.6, 0.95], path)
    x = _x() * 1.5 * jnp.hypot(level.alpha, level.sigma)[:, None]
    w, eta, r, phi = jnp.array([3.0, 0.5, 7.0, 2.0]), 0.3, 0.6, 0.7
    weak, strong, out = _all_rules(x, level, w, eta, r, phi)
    express = lambda p: np.asarray(targets.express(TARGET, p.x0, p.eps, level))
    f_weak, f_strong, f_guided = express(weak), express(strong), express(out["linear"])
    cut = 0
    for i in range(4):
        a, b = np.asarray(weak.x0[i]), np.asarray(strong.x0[i])
        cut += np.linalg.norm(b - a) > r
        assert_allclose(out["apg"].x0[i], _numpy_apg(a, b, w[i], eta, r), rtol=1e-10)
        assert_allclose(
            express(out["rescaled"])[i], _numpy_rescaled(f_strong[i], f_guided[i], phi), rtol=1e-8
        )
        assert_allclose(
            express(out["zero_star"])[i], _numpy_zero_star(f_weak[i], f_strong[i], w[i]), rtol=1e-8
        )
    assert 0 < cut < 4  # both sides of the threshold were there
    _close(out["apg without limits"], out["linear"])
    _close(out["not rescaled"], out["linear"], 1e-8)
    for name, prediction in out.items():
        if name != "plus_plus":
            again = corrupt(prediction.x0, prediction.eps, level)
            assert_allclose(again, x, rtol=1e-8, err_msg=name)


def test_new_numbers_compile_nothing(x64):
    _all_rules.clear_cache()
    level, x = _level([0.2, 0.4, 0.6, 0.95]), _x()
    w = jnp.array([3.0, 0.5, 7.0, 2.0])
    first = _all_rules(x, level, w, 0.3, 0.6, 0.7)[2]
    second = _all_rules(x, level, 2 * w, 0.1, 3.0, 0.2)[2]
    assert _all_rules._cache_size() == 1
    assert all(not np.allclose(first[name].x0, second[name].x0) for name in ("apg", "rescaled"))


def test_at_scale_1_every_rule_but_one_is_the_strong_prediction(x64):
    level, x = _level([0.2, 0.4, 0.6, 0.95]), _x()
    weak, strong, out = _all_rules(x, level, jnp.ones(4), 0.3, 0.6, 0.7)
    for name, prediction in out.items():
        _close(prediction, strong._replace(eps=weak.eps) if name == "plus_plus" else strong, 1e-8)


def test_one_ddim_step_under_cfg_plus_plus_is_the_papers(x64):
    """Chung et al. 2024, algorithm 2: x0 of the guided eps, renoised by the unconditional one."""
    now, nxt, x, lam = _level(0.7), _level(0.5), _x(), 0.6
    pair, (weak, strong) = _guided_pair(x, now)
    denoise = guidance.guide(pair, guidance.cfg_plus_plus(lam))
    got, _ = ddim().step(jax.random.key(0), denoise, x, now, nxt, ())
    eps = weak.eps + lam * (strong.eps - weak.eps)
    x0 = (x - now.sigma * eps) / now.alpha
    assert_allclose(got, nxt.alpha * x0 + nxt.sigma * weak.eps, rtol=1e-10)
    plain, _ = ddim().step(
        jax.random.key(0), guidance.guide(pair, guidance.linear(lam)), x, now, nxt, ()
    )
    assert not np.allclose(got, plain, rtol=1e-3)


def test_rules_have_gradients_where_both_predictions_are_one():
    x, level = _x(2), _level(0.5)
    same = Prediction(x, (x - level.alpha * x) / level.sigma)
    out = jax.grad(lambda w, eta: guidance.apg(w, eta, 1.0)(x, level, same, same).x0.sum(), (0, 1))
    assert all(np.isfinite(g) for g in jax.jit(out)(2.0, 0.5))
    strong = guidance.apg(3.0, 0.0, 1.0)(x, level, same, same)
    assert_allclose(strong.x0, x)
    nothing = Prediction(0 * x, x)  # an unconditional prediction of 0 has no direction
    assert np.isfinite(guidance.zero_star(3.0, targets.x0())(x, level, nothing, same).x0).all()


def test_guidance_by_a_worse_model_has_the_score_of_the_ratio(x64):
    """log p_w = log p_0 + w·(log p_1 - log p_0) (Karras et al. 2024)."""
    x, level, w = _x(), _level([0.2, 0.4, 0.6, 0.95]), 2.5
    worse = _data()._replace(variances=3 * _data().variances)
    model, reference = oracles.denoiser(_data()), oracles.denoiser(worse)
    got = guidance.autoguidance(model, reference, {}, w)(x, level)
    log_p = lambda x: (
        w * oracles.log_prob(_data(), x, level) + (1 - w) * oracles.log_prob(worse, x, level)
    )
    score = jax.grad(lambda x: log_p(x).sum())(x)
    assert_allclose(got.eps, -level.sigma[:, None] * score, rtol=1e-9)
    assert_allclose(corrupt(got.x0, got.eps, level), x, rtol=1e-9)
    itself = guidance.autoguidance(model, model, {}, w)(x, level)
    _close(itself, guidance.condition(model, {})(x, level))
    limited = guidance.autoguidance(model, reference, {}, guidance.interval(w, -1e9, 1e9))
    _close(limited(x, level), got)


def test_two_guidances_at_once_by_blend(x64):
    x, level, w, v = _x(), _level(0.5), 3.0, 1.7
    model, reference = (
        oracles.denoiser(d) for d in (_data(), _data()._replace(means=_data().means / 2))
    )
    null, cond = _labels(4, NULL), _labels(4, 1)
    each = [model(x, level, null), reference(x, level, cond), model(x, level, cond)]
    parts = [
        guidance.condition(*pair) for pair in ((model, null), (reference, cond), (model, cond))
    ]
    got = guidance.blend(parts, (1 - w, 1 - v, w + v - 1))(x, level)
    wanted = lambda n, r, c: c + (w - 1) * (c - n) + (v - 1) * (c - r)
    _close(got, Prediction(*(wanted(*(e[i] for e in each)) for i in range(2))))


def test_composed_conditions_are_a_product_of_experts(x64):
    """p(x) Π_i (p(x | c_i)/p(x))^w_i (Liu et al. 2022)."""
    x, level = _x(), _level(0.5)
    null, conds, w = _labels(4, NULL), [_labels(4, 0), _labels(4, 1)], (1.5, -0.8)
    got = guidance.compose(oracles.denoiser(_data()), null, conds, w)(x, level)
    of_class = lambda k: oracles.of_class(_data(), jnp.asarray(k))
    plain = lambda x: oracles.log_prob(_data(), x, level)
    log_p = lambda x: (
        plain(x)
        + sum(w[k] * (oracles.log_prob(of_class(k), x, level) - plain(x)) for k in range(2))
    )
    assert_allclose(got.eps, -level.sigma * jax.grad(lambda x: log_p(x).sum())(x), rtol=1e-9)


def test_the_interval_is_closed_below_and_open_above():
    level = NoiseLevel(*(jnp.array([-3.0, -1.0, 0.5, 2.0, 4.0]),) * 4)
    got = jax.jit(lambda w, low, high: guidance.interval(w, low, high)(level))
    assert_allclose(got(3.0, -1.0, 2.0), [1, 3, 3, 1, 1])
    assert_allclose(got(5.0, -jnp.inf, 0.0), [5, 5, 1, 1, 1])
    assert got._cache_size() == 1
    strength = guidance.interval(lambda level: level.t, -1.0, 2.0, outside=0.0)
    assert_allclose(strength(level), [0, -1, 0.5, 0, 0])


@pytest.mark.parametrize("path", ["vp", "rectified"])
def test_an_interval_in_sigma_means_sigma_over_alpha(path):
    s = jnp.array([0.1, 0.19, 0.21, 1.0, 1.9, 2.1])
    level = Process(schedules.cosine(), PATHS[path]).at_log_snr(-2 * jnp.log(s))
    assert_allclose(guidance.sigma_interval(4.0, 0.2, 2.0)(level), [1, 1, 4, 4, 4, 1])
    assert_allclose(guidance.sigma_interval(4.0, 0.0, 2.0)(level), [4, 4, 4, 4, 4, 1])
    each = guidance.sigma_interval(4.0, 0.0, jnp.where(s < 1, 0.15, jnp.inf))
    assert_allclose(each(level), [4, 1, 1, 4, 4, 4])


def _log_posterior(x, level):
    """log p(class 1 | x_t), exact."""
    chosen = oracles.of_class(_data(), jnp.asarray(1))
    share = jnp.log(jnp.exp(_data().log_weights)[_data().classes == 1].sum())
    return oracles.log_prob(chosen, x, level) + share - oracles.log_prob(_data(), x, level)


@pytest.mark.parametrize("path", ["vp", "ve", "subvp"])
def test_an_exact_classifier_is_classifier_free_guidance(x64, path):
    x, level = _x(), _level([0.2, 0.4, 0.6, 0.95], path)
    model, null = oracles.denoiser(_data()), _labels(4, NULL)
    plain = guidance.condition(model, null)
    for w in (1.0, jnp.array([3.0, 0.5, 7.0, 2.0])):
        got = guidance.classifier(plain, _log_posterior, w)(x, level)
        _close(got, guidance.cfg(model, _labels(4, 1), null, w)(x, level), 1e-8)
    both = guidance.classifier(guidance.cfg(model, _labels(4, 1), null, 2.0), _log_posterior, 1.5)
    _close(both(x, level), guidance.cfg(model, _labels(4, 1), null, 3.5)(x, level), 1e-8)


def test_nothing_moves_where_nothing_is_known():
    x = _x(2)
    level = NoiseLevel(*(jnp.array(c) for c in (1.0, -jnp.inf, 0.0, 1.0)))
    denoise = lambda x, level: Prediction(0 * x, x)
    got = guidance.classifier(denoise, lambda x, level: x.sum(-1), 3.0)(x, level)
    _close(got, denoise(x, level))
    clean = NoiseLevel(*(jnp.array(c) for c in (0.0, jnp.inf, 1.0, 0.0)))
    moved = guidance.move_x0(Prediction(x, 0 * x), jnp.ones_like(x), clean)
    assert_allclose(moved.x0, x + 1)
    assert_allclose(moved.eps, 0 * x)


@pytest.mark.parametrize("null", [None, 7.0])
def test_a_perturbed_network_is_asked_once(null):
    calls = []

    def denoiser(x, level, cond):
        calls.append((x.shape, sorted(cond)))
        value = cond["label"] + 10 * cond["gate"].sum(-1)
        return Prediction(value[:, None] + 0 * x, 2 * value[:, None] + 0 * x)

    x, level = _x(2), _level([0.3, 0.6])
    cond = {"label": jnp.array([1.0, 2.0])}
    empty = None if null is None else {"label": jnp.full(2, null)}
    gates = {"gate": jnp.array([0.0, 1.0, 1.0])}
    got = guidance.perturbed(denoiser, cond, gates, 3.0, empty, 1.5)(x, level)
    assert calls == [((4 if null is None else 6, 3), ["gate", "label"])]
    value = np.array([1.0, 2.0]) + 3 * (0 - 20)  # cond + strength·(cond - perturbed)
    if null is not None:
        value = value + 0.5 * (np.array([1.0, 2.0]) - null)
    assert_allclose(got.x0, np.broadcast_to(value[:, None], (2, 3)), rtol=1e-5)
    assert_allclose(got.eps, 2 * got.x0, rtol=1e-6)


def test_unconditional_models_can_be_perturbed():
    denoiser = lambda x, level, cond: Prediction(x + cond["gate"], x)
    got = guidance.perturbed(denoiser, {}, {"gate": jnp.ones((2, 1))}, 2.0)(_x(2), _level(0.5))
    assert_allclose(got.x0, _x(2) - 2, rtol=1e-5)
