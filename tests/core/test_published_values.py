"""What a factory gives when nothing is said: the papers' constants, by formulas written anew."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from diffusion_jax.core import (
    bounds,
    ema,
    flow_likelihood,
    flow_maps,
    grids,
    guidance,
    learned_schedule,
    losses,
    network_io,
    proposals,
    sampling,
    schedules,
    targets,
    weighting,
)
from diffusion_jax.core.guidance import windows
from diffusion_jax.core.noise import white
from diffusion_jax.core.process import PATHS, Process, corrupt
from diffusion_jax.core.solvers import SOLVERS, noising, repaint
from diffusion_jax.core.solvers.adaptive import _worst
from diffusion_jax.core.targets import TARGETS, convert, express
from diffusion_jax.core.types import NoiseLevel, Prediction

LOG_SNR = np.array([-4.0, -1.0, 0.3, 2.5])


def _level(path="vp"):
    return Process(schedules.cosine(), PATHS[path]).at_log_snr(jnp.asarray(LOG_SNR))


def test_weights(x64):
    """Hang et al. 2023; Choi et al. 2022; Karras et al. 2022; Hoogeboom et al. 2025."""
    level, snr, s = _level(), np.exp(LOG_SNR), np.exp(-LOG_SNR / 2)
    process = Process(schedules.cosine(), PATHS["vp"])
    rate = np.asarray(weighting.elbo(process)(level, targets.eps()))
    wanted = {
        "min_snr": (targets.x0(), np.minimum(snr, 5)),
        "p2": (targets.eps(), 1 / (1 + snr)),
        "edm": (targets.x0(), (s**2 + 0.25) / (0.5 * s) ** 2),
        "mse": (targets.eps(), np.ones(4)),
        "sigmoid_elbo": (targets.eps(), rate / (1 + np.exp(LOG_SNR - 2))),
    }
    for name, (space, value) in wanted.items():
        given = [process] if name == "sigmoid_elbo" else []
        got = weighting.WEIGHTS[name](*given)(level, space)
        assert_allclose(got, value, rtol=1e-9, err_msg=name)


def test_learned_uncertainty_has_the_published_features(x64):
    """sqrt(2)·cos(2π(f·λ/4 + φ))/sqrt(k) of each: EDM2's magnitude-preserving features."""
    kernel, k = np.array([0.3, -1.0, 0.2, 0.7, 0.1]), 5
    f, phase = stats.norm.ppf((np.arange(k) + 0.5) / k), np.arange(k) * 0.618034 % 1
    wanted = [
        np.sqrt(2 / k) * np.cos(2 * np.pi * (f * lam / 4 + phase)) @ kernel for lam in LOG_SNR
    ]
    got = weighting.log_uncertainty(jnp.asarray(kernel), jnp.asarray(LOG_SNR))
    assert_allclose(got, wanted, rtol=1e-6)
    ends = weighting.log_uncertainty(jnp.asarray(kernel), jnp.array([-np.inf, -30.0, 30.0, 1e9]))
    assert_allclose(ends[0], ends[1])
    assert_allclose(ends[2], ends[3])


def test_proposals_draw_as_published():
    """log sigma ~ N(-1.2, 1.2²) (EDM), logit t ~ N(0, 1) (SD 3), e^(4t) + e^(4(1 - t)) (2-RF++)."""
    n, process = 20_000, Process(schedules.cosine(), PATHS["vp"])
    draw = jax.jit(
        lambda key: [
            make().draw(key, n, process, ())[0]
            for make in (proposals.log_normal, proposals.logit_normal, proposals.u_shaped)
        ]
    )
    log_normal, logit_normal, u_shaped = draw(jax.random.key(0))
    logit = np.log(np.asarray(logit_normal.t) / (1 - np.asarray(logit_normal.t)))
    for found, mean, std in ((-log_normal.log_snr / 2, -1.2, 1.2), (logit, 0.0, 1.0)):
        assert abs(np.mean(found) - mean) < 4 * std / n**0.5
        assert abs(np.std(found) - std) < 4 * std / (2 * n) ** 0.5
    below = (np.exp(0.4) - np.exp(3.6) + np.expm1(4)) / (2 * np.expm1(4))
    assert abs(np.mean(u_shaped.t < 0.1) - below) < 4 * 0.5 / n**0.5


def test_loss_aware_keeps_its_history_and_floor():
    """100 bins, a running mean of 0.9, 10 draws of each to warm up, 1/1000 drawn uniformly."""
    process, proposal = Process(schedules.cosine(), PATHS["vp"]), proposals.loss_aware()
    t = (jnp.arange(100) + 0.5) / 100
    at = lambda t: NoiseLevel(t, t, t, t)
    state = proposal.init()
    assert state.mean_square.shape == state.count.shape == (100,)
    first, second = jnp.where(t < 0.5, 1.0, 3.0), jnp.where(t < 0.5, 2.0, 3.0)
    update = jax.jit(proposal.update)
    for _ in range(9):
        state = update(state, at(t), first)
    weights = lambda state: proposal.draw(jax.random.key(0), 2000, process, state)[1]
    assert_allclose(weights(state), 1.0)
    state = update(state, at(t), second)
    assert_allclose(state.mean_square, 0.9 * first**2 + 0.1 * second**2, rtol=1e-6)
    assert_allclose(state.count, 10)
    p = np.sqrt(np.asarray(state.mean_square))
    p = 0.999 * p / p.sum() + 0.001 / 100
    level, weight = proposal.draw(jax.random.key(0), 2000, process, state)
    index = np.ceil(np.asarray(level.t) * 100 - 1e-4).astype(int) - 1
    assert_allclose(weight, 1 / (100 * p[index]), rtol=1e-3)
    # Of several draws of a bin in a batch the mean of loss² counts, and untouched bins stay.
    twice = update(state, at(jnp.array([0.005, 0.005])), jnp.array([1.0, 3.0]))
    assert_allclose(twice.mean_square[0], 0.9 * state.mean_square[0] + 0.1 * 5, rtol=1e-6)
    assert_allclose(twice.mean_square[1:], state.mean_square[1:])
    assert_allclose(twice.count[:2], [12, 10])


def test_targets_and_conversions_between_all_of_them(x64):
    """EDM and TrigFlow with sigma_data = 0.5; F of one from the F of another."""
    level = _level("subvp")
    x0, eps = (jnp.asarray(np.random.default_rng(i).normal(size=(4, 3))) for i in (0, 1))
    alpha, sigma = (np.asarray(c)[:, None] for c in (level.alpha, level.sigma))
    n = np.sqrt(sigma**2 + (0.5 * alpha) ** 2)
    negative = (sigma * np.asarray(x0) / 0.5 - 0.5 * alpha * np.asarray(eps)) / n
    assert_allclose(express(targets.edm(), x0, eps, level), negative, rtol=1e-10)
    assert_allclose(express(targets.trigflow(), x0, eps, level), -negative, rtol=1e-10)
    x = corrupt(x0, eps, level)
    for a, of_a in TARGETS.items():
        out = jnp.concatenate([express(of_a(), x0, eps, level), x0], -1)
        for b, of_b in TARGETS.items():
            got = convert(of_a(), of_b(), out, x, level)
            assert_allclose(got, express(of_b(), x0, eps, level), rtol=1e-8, err_msg=f"{a} {b}")


def test_schedules(x64):
    """Tables and continuous schedules at their papers' constants."""
    at = lambda schedule, t: np.asarray(schedule.log_snr(jnp.asarray(t, jnp.float64)))
    bar_of = lambda betas: np.cumprod(1 - betas)
    logit = lambda p: np.log(p) - np.log1p(-p)
    i = np.array([1, 2, 350, 999])
    tables = {
        "linear": bar_of(np.linspace(1e-4, 0.02, 1000)),
        "scaled_linear": bar_of(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    }
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    tables["cosine_table"] = bar_of(np.minimum(1 - f[1:] / f[:-1], 0.999))
    for name, bar in tables.items():
        schedule = schedules.SCHEDULES[name]()
        assert schedule.steps == 1000
        assert_allclose(at(schedule, i / 1000), logit(bar[i - 1]), rtol=1e-6, err_msg=name)
        assert_allclose(at(schedule, 1.0), logit(bar[-1]), rtol=1e-6, err_msg=name)
    own = {
        "linear": ((50, 5e-4, 0.1), bar_of(np.linspace(5e-4, 0.1, 50))),
        "scaled_linear": ((50, 5e-4, 0.1), bar_of(np.linspace(5e-4**0.5, 0.1**0.5, 50) ** 2)),
    }
    f = np.cos((np.arange(51) / 50 + 0.05) / 1.05 * np.pi / 2) ** 2
    own["cosine_table"] = ((50, 0.05), bar_of(np.minimum(1 - f[1:] / f[:-1], 0.999)))
    for name, (given, bar) in own.items():
        got = at(schedules.SCHEDULES[name](*given), np.array([1, 7, 50]) / 50)
        assert_allclose(got, logit(bar[[0, 6, 49]]), rtol=1e-6, err_msg=name)
    t = np.array([0.0, 0.25, 0.7, 1.0])
    edm = (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    assert_allclose(at(schedules.edm(), t), -2 * np.log(edm), rtol=1e-9)
    a, b = np.arctan(np.exp(-7.5)), np.arctan(np.exp(7.5))
    assert_allclose(at(schedules.cosine(), t), -2 * np.log(np.tan(a + t * (b - a))), rtol=1e-7)
    sigma = lambda u: 1 / (1 + np.exp(-u))
    u = np.interp(t[1:3], [0, 1], [-3, 3])  # the cut at λ = ±15 moves u by 1e-5 at most
    bar = (sigma(3) - sigma(u)) / (sigma(3) - sigma(-3))
    assert_allclose(at(schedules.sigmoid(), t[1:3]), logit(bar), atol=1e-4)
    u = 0.5 - t[1:3]
    wanted = -0.5 * np.sign(u) * np.log(1 - 2 * np.abs(u))
    assert_allclose(at(schedules.laplace(), t[1:3]), wanted, atol=1e-6)
    for name in ("cosine", "sigmoid", "laplace"):
        assert_allclose(at(schedules.SCHEDULES[name](), [0.0, 1.0]), [15, -15], rtol=1e-6)


def test_grids(x64):
    """Karras et al. 2022's rho = 7; k-diffusion's polyexponential at 1; Beta(0.6, 0.6)."""
    process = Process(schedules.edm(), PATHS["ve"])
    k = np.arange(5) / 4
    karras = (80 ** (1 / 7) + k * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert_allclose(grids.karras(process, 5).sigma, karras, rtol=1e-8)
    even = np.exp(np.log(80) + k * np.log(0.002 / 80))
    assert_allclose(grids.polyexponential(process, 5).sigma, even, rtol=1e-8)
    assert_allclose(grids.beta(process, 5).t[1:4], stats.beta.ppf(1 - k[1:4], 0.6, 0.6), rtol=1e-5)


def test_grids_of_tables(x64):
    """Steps of a table of 1000, counted from 1, and times of a continuous schedule."""
    table = Process(schedules.linear(), PATHS["vp"])
    flow = Process(schedules.cosine(), PATHS["vp"])
    steps = lambda grid, n, *given: np.round(np.asarray(grid(table, n, *given).t) * 1000).tolist()
    assert steps(grids.trailing, 4) == [1000, 750, 500, 250]
    assert steps(grids.leading, 4) == [751, 501, 251, 1]
    assert steps(grids.leading, 4, 3) == [754, 504, 254, 4]
    assert steps(grids.linspace, 4) == [1000, 667, 334, 1]
    assert steps(grids.dpm_leading, 4) == [801, 601, 401, 201]
    assert steps(grids.dpm_leading, 4, 3) == [804, 604, 404, 204]
    assert steps(grids.dpm_linspace, 4) == [1000, 750, 501, 251]
    assert steps(grids.consistency, 4) == [1000, 760, 500, 260]
    assert_allclose(grids.leading(flow, 4).t, [0.875, 0.625, 0.375, 0.125], rtol=1e-6)
    assert_allclose(grids.dpm_leading(flow, 4).t, [0.9, 0.7, 0.5, 0.3], rtol=1e-6)
    assert_allclose(grids.linspace(flow, 3).t, [1, 0.5, 0], atol=1e-12)
    assert_allclose(grids.fractional_linspace(table, 3).t, [1, 0.5005, 0.001], rtol=1e-6)


def test_pseudo_methods_start_as_published():
    """PLMS: one step of two evaluations; PNDM: three of four; then one a step, and the last."""
    process, x = Process(schedules.linear(), PATHS["vp"]), jnp.ones((1, 1))
    levels = grids.leading(process, 7)
    for name, given, wanted in (("plms", (), 8), ("pndm", (process,), 7 + 3 * 3)):
        calls = []

        def denoise(x, level, calls=calls):
            jax.debug.callback(lambda t: calls.append(t), level.t)
            return targets.from_x0(jnp.tanh(x), x, level)

        solver = SOLVERS[name](*given)
        jax.jit(sampling.sample, static_argnums=(1, 2))(
            jax.random.key(0), solver, denoise, x, levels
        )
        jax.effects_barrier()
        assert len(calls) == wanted, name


def test_white_noise_has_the_dtype_of_x(x64):
    level = _level()
    for dtype in (jnp.float16, jnp.float32, jnp.float64):
        assert white(jax.random.key(0), jnp.ones((2, 3), dtype), level, level).dtype == dtype


def test_the_error_of_the_adaptive_solver_is_that_of_its_worst_example():
    error = jnp.array([[3.0, 4.0], [1.0, 0.0]])
    assert_allclose(_worst(error), 12.5**0.5, rtol=1e-6)
    value, slope = jax.value_and_grad(_worst)(jnp.zeros((2, 2)))
    assert value == 0 and (slope == 0).all()


def test_losses_and_likelihoods(x64):
    """iCT's c = 0.00054·sqrt(d), the adaptive weight's c = 0.01 and p = 1, 8-bit bins."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 5)))
    square = np.sum(np.asarray(a) ** 2, (1, 2))
    c = 0.00054 * 10**0.5
    zero = jnp.zeros_like(a)
    assert_allclose(losses.pseudo_huber()(a, zero), np.sqrt(square + c**2) - c, rtol=1e-9)
    assert_allclose(losses.adaptive()(a, zero), square / (square + 0.01), rtol=1e-9)
    slope = jax.grad(lambda a: losses.adaptive()(a, zero).sum())(a)
    assert_allclose(slope, 2 * a / (square + 0.01)[:, None, None], rtol=1e-9)
    half = losses.adaptive(0.5, 0.3)(a, zero)
    assert_allclose(half, square / (square + 0.3) ** 0.5, rtol=1e-9)
    total = losses.discretised_log_likelihood(
        jnp.arange(256) / 127.5 - 1, jnp.full(256, 0.2), jnp.full(256, -3.0)
    )
    assert_allclose(np.exp(total).sum(), 1, rtol=1e-9)


def test_averages():
    """0.9999; half-lives up to 5 % of the steps (EDM); two widths of 0.05 and 0.10 (EDM2)."""
    step = lambda average, k: average.update({"w": jnp.float32(0)}, {"w": jnp.float32(1)}, k)["w"]
    assert_allclose(step(ema.constant(), jnp.int32(5)), 1e-4, rtol=1e-3)
    assert_allclose(step(ema.warmup(), jnp.int32(80_000)), 9 / 80_010, rtol=1e-3)
    assert_allclose(step(ema.warmup(), jnp.int32(200_000)), 1e-4, rtol=1e-3)
    assert_allclose(step(ema.warmup(), jnp.int32(8)), 0.5, rtol=1e-5)
    got = step(ema.halflife(10**6), jnp.int32(1000))
    assert_allclose(got, 1 - 0.5 ** (1 / 50), rtol=1e-4)
    assert list(ema.power().init({"w": jnp.zeros(1)})) == ["0.05", "0.1"]


def test_inputs_of_the_network(x64):
    level = _level("rectified")._replace(t=jnp.array([0.9, 0.5, 0.3, 0.1]))
    n = np.sqrt(np.asarray(level.sigma) ** 2 + 0.25 * np.asarray(level.alpha) ** 2)
    assert_allclose(network_io.edm_scale()(level), 1 / n, rtol=1e-6)
    assert_allclose(network_io.unit()(level), np.ones(4))
    assert_allclose(network_io.log_snr()(level), 1000 * (20 - LOG_SNR) / 40, rtol=1e-6)
    assert_allclose(network_io.discrete()(level), [899, 499, 299, 99], rtol=1e-5)


def test_boundaries_of_consistency_models(x64):
    """Song et al. 2023: sigma_min = 0.002, sigma_data = 0.5; LCM's index times 10."""
    level = _level("rectified")._replace(t=jnp.array([0.9, 0.5, 0.3, 0.0007]))
    s, y, out = np.exp(-LOG_SNR / 2), np.array([0.3, -1.0, 0.2, 2.0]), np.array([1.1, -0.4, 0.6, 0])
    predicted = 0.25 / (s**2 + 0.25) * y + 0.5 * s / np.sqrt(s**2 + 0.25) * out  # EDM's D
    gap = s - 0.002
    wanted = 0.25 / (gap**2 + 0.25) * y + 0.5 * gap / np.sqrt(s**2 + 0.25) * out
    skip, factor = flow_maps.consistency_models()(level)
    assert_allclose(skip * y + factor * predicted, wanted, rtol=1e-9)
    skip, factor = flow_maps.latent_consistency()(level)
    u = 10 * np.array([899.0, 499, 299, 0])
    assert_allclose(skip, np.asarray(level.alpha) * 0.25 / (u**2 + 0.25), rtol=1e-8)
    assert_allclose(factor, u / np.sqrt(u**2 + 0.25), rtol=1e-8)


def test_bounds_of_x0(x64):
    """Imagen's 99.5 % and range 1; a limit other than 1 is the largest value that is left."""
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3))) * jnp.array(
        [0.3, 2.5]
    ).reshape(2, 1, 1, 1)
    x, level = 0.5 * x0[::-1], _level()
    level = jax.tree.map(lambda leaf: leaf[1:3], level)
    denoise = lambda x, level: targets.from_x0(x0, x, level)
    for given, q, limit in (((), 0.995, 1.0), ((0.9, 0.4), 0.9, 0.4), ((0.8, 2.0), 0.8, 2.0)):
        got = guidance.dynamic_threshold(*given)(denoise)(x, level).x0
        for i in range(2):
            s = max(np.quantile(np.abs(x0[i]), q), limit)
            assert_allclose(got[i], np.clip(x0[i], -s, s) * limit / s, rtol=1e-9)
    assert_allclose(guidance.clip()(denoise)(x, level).x0, np.clip(x0, -1, 1))
    for given, (scale, sd, steps) in (((), (10, 0.5, 1000)), ((3.0, 0.7, 50), (3, 0.7, 50))):
        u = scale * np.maximum(np.asarray(level.t) * steps - 1, 0)[:, None, None, None]
        skip, out = sd**2 / (u**2 + sd**2), u / np.sqrt(u**2 + sd**2)
        got = guidance.POSTS["latent_consistency"](*given)(denoise)(x, level).x0
        assert_allclose(got, skip * x + out * x0, rtol=1e-9)


def test_guidance_by_name(x64):
    """Lin et al. 2024's φ = 0.7; strengths of 3; APG without its parallel part or threshold."""
    level = jax.tree.map(lambda leaf: leaf[1:3], _level())
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 6)))
    a, b, w = (jnp.asarray(np.random.default_rng(i).normal(size=(2, 6))) for i in (0, 1, 2))
    wrap = lambda x0, x, level: targets.from_x0(x0, x, level)

    def denoiser(x, level, cond):
        gate = cond.get("identity_attention", cond.get("skip_blocks", jnp.zeros((len(x), 2))))
        each = lambda rows: jnp.tile(rows, (len(x) // 2, 1))  # conditions are stacked on the batch
        x0 = jnp.where(cond["label"][:, None] > 0, each(a), each(b))
        return wrap(jnp.where(gate[:, :1] > 0, each(w), x0), x, level)

    cond, null = ({"label": jnp.full(2, k)} for k in (1, 0))
    run = lambda made, scale: np.asarray(made(denoiser, cond, null, scale)(x, level).x0)
    linear = np.asarray(b + 2.5 * (a - b))
    assert_allclose(run(guidance.GUIDANCES["cfg"](), 2.5), linear, rtol=1e-9)
    rescaled = linear * (0.7 * np.std(a, 1) / np.std(linear, 1) + 0.3)[:, None]
    got = run(guidance.GUIDANCES["rescaled"](target=targets.x0()), 2.5)
    assert_allclose(got, rescaled, rtol=1e-8)
    difference = np.asarray(a - b)
    along = (difference * a).sum(1, keepdims=True) / (np.asarray(a) ** 2).sum(1, keepdims=True)
    assert_allclose(
        run(guidance.GUIDANCES["apg"](), 2.5), a + 1.5 * (difference - along * a), rtol=1e-8
    )
    layers = lambda chosen: jnp.ones(2) if chosen == "middle" else jnp.zeros(2)
    for name, gates in (("perturbed_attention", "attention_gates"), ("skip_layers", "block_gates")):
        got = run(guidance.GUIDANCES[name](**{gates: layers}), None)
        assert_allclose(got, a + 3 * (a - w), rtol=1e-8, err_msg=name)
        got = run(guidance.GUIDANCES[name](2.0, **{gates: layers}), 2.5)
        assert_allclose(got, linear + 2 * np.asarray(a - w), rtol=1e-8, err_msg=name)
    inside = run(guidance.GUIDANCES["interval"](-2.0, 0.3), 2.5)  # of λ = -1 and 0.3
    assert_allclose(inside, np.stack([linear[0], a[1]]), rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "spelt"),
    [
        ("ddpm", {"variance": "fixed_small"}),
        ("ddim", {"eta": 0.0}),
        ("euler_ancestral", {"eta": 1.0}),
        ("dpm_2_ancestral", {"eta": 1.0}),
        ("dpmpp_2s_ancestral", {"eta": 1.0}),
        ("dpmpp_sde", {"eta": 1.0, "share": 0.5}),
        ("dpmpp_2m_sde", {"eta": 1.0, "rule": "midpoint"}),
        ("dpmpp_3m_sde", {"eta": 1.0, "curvature": 1.0}),
        ("dpmpp_3m", {"curvature": 1.0}),
        ("sa_solver", {"order": 2, "corrector_order": 2, "tau": 1.0, "rule": "exact"}),
        ("er_sde", {"order": 3, "scale": "er_sde_5"}),
        ("langevin", {"snr": 0.16, "corrections": 1}),
        ("unipc", {"order": 2, "variant": "bh2", "corrector": True}),
        ("deis", {"order": 3, "variable": "t"}),
        ("exponential_adams", {"order": 3}),
        ("lms", {"order": 4}),
        ("ipndm", {"order": 4}),
        ("dpm_solver", {"order": 3}),
        ("dpm_multistep", {"order": 2, "rule": "midpoint"}),
        ("edict", {"mixing": 0.93}),
        ("jump", {"gamma": 0.0}),
    ],
)
def test_solvers_by_name_are_the_papers_recommendations(name, spelt):
    """Signatures, as any other value would be another published method."""
    parameters = inspect.signature(SOLVERS[name]).parameters
    assert {key: parameters[key].default for key in spelt} == spelt


def test_what_is_left_out_changes_nothing():
    """Optional strengths, of which the neutral value, or the paper's, is the default."""
    defaults = lambda f: {n: p.default for n, p in inspect.signature(f).parameters.items()}
    rows = [
        (guidance.apg, {"eta": 0.0, "threshold": np.inf}),
        (guidance.interval, {"outside": 1.0}),
        (guidance.sigma_interval, {"outside": 1.0}),
        (guidance.classifier, {"scale": 1.0}),
        (guidance.perturbed, {"scale": 1.0, "null": None}),
        (guidance.reconstruction, {"scale": 1.0}),
        (guidance.pseudo_inverse, {"scale": 1.0}),
        (noising.churned, {"s_min": 0.0, "s_max": np.inf, "s_noise": 1.0}),
        (noising.edm, {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}),
        (noising.ancestral_steps, {"eta": 1.0}),
        (repaint.repaint, {"repeats": 500, "low": 1.0, "high": 6.0, "jump": 0.6}),
        (repaint.repaint_on_grid, {"resamplings": 10, "low": -np.inf, "high": np.inf, "back": 1}),
        (grids.restart, {"rounds": 2, "low": 0.06, "high": 0.3, "part": 4}),
        (grids.consistency, {"original": 50}),
        (grids.leading, {"offset": 0}),
        (bounds.clip_to, {"low": -1.0, "high": 1.0}),
        (learned_schedule.learned, {"low": -10.0, "high": 10.0, "width": 32}),
        (flow_likelihood.hutchinson, {"n": 1, "law": "rademacher"}),
        (windows.gaussian, {"width": 0.125}),
    ]
    for function, wanted in rows:
        found = defaults(function)
        assert {name: found[name] for name in wanted} == wanted, function


def test_a_prediction_of_one_sided_error_is_seen_by_every_distance():
    """Distances tell 0 from 1 but not the sign, and see every axis but the first."""
    a, b = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 4)).at[1, 2, 3].set(2.0)
    for name, make in losses.DISTANCES.items():
        near, far = make()(a, b)
        assert near == 0 and far > 0 and make()(b, a)[1] == far, name
    assert_allclose(losses.squared()(a, b), [0, 4 / 12])
    assert_allclose(losses.absolute()(a, b), [0, 2 / 12])
    assert Prediction(a, b).aux is None
