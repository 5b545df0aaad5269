"""Values of whole losses at settings other than the defaults, by formulas written anew."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
from toy import context, model_of

from diffusion_jax.core import process, schedules, targets
from diffusion_jax.core.proposals import Proposal
from diffusion_jax.core.types import Prediction, Solver
from diffusion_jax.recipes import autoencoder, bottleneck, diffusion
from diffusion_jax.recipes.few_step import players, students
from diffusion_jax.recipes.few_step.guidance_distillation import guidance_distillation
from diffusion_jax.recipes.few_step.latent_consistency import latent_consistency
from diffusion_jax.recipes.few_step.moment_matching import less_time, moment_matching


def test_the_loss_is_the_weighted_mean_of_the_sum_of_terms():
    """Importance weights multiply each example; the history sees the terms without them."""
    here, seen = process.Process(schedules.cosine(), process.vp), {}
    importance = jnp.array([0.5, 3.0, 1.25])
    level = here.at(jnp.array([0.2, 0.5, 0.9]))

    def draw(key, n, process, state):
        seen.update(n=n, state=float(state))
        return level, importance

    def update(state, level, loss):
        return state + jnp.sum(loss * level.t)

    first = diffusion.Term(lambda params, model, noised: params["w"] * noised.level.t)
    first = first._replace(init=lambda key: {"w": jnp.float32(2.0)})
    second = diffusion.Term(lambda params, model, noised: jnp.mean(noised.x0, -1))
    made = diffusion.diffusion(
        model_of(lambda params, x, time, cond, key=None: x, here, targets.eps()),
        lambda key, x, cond: {},
        Proposal(draw, lambda: jnp.float32(0.25), update),
        [first, second],
    )
    x0 = jnp.array([[1.0, 3.0], [0.5, -0.5], [4.0, 0.0]])
    terms = made.init(jax.random.key(0), {"image": x0})["terms"]
    assert terms == [{"w": 2.0}, {}]
    value, report = made.loss(
        {"net": {}, "terms": terms}, context(carry=made.carry()), {"image": x0}, jax.random.key(1)
    )
    each = 2 * np.array([0.2, 0.5, 0.9]) + np.array([2.0, 0.0, 2.0])
    assert_allclose(value, np.mean(each * importance), rtol=1e-6)
    assert seen == {"n": 3, "state": 0.25}
    assert_allclose(report.carry, 0.25 + np.sum(each * np.array([0.2, 0.5, 0.9])), rtol=1e-6)


class _Encoded(NamedTuple):
    before: Any
    entries: Any
    indices: Any
    z: Any


def _encoded():
    rng = np.random.default_rng(0)
    book = rng.normal(size=(3, 2)).astype(np.float32)
    before = rng.normal(size=(2, 1, 2, 2)).astype(np.float32)
    indices = np.array([[[0, 2]], [[2, 2]]])
    return book, before, indices, _Encoded(*map(jnp.asarray, (before, book[indices], indices, 7)))


def test_a_codebook_by_gradients():
    """weight·(‖entry - z‖² + β‖z - entry‖²) + revive·pull on dead entries, and its usage."""
    book, before, indices, encoded = _encoded()
    hold = bottleneck.vq(3, 2, beta=0.4, weight=1.7, revive=2.3, decay=0.6, dead=0.9)
    old = bottleneck.Usage(jnp.array([0.5, 0.2, 0.3]), jnp.asarray(book) + 1.0)
    output = hold.apply({"codebook": jnp.asarray(book)}, encoded, 12, old, jax.random.key(0))
    share = np.array([0.25, 0.0, 0.75])
    usage = 0.6 * np.array([0.5, 0.2, 0.3]) + 0.4 * share
    dead = usage < 0.9 / 3
    assert dead.tolist() == [False, True, False]
    assert_allclose(output.carry.share, usage, rtol=1e-6)
    square = np.mean((before - book[indices]) ** 2)
    anchor = np.asarray(output.carry.anchor)
    pull = np.mean((book[1] - anchor[1]) ** 2) / 3  # of three entries one is dead
    assert_allclose(output.loss, 1.7 * 1.4 * square + 2.3 * pull, rtol=1e-5)
    assert_allclose(output.metrics["codebook"], square, rtol=1e-6)
    assert float(output.metrics["dead_entries"]) == 1
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert_allclose(output.metrics["perplexity"], np.exp(entropy), rtol=1e-6)
    assert output.z == 7
    fresh = hold.carry()
    assert_allclose(fresh.share, 1 / 3)
    # Of entries alive the anchor is always an output of the encoder; a dead one's mostly stays.
    rows = before.reshape(-1, 2)
    assert all((np.abs(rows - anchor[i]).sum(-1) < 1e-6).any() for i in (0, 2))
    stays = [
        np.allclose(hold.apply({"codebook": jnp.asarray(book)}, encoded, 12, old, key)[3][1][1],
                    old.anchor[1])
        for key in jax.random.split(jax.random.key(1), 30)
    ]  # fmt: skip
    assert np.mean(stays) > 0.8


def test_a_codebook_of_averages():
    """The commitment alone; N and m decay, and the entry is m over the smoothed N."""
    book, before, indices, encoded = _encoded()
    hold = bottleneck.vq_ema(3, 2, beta=0.4, weight=1.7, decay=0.6, dead=0.0, smoothing=0.3)
    old = bottleneck.Sums(jnp.array([2.0, 0.0, 5.0]), jnp.asarray(book) * 2)
    params = {"codebook": jnp.asarray(book), "other": 1}
    output = hold.apply(params, encoded, 12, old, jax.random.key(0))
    assert_allclose(output.loss, 1.7 * 0.4 * np.mean((before - book[indices]) ** 2), rtol=1e-6)
    n = 0.6 * np.array([2.0, 0, 5]) + 0.4 * np.array([1.0, 0, 3])
    rows, flat = before.reshape(-1, 2), indices.ravel()
    m = 0.6 * 2 * book + 0.4 * np.stack([rows[flat == i].sum(0) for i in range(3)])
    assert_allclose(output.carry.count, n, rtol=1e-6)
    assert_allclose(output.carry.total, m, rtol=1e-5)
    settled = hold.settle(params, output.carry)
    smooth = n.sum() * (n + 0.3) / (n.sum() + 3 * 0.3)
    assert_allclose(settled["codebook"][0], m[0] / smooth[0], rtol=1e-5)
    assert_allclose(settled["codebook"][1], book[1])  # never chosen
    assert_allclose(settled["codebook"][2], m[2] / smooth[2], rtol=1e-5)
    assert settled["other"] == 1
    # A dead one, below 0.5 of the average count, is an output of the encoder with that count.
    hold = bottleneck.vq_ema(3, 2, decay=0.6, dead=0.5)
    revived = hold.apply(params, encoded, 12, old, jax.random.key(0)).carry
    assert_allclose(revived.count, [n.mean() if c < 0.5 * n.mean() else c for c in n], rtol=1e-6)
    assert (np.abs(rows - np.asarray(revived.total[1]) / n.mean()).sum(-1) < 1e-5).any()


def test_games_and_distances():
    real, made = jnp.array([0.3, -2.0, 1.5]), jnp.array([-0.4, 0.7, -3.0])
    hinge, soft = (autoencoder.GAMES[name] for name in ("hinge", "non_saturating"))
    relu, plus = (lambda x: np.maximum(x, 0)), (lambda x: np.log1p(np.exp(x)))
    r, m = np.asarray(real), np.asarray(made)
    wanted = relu(1 - r).mean() + relu(1 + m).mean()
    assert_allclose(hinge.discriminator(real, made), wanted, rtol=1e-6)
    assert_allclose(hinge.generator(made), -m.mean(), rtol=1e-6)
    assert_allclose(soft.discriminator(real, made), plus(-r).mean() + plus(m).mean(), rtol=1e-6)
    assert_allclose(soft.generator(made), plus(-m).mean(), rtol=1e-6)
    a, b = (np.random.default_rng(i).normal(size=(2, 3, 2, 4)).astype(np.float32) for i in (0, 1))
    unit = lambda f: f / np.linalg.norm(f, axis=-1, keepdims=True)
    plain = ((unit(a) - unit(b)) ** 2).sum(-1).mean((1, 2))
    got = autoencoder.feature_distance([jnp.asarray(a)] * 2, [jnp.asarray(b)] * 2)
    assert_allclose(got, 2 * plain, rtol=1e-5)
    pixels = {name: make()(jnp.asarray(a), jnp.asarray(b)) for name, make in
              autoencoder.PIXEL_LOSSES.items()}  # fmt: skip
    assert_allclose(pixels["l1"], np.abs(a - b).mean((1, 2, 3)), rtol=1e-5)
    assert_allclose(pixels["l2"], ((a - b) ** 2).mean((1, 2, 3)), rtol=1e-5)
    ratio = autoencoder.adaptive_weight(jnp.array([3.0, 4.0]), jnp.array([0.6, 0.8]))
    assert_allclose(ratio, 5 / (1 + 1e-6), rtol=1e-6)
    assert float(autoencoder.adaptive_weight(jnp.array([3.0]), jnp.zeros(1))) == 1e4


def test_a_student_reads_the_scale_as_a_condition():
    """One number for each example; 1 without guidance, and of no condition one example."""
    seen = []

    def net(params, x, time, cond, key=None):
        seen.append(cond)
        return params["w"] * x

    model = model_of(net, process.Process(schedules.cosine(), process.vp), targets.x0())
    x, level = jnp.ones((3, 2)), model.process.at(jnp.asarray(0.4))
    for cond, scale, n in (({"label": jnp.arange(3)}, 2.5, 3), ({"label": jnp.arange(3)}, None, 3)):
        jump = students.guided(model, {"w": jnp.float32(0.5)}, cond, scale)
        assert_allclose(jump(x, level).x0, 0.5 * x)
        assert_allclose(seen[-1]["guidance_scale"], np.full(n, 1.0 if scale is None else scale))
        assert (seen[-1]["label"] == cond["label"]).all()
    students.guided(model, {"w": jnp.float32(0.5)}, {}, 4.0)(x[:1], level)
    assert_allclose(seen[-1]["guidance_scale"], [4.0])


def _silent(labels=False, seen=None):
    """A model of x0 = 0 on the cosine schedule; what it is conditioned on goes to ``seen``."""

    def net(params, x, time, cond, key=None):
        if seen is not None:
            seen.append(cond)
        return params["net"] * x

    here = process.Process(schedules.cosine(), process.vp)
    return model_of(net, here, targets.x0(), labels=labels)


def test_guidance_distillation_is_the_weighted_error_of_x0():
    """max(SNR, 1) times the error, times the importance of the draw."""
    model, importance = _silent(), jnp.array([0.5, 3.0, 1.25])
    level = model.process.at(jnp.array([0.2, 0.5, 0.9]))
    proposal = Proposal(lambda key, n, process, state: (level, importance))
    goal = jnp.array([[1.0, 3.0], [0.5, -0.5], [4.0, 0.0]])
    teacher = lambda frozen, cond: lambda x, level: Prediction(goal, x)
    made = guidance_distillation(model, teacher, lambda *a: {}, proposal)
    given = {"net": jnp.float32(0)}, context(), {"image": goal * 0}, jax.random.key(0)
    value, _ = made.loss(*given)
    weight = np.maximum(np.exp(np.asarray(level.log_snr)), 1)
    wanted = np.mean(importance * weight * np.mean(np.asarray(goal) ** 2, 1))
    assert_allclose(value, wanted, rtol=1e-5)


def test_latent_consistency_jumps_one_of_the_teachers_steps():
    """levels = 5 are five intervals of time, the cleanest of which ends at t = 0."""
    drawn = []

    def step(key, denoise, x, now, nxt, state):
        drawn.append((now.t, nxt.t))
        return x, state

    teacher = lambda frozen, cond: lambda x, level: Prediction(x, x)
    seen, clipped, extras = [], [], []
    clip = lambda x0: clipped.append(x0) or jnp.zeros_like(x0) + 2.0
    extra = lambda key, n: extras.append(n) or {"guidance_scale": jnp.full(n, 9.0)}
    made = latent_consistency(
        _silent(True, seen), teacher, lambda *a: {}, levels=5, solver=Solver(lambda x: (), step),
        extra_cond=extra, condition_dropout=1.0, clip=clip,
    )  # fmt: skip
    params, batch = {"net": jnp.float32(0)}, {"image": jnp.ones((64, 2)), "label": jnp.arange(64)}
    value, _ = made.loss(params, context(ema=params), batch, jax.random.key(0))
    assert value == 0 and len(clipped) == 2 and extras == [64]  # both sides are clipped to 2
    assert (seen[0]["label"] == 99).all() and (seen[0]["guidance_scale"] == 9).all()
    now, nxt = drawn[0]
    assert_allclose(now - nxt, 0.2, atol=1e-6)
    assert_allclose(np.unique(np.round(now, 4)), [0.2, 0.4, 0.6, 0.8, 1.0], atol=1e-4)


def test_groups_of_particles_lose_their_condition_together():
    """Each group by a draw of its own."""
    seen = []
    made = moment_matching(
        _silent(True, seen), lambda *a: {}, less_time(0.1), particles=2, condition_dropout=0.5
    )
    batch = {"image": jnp.ones((32, 2)), "label": jnp.arange(32)}
    params = {"net": jnp.float32(0.3)}
    made.loss(params, context(ema=params), batch, jax.random.key(0))
    dropped = np.asarray(seen[0]["label"] == 99).reshape(16, 2)
    assert (dropped[:, 0] == dropped[:, 1]).all()
    assert 3 <= dropped[:, 0].sum() <= 13


def test_levels_of_players_are_uniform_between_their_ends():
    """On a table they are the next step's, of 100 here."""
    flow = process.Process(schedules.cosine(), process.vp)
    table = process.Process(schedules.linear(100), process.vp)
    t = np.asarray(players.uniform_levels(0.2, 0.6)(jax.random.key(0), 4000, flow).t)
    assert t.min() >= 0.2 and t.max() <= 0.6
    assert abs(t.mean() - 0.4) < 0.01 and abs(t.std() - 0.4 / 12**0.5) < 0.005
    default = np.asarray(players.uniform_levels()(jax.random.key(0), 4000, flow).t)
    assert 0.02 <= default.min() < 0.03 and 0.97 < default.max() <= 0.98
    steps = np.asarray(players.uniform_levels(0.2, 0.6)(jax.random.key(0), 4000, table).t) * 100
    assert_allclose(steps, np.round(steps), atol=1e-3)
    assert np.round(steps).min() == 21 and np.round(steps).max() == 60
