"""Several networks in one step: exact ones are fixed points, wrong ones return; gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.build.few_step.several_networks import class_or_text_embedding, make_critic
from diffusion_jax.core import oracles, process, targets
from diffusion_jax.core.process import corrupt
from diffusion_jax.core.types import Model
from diffusion_jax.recipes.autoencoder import GAMES
from diffusion_jax.recipes.few_step import adversarial, critics, players
from diffusion_jax.recipes.few_step.distribution_matching import (
    distribution_matching,
    distribution_matching_gradient,
)
from diffusion_jax.recipes.few_step.improved_distribution_matching import (
    improved_distribution_matching,
)
from diffusion_jax.recipes.few_step.score_identity import score_identity, score_identity_loss

HEADS = critics.Critic(
    lambda key, features, cond: {"a": jnp.float64(0.3), "b": jnp.float64(0.2)},
    lambda params, f, cond: params["a"] * f[0][:, :1] + params["b"] * f[0][:, 1:] ** 2,
    GAMES["non_saturating"],
    weight=0.5,
)


def _model(path="vp", target="v") -> Model:
    """Exact denoiser and exact jump to clean data of the Gaussian, moved by params["net"]["shift"].

    Where ["jumps"] is 1 it is the student, else the score of data that are moved so far.
    """
    here, row = toy.rectified(path), targets.TARGETS[target]()

    def net(params, x, time, cond, key=None):
        own, level = params["net"], here.at_log_snr(time)
        alpha = level.alpha[:, None]
        denoised = oracles.predict(toy.gaussian(), x - alpha * own["shift"], level).x0
        jumped = oracles.average(toy.gaussian(), x, level, process.clean(level)).x0
        x0 = jnp.where(own["jumps"] > 0, jumped, denoised) + own["shift"]
        return targets.express(row, x0, targets.from_x0(x0, x, level).eps, level)

    return toy.model_of(net, here, row)


def _params(student, fake):
    of = lambda jumps, shift: {"jumps": jnp.float64(jumps), "shift": jnp.asarray(shift, float)}
    heads = {"a": jnp.float64(0.3), "b": jnp.float64(0.2)}
    return {"net": of(1.0, student), "fake": of(0.0, fake), "discriminator": heads}


def _recipes(model, ratio=1, weight=0.0):
    """Each of the three, all on the exact teacher."""
    # Where alpha is 1e-9 and not 0, x0 of a target as v is a number.
    noise = model.process.at(jnp.float64(1 - 1e-6))
    one = jax.tree.map(lambda c: c[None], noise)
    start = players.backward_simulation(model, one)

    def coupling(key, frozen, cond, batch, x0):
        eps = jax.random.normal(key, x0.shape)
        x = jnp.hypot(noise.alpha, noise.sigma) * eps
        return oracles.average(toy.gaussian(), x, noise, process.clean(noise)).x0, eps

    middle = lambda net, x, level, cond: [x + net["shift"]]
    teacher, critic = toy.gaussian_teacher, HEADS._replace(weight=weight)
    draw = players.uniform_levels(0.1, 0.9)
    init, levels = lambda *a: {}, {"draw_levels": draw}
    return {
        "dmd": distribution_matching(model, init, teacher, coupling, noise, ratio, **levels),
        "dmd2": improved_distribution_matching(
            model, init, teacher, start, critic, middle, ratio,
            draw_discriminator_levels=draw, **levels,
        ),
        "sid": score_identity(model, init, teacher, start, ratio, **levels),
    }  # fmt: skip


def _slopes(recipe, params, step=0):
    batch = {"image": oracles.sample(jax.random.key(4), toy.gaussian(), 256)}
    of = lambda p: recipe.loss(p, toy.context(step), batch, jax.random.key(1))
    (value, report), grads = jax.jit(jax.value_and_grad(of, has_aux=True))(params)
    return value, report.metrics, grads


@pytest.mark.parametrize(
    ("name", "path", "target"),
    [("dmd", "vp", "v"), ("dmd2", "rectified", "flow"), ("dmd2", "vp", "eps"), ("sid", "ve", "x0")],
)
def test_exact_networks_leave_the_student_unchanged(x64, name, path, target):
    recipe = _recipes(_model(path, target))[name]
    _, metrics, grads = _slopes(recipe, _params([0.0, 0.0], [0.0, 0.0]))
    assert np.abs(grads["net"]["shift"]).max() < 1e-7, grads
    for part in ("matching", "identity", "regression"):
        assert abs(metrics.get(part, 0.0)) < 1e-9


@pytest.mark.whole
@pytest.mark.parametrize("name", ["dmd", "dmd2", "sid"])
def test_a_wrong_student_returns_if_its_score_is_known(x64, name):
    recipe = _recipes(_model())[name]
    for shift in ([0.3, -0.1], [-0.2, -0.4]):
        _, _, grads = _slopes(recipe, _params(shift, shift))
        toward = np.dot(grads["net"]["shift"], shift) / np.linalg.norm(shift)
        assert toward > 0.2 * np.linalg.norm(grads["net"]["shift"]) > 1e-3, (shift, grads)
        unknown = _slopes(recipe, _params(shift, [0.0, 0.0]))[2]
        if name == "dmd2":  # the score alone says where the student is
            assert np.abs(unknown["net"]["shift"]).max() < 1e-9


def _noised(n=64):
    here = toy.rectified("vp")
    made = oracles.sample(jax.random.key(2), toy.gaussian(), n)
    level = here.at(jnp.linspace(0.1, 0.9, n))
    eps = jax.random.normal(jax.random.key(3), made.shape)
    return made, corrupt(made, eps, level), level


def _still_to_go(level):
    """K = sigma²·(alpha²·C + sigma²)⁻¹ [b, 2, 2], by which scores of moved Gaussians differ."""
    c = np.array([[0.3, 0.1], [0.1, 0.2]])
    of = lambda z: np.asarray(z)[:, None, None] ** 2
    return of(level.sigma) * np.linalg.inv(of(level.alpha) * c + of(level.sigma) * np.eye(2))


def test_distribution_matching_is_the_weighted_difference_of_scores(x64):
    made, x, level = _noised()
    delta = np.array([0.3, -0.1])
    model = _model("vp", "x0")
    exact = lambda x, level: oracles.predict(toy.gaussian(), x, level)
    fake = players.frozen_denoiser(model, _params(delta, delta)["fake"], {})
    got = distribution_matching_gradient(exact, fake, made, x, level)
    scores = [
        -np.asarray(f(x, level).eps) / np.asarray(level.sigma)[:, None] for f in (fake, exact)
    ]
    near = np.abs(np.asarray(made - exact(x, level).x0)).mean(1)
    weight = np.asarray(level.sigma**2 / level.alpha**2) / near
    want = (weight * np.asarray(level.alpha))[:, None] * (scores[0] - scores[1])
    assert_allclose(got, want, rtol=1e-8)
    assert_allclose(got, np.einsum("bij,j->bi", _still_to_go(level), delta) / near[:, None])


def test_score_identity_has_its_gradient_through_both_networks(x64):
    """For a Gaussian moved by δ, d = real - fake is -K·δ wherever y is: dL/dy = K²·δ/w."""
    made, x, level = _noised()
    eps = (x - level.alpha[:, None] * made) / level.sigma[:, None]
    delta = np.array([0.3, -0.1])
    model = _model("vp", "x0")
    fake = players.frozen_denoiser(model, _params(delta, delta)["fake"], {})

    def loss(made):
        x = corrupt(made, eps, level)
        real = oracles.predict(toy.gaussian(), x, level).x0
        return score_identity_loss(real, fake(x, level).x0, made, 1.2)

    real = np.asarray(oracles.predict(toy.gaussian(), x, level).x0)
    near = np.abs(real - np.asarray(made)).mean(1, keepdims=True)
    k = _still_to_go(level)
    d = -np.einsum("bij,j->bi", k, delta)
    size = made.size
    want = np.sum((d * (real - np.asarray(made)) - 1.2 * d**2) / near) / size
    assert_allclose(loss(made), want, rtol=1e-8)
    slope = np.einsum("bij,bjk,k->bi", k, k, delta) / near / size
    assert_allclose(jax.grad(loss)(made), slope, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["dmd", "dmd2", "sid"])
def test_no_network_has_the_gradient_of_another_loss(x64, name):
    params = _params([0.3, -0.1], [0.1, 0.2])
    recipe = _recipes(_model(), ratio=5, weight=0.5)[name]
    off, metrics, others = _slopes(recipe, params, step=3)
    on, more, all_of_them = _slopes(recipe, params, step=4)
    always = _slopes(_recipes(_model(), ratio=1, weight=0.5)[name], params, step=3)
    assert not np.any(others["net"]["shift"]) and np.abs(all_of_them["net"]["shift"]).min() > 1e-4
    assert_allclose(always[2]["net"]["shift"], all_of_them["net"]["shift"], rtol=1e-12)
    assert_allclose(always[0], on, rtol=1e-12)
    for player in ("fake", "discriminator"):
        jax.tree.map(assert_array_equal, others[player], all_of_them[player])
    assert set(metrics) == set(more) and on != off and metrics["fake"] == more["fake"]
    assert np.any(others["fake"]["shift"])
    assert np.any(others["discriminator"]["a"]) == (name == "dmd2")


def test_the_adversarial_loss_is_written_out(x64):
    """ADD on the points themselves: both adversarial losses, the penalty, and distillation."""
    model, params = _model(), _params([0.3, -0.1], [0.0, 0.0])
    del params["fake"]
    critic = HEADS._replace(game=GAMES["hinge"], r1=0.3)
    levels = model.process.at(jnp.array([0.9, 0.5]))
    start, draw = players.noised_data(levels), players.uniform_levels(0.1, 0.9)
    recipe = adversarial.adversarial(
        model, lambda *a: {}, toy.gaussian_teacher, start, critic,
        lambda frozen, key, x0, cond: [x0], lambda *a: {}, distillation_weight=0.7,
        draw_levels=draw,
    )  # fmt: skip
    value, metrics, grads = _slopes(recipe, params)

    x0 = oracles.sample(jax.random.key(4), toy.gaussian(), 256)
    keys = jax.random.split(jax.random.key(1), 6)
    x, level = start(keys[1], None, {}, x0)
    assert set(np.unique(level.t)) == {0.5, 0.9}
    y = model.net({"net": params["net"]}, x, level.log_snr, {})
    y = targets.predict(model.target, y, x, level).x0
    logit = lambda y: 0.3 * y[:, 0] + 0.2 * y[:, 1] ** 2
    slope = np.stack([0.3 + 0 * x0[:, 1], 0.4 * x0[:, 1]], 1)
    told = np.maximum(1 - logit(x0), 0).mean() + np.maximum(1 + logit(y), 0).mean()
    told += 0.3 * (slope**2).sum(1).mean()
    x_t, _, at = players.add_noise(keys[4], draw, y, model.process)
    goal = oracles.predict(toy.gaussian(), x_t, at).x0
    apart = np.mean(at.alpha[:, None] * (y - goal) ** 2)
    assert_allclose(value, told - 0.5 * logit(y).mean() + 0.7 * apart, rtol=1e-9)
    assert_allclose(metrics["logit_made"], logit(y).mean())
    want = 0.7 * 2 * (at.alpha[:, None] * (y - goal)).mean(0) / 2  # goal and level stand still
    want -= 0.5 * np.array([0.3, 0.4 * y[:, 1].mean()])
    assert_allclose(grads["net"]["shift"], want, rtol=1e-8)


def test_backward_simulation_gives_the_inputs_of_the_sampler(x64):
    """An exact student's inputs: data, noised to each of the levels; the first is pure noise."""
    model, levels = _model(), _model().process.at(jnp.array([1 - 1e-6, 0.6, 0.3]))
    start = jax.jit(players.backward_simulation(model, levels))
    params, zeros = _params([0.0, 0.0], [0.0, 0.0]), jnp.zeros((20_000, 2))
    seen = {}
    for key in jax.random.split(jax.random.key(0), 12):
        x, level = start(key, params, {}, zeros)
        assert len(np.unique(level.t)) == 1
        seen[round(float(level.t[0]), 2)] = (x, jax.tree.map(lambda c: c[0], level))
    assert sorted(seen) == [0.3, 0.6, 1.0]
    for x, level in seen.values():
        mean, covariance = oracles.moments(toy.gaussian(), level)
        if level.t > 0.9:
            mean, covariance = jnp.zeros(2), jnp.eye(2)
        assert_allclose(x.mean(0), mean, atol=0.04)
        assert_allclose(np.cov(x.T), covariance, atol=0.04)


def test_times_out_of_order_are_refused():
    with pytest.raises(ValueError, match="give 0 <= low < high <= 1"):
        players.uniform_levels(0.5, 0.2)


def test_a_conditional_discriminator_detects_swapped_classes():
    """Two classes of points, generated with swapped labels: the marginals are the same."""
    label = jnp.arange(256) % 2
    rng = np.random.default_rng(0)
    side = jnp.array([1.0, -1.0])  # heads normalise over channels
    of = lambda label: (2 * label[:, None] - 1) * side + 0.1 * rng.normal(size=(256, 2))
    real, made, cond = [of(label)], [of(1 - label)], {"label": label}

    def apart(told):
        critic = make_critic("hinge", 1.0, width=16, head_cond=told)
        params, optimiser = critic.init(jax.random.key(0), real, cond), optax.adam(1e-2)

        @jax.jit
        def step(params, state):
            of = lambda p: critics.discriminator_loss(critic, p, real, made, cond)[0]
            value, grads = jax.value_and_grad(of)(params)
            updates, state = optimiser.update(grads, state)
            return optax.apply_updates(params, updates), state, value

        state = optimiser.init(params)
        for _ in range(100):
            params, state, value = step(params, state)
        return value

    assert apart(lambda cond: None) > 1.9  # 2 is of a coin
    assert apart(class_or_text_embedding(2)) < 0.2


def test_the_condition_of_discriminator_heads():
    label, context = jnp.array([2, 0, 3]), jnp.arange(24.0).reshape(3, 2, 4)
    want_onehot = np.eye(4)[[2, 0, 3], :3]  # 3 is the null class
    assert_array_equal(class_or_text_embedding(3)({"label": label}), want_onehot)
    mask = jnp.array([[True, False], [True, True], [False, False]])
    text = {"context": context, "context_mask": mask}
    want = [context[0, 0], context[1].mean(0), np.zeros(4)]
    assert_allclose(class_or_text_embedding(0)(text), np.stack(want))
    assert_array_equal(class_or_text_embedding(0)({**text, "pooled": label}), label)
    assert class_or_text_embedding(0)({}) is None


def test_pixel_noise_hides_fainter_differences():
    x0 = jnp.zeros((512, 4, 4, 1)).at[:256].add(0.01)  # a trace that a plain look would tell
    look = lambda noise: adversarial.pixel_features(_model(), lambda params, x: [x], noise)
    see = lambda noise, seed: look(noise)({"perceptual": {}}, jax.random.key(seed), x0, {})[0]
    assert_array_equal(see(0.0, 0), x0)
    noised = see(0.3, 0)
    assert_allclose((noised - x0).std(), 0.3, rtol=0.05)
    assert not np.array_equal(noised, see(0.3, 1))  # of data and of what is made it is not the same
