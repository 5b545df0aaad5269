import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import proposals, schedules, targets, weighting
from diffusion_jax.core.process import PATHS, Process, corrupt
from diffusion_jax.core.targets import TARGETS, express, predict
from diffusion_jax.core.types import NoiseLevel

SPACES = ("eps", "x0", "v", "flow", "edm")


def _process(path="vp"):
    return Process(schedules.cosine(), PATHS[path])


def _level(path="vp"):
    return jax.jit(_process(path).at)(jnp.array([0.05, 0.3, 0.5, 0.8, 0.97]))


def _snr(level):
    return np.exp(np.asarray(level.log_snr))


def test_weights_in_the_space_of_their_paper(x64):
    level = _level()
    snr, s = _snr(level), np.asarray(level.sigma / level.alpha)
    eps, x0, v, edm = targets.eps(), targets.x0(), targets.v(), targets.edm()
    cases = [
        (weighting.simple(), v, np.ones(5)),
        (weighting.snr(), x0, snr),
        (weighting.snr(), eps, np.ones(5)),
        (weighting.truncated_snr(), x0, np.maximum(snr, 1)),
        (weighting.truncated_snr(), eps, np.maximum(snr, 1) / snr),
        (weighting.min_snr(5.0), x0, np.minimum(snr, 5)),
        (weighting.min_snr(5.0), eps, np.minimum(snr, 5) / snr),
        (weighting.min_snr(5.0), v, np.minimum(snr, 5) / (snr + 1)),
        (weighting.p2(2.0, 0.5), eps, (2 + snr) ** -0.5),
        (weighting.mse("v"), x0, (snr + 1)),  # v-error = x0-error / sigma² = (SNR + 1) x0-error
        (weighting.edm(0.5), edm, np.ones(5)),
        (weighting.edm(0.5), x0, (s**2 + 0.25) / (s * 0.5) ** 2),
    ]
    for i, (weight, target, wanted) in enumerate(cases):
        wanted = wanted / np.asarray(level.sigma) ** 2 / (snr + 1) if i == 9 else wanted
        assert_allclose(weight(level, target), wanted, rtol=1e-9, err_msg=f"case {i}")


def test_a_weighted_error_is_the_same_whatever_the_network_predicts(x64):
    """But for "simple", which is stated for the network's own output."""
    every = [_level(path) for path in PATHS]
    level = NoiseLevel(
        *(jnp.asarray(np.concatenate(leaves)) for leaves in zip(*every, strict=True))
    )
    x0, eps, wrong = jax.random.normal(jax.random.key(0), (3, len(level.t), 4))

    @jax.jit
    def losses(x0, eps, wrong, level):
        x = corrupt(x0, eps, level)
        found = predict(targets.x0(), wrong, x, level)  # one wrong prediction, told in each space
        out = {}
        for space in SPACES:
            target = TARGETS[space]()
            told = express(target, found.x0, found.eps, level)
            error = jnp.mean((told - express(target, x0, eps, level)) ** 2, -1)
            for name, make in weighting.WEIGHTS.items():
                arguments = [_process()] if name in ("elbo", "sigmoid_elbo") else []
                out[name, space] = make(*arguments)(level, target) * error
        return out

    found = losses(x0, eps, wrong, level)
    for name in weighting.WEIGHTS:
        first, *others = (found[name, space] for space in SPACES)
        same = [np.allclose(first, other, rtol=1e-8, atol=0) for other in others]
        assert all(same) if name != "simple" else not any(same), name


def test_the_elbo_weight_is_half_the_rate_on_eps(x64):
    level = _level()
    h = 1e-6
    lam = _process().schedule.log_snr
    rate = -(np.asarray(lam(level.t + h)) - np.asarray(lam(level.t - h))) / (2 * h)
    eps = targets.eps()
    assert_allclose(weighting.elbo(_process())(level, eps), rate / 2, rtol=1e-6)
    sigmoid = 1 / (1 + np.exp(np.asarray(level.log_snr) - 1.5))
    wanted = rate / 2 * sigmoid
    assert_allclose(weighting.sigmoid_elbo(_process(), 1.5)(level, eps), wanted, rtol=1e-6)


def test_the_elbo_weight_of_a_table_is_not_zero():
    here = Process(schedules.linear(100), PATHS["vp"])
    level = jax.jit(here.at)(jnp.arange(1, 101) / 100)
    assert (np.asarray(weighting.elbo(here)(level, targets.eps())) > 0.01).all()


def test_elbo_weighted_losses_integrate_to_the_likelihood_of_a_gaussian(x64):
    """-log p(x0) = prior + ∫ w(t) E‖eps - E[eps|x]‖² dt + decoder, averaged over x0 ~ N(0, c).

    For the mean over x0 the bound of the exact denoiser is the entropy (Kingma et al. 2021, eq. 12
    with T = infinity).  E‖eps - E[eps|x]‖² = alpha² c / (alpha² c + sigma²).
    """
    c, process = 0.3, Process(schedules.cosine(low=-12.0, high=12.0), PATHS["vp"])
    t = (jnp.arange(40_000) + 0.5) / 40_000
    level = jax.jit(process.at)(t)
    a2, s2 = np.asarray(level.alpha) ** 2, np.asarray(level.sigma) ** 2
    weight = np.asarray(weighting.elbo(process)(level, targets.eps()))
    integral = np.mean(weight * a2 * c / (a2 * c + s2))
    ends = jax.jit(process.at)(jnp.array([0.0, 1.0]))
    (a0, a1), (s0, s1) = (np.asarray(e) ** 2 for e in (ends.alpha, ends.sigma))
    prior = 0.5 * (s1 + a1 * c - 1 - np.log(s1))
    # The decoder at t = 0: p(x0 | x) = N(E[x0 | x], posterior variance), entropy of it.
    decoder = 0.5 * np.log(2 * np.pi * np.e * s0 * c / (a0 * c + s0))
    entropy = 0.5 * np.log(2 * np.pi * np.e * c)
    assert_allclose(prior + integral + decoder, entropy, atol=1e-4)


def test_learned_uncertainty_is_least_at_the_log_of_the_loss():
    loss, u = jnp.array([0.1, 2.0]), jnp.log(jnp.array([0.1, 2.0]))
    slope = jax.grad(lambda u: weighting.with_uncertainty(loss, u).sum())
    assert_allclose(slope(u), 0, atol=1e-6)
    assert_allclose(weighting.with_uncertainty(loss, u), 1 + u, rtol=1e-6)


def test_an_unknown_space_is_named():
    with pytest.raises(ValueError, match=r"space='nope'.*known are eps, x0"):
        weighting.mse("nope")


@pytest.mark.parametrize("name", ["uniform", "stratified", "antithetic"])
def test_uniform_proposals_are_uniform(name):
    proposal, n, here = proposals.PROPOSALS[name](), 64, _process()
    draw = jax.jit(jax.vmap(lambda key: proposal.draw(key, n, here, ())[0].t))
    t = np.asarray(draw(jax.random.split(jax.random.key(0), 200)))
    assert t.min() > 0
    assert t.max() <= 1
    counts = np.histogram(t, 10, (0, 1))[0]
    assert_allclose(counts, t.size / 10, rtol=0.12)
    spread = t.mean(1).std() * n**0.5  # of the batch mean: 1/sqrt(12) if independent
    assert (spread > 0.25) if name == "uniform" else (spread < 0.06)


def test_normal_proposals_have_their_moments():
    n, here = 20_000, _process()
    level, weight = jax.jit(lambda key: proposals.log_normal(-1.2, 1.2).draw(key, n, here, ()))(
        jax.random.key(0)
    )
    log_s = np.log(np.asarray(level.sigma) / np.asarray(level.alpha))
    assert abs(log_s.mean() + 1.2) < 4 * 1.2 / n**0.5
    assert abs(log_s.std() - 1.2) < 4 * 1.2 / (2 * n) ** 0.5
    assert_allclose(weight, 1)
    t = np.asarray(proposals.logit_normal(0.5, 0.8).draw(jax.random.key(0), n, here, ())[0].t)
    logit = np.log(t / (1 - t))
    assert abs(logit.mean() - 0.5) < 4 * 0.8 / n**0.5
    assert abs(logit.std() - 0.8) < 4 * 0.8 / (2 * n) ** 0.5


def test_the_u_shaped_proposal_has_its_density():
    """P(t < x) = (e^(a·x) - e^(a·(1 - x)) + e^a - 1)/(2·(e^a - 1)) of its two exponentials."""
    n, a = 40_000, 4.0
    t = proposals.u_shaped(a).draw(jax.random.key(0), n, _process(), ())[0].t
    for x in (0.01, 0.1, 0.3, 0.5, 0.8, 0.99):
        want = (np.exp(a * x) - np.exp(a * (1 - x)) + np.expm1(a)) / (2 * np.expm1(a))
        assert abs((np.asarray(t) < x).mean() - want) < 4 * 0.5 / n**0.5
    with pytest.raises(ValueError, match=r"u_shaped\(a=0.0\).*uniform"):
        proposals.u_shaped(0.0)


def test_loss_aware_proposal_learns_and_stays_unbiased():
    bins, here = 4, Process(schedules.linear(8), PATHS["vp"])
    proposal = proposals.loss_aware(bins, decay=0.0, warm_up=1)
    draw = jax.jit(lambda key, state: proposal.draw(key, 20_000, here, state))
    loss_of = lambda t: 1 + 10 * (np.asarray(t) > 0.75)
    level, weight = draw(jax.random.key(0), proposal.init())
    assert_allclose(weight, 1)  # uniform before the warm-up is over
    state = proposal.update(proposal.init(), level, jnp.asarray(loss_of(level.t), jnp.float32))
    assert_allclose(state.mean_square, [1, 1, 1, 121], rtol=1e-5)
    level, weight = draw(jax.random.key(1), state)
    last = np.asarray(level.t) > 0.75
    assert abs(last.mean() - 11 / 14) < 0.02
    values = np.asarray(weight) * loss_of(level.t)
    assert abs(values.mean() - 3.5) < 4 * values.std() / len(values) ** 0.5 + 1e-6
    assert values.std() < 0.05  # the ideal proposal makes loss·weight constant
    steps = np.unique(np.rint(np.asarray(level.t) * 8))
    assert_allclose(steps, np.arange(1, 9))


@pytest.mark.parametrize(
    "schedule",
    [schedules.zero_terminal_snr(schedules.linear()), schedules.rectified_flow()],
    ids=["table", "flow"],
)
@pytest.mark.parametrize("weight", [weighting.elbo, weighting.sigmoid_elbo])
def test_likelihood_weights_are_finite_where_log_snr_is_not(schedule, weight):
    here = Process(schedule, PATHS["vp"])
    at = lambda t: weight(here)(here.at(jnp.asarray(t)), targets.v())
    assert np.isfinite(at([0.0, 1.0])).all()
    assert at(1.0) < at(0.99)
