import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import oracles, schedules, targets
from diffusion_jax.core.process import PATHS, Process, corrupt
from diffusion_jax.core.targets import TARGETS, express, from_x0, predict
from diffusion_jax.core.types import Model, NoiseLevel

CONTINUOUS = ("cosine", "sigmoid", "laplace", "edm", "rectified_flow", "linear", "cosine_table")


def _levels(times):
    """Every path and schedule at the given times, in one batch of levels."""
    each = [
        jax.jit(Process(schedules.SCHEDULES[s](), PATHS[p]).at)(jnp.asarray(times))
        for s in CONTINUOUS
        for p in PATHS
        if not (s == "rectified_flow" and p == "ve" and max(times) == 1)  # infinite noise
    ]
    return NoiseLevel(*(jnp.asarray(np.concatenate(leaves)) for leaves in zip(*each, strict=True)))


def _data(level, dtype=None):
    key = jax.random.split(jax.random.key(0))
    shape = (len(level.t), 3)
    return (jax.random.normal(k, shape, dtype or level.t.dtype) for k in key)


def _relative(got, wanted):
    return np.abs(got - wanted).max(-1) / (1 + np.abs(wanted).max(-1))


def test_any_target_to_any_other_and_back_on_every_path_and_schedule(x64):
    level = _levels([0.03, 0.3, 0.7, 0.97])
    x0, eps = _data(level)

    @jax.jit
    def cycle(x0, eps, level):
        x, out = corrupt(x0, eps, level), {}
        for a, of_a in TARGETS.items():
            first = predict(of_a(), express(of_a(), x0, eps, level), x, level)
            out[a, "x0"], out[a, "eps"] = (first.x0, x0), (first.eps, eps)
            for b, of_b in TARGETS.items():
                out[a, b] = (
                    express(of_b(), first.x0, first.eps, level),
                    express(of_b(), x0, eps, level),
                )
        return out

    for pair, (got, wanted) in cycle(x0, eps, level).items():
        assert _relative(got, wanted).max() < 1e-10, pair


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_target_is_finite_at_both_ends_of_time(dtype):
    level = _levels([0.0, 1.0])
    x0, eps = _data(level, dtype)
    out, _ = _data(level, dtype)

    @jax.jit
    def ends(x0, eps, out, level):
        x = corrupt(x0, eps, level).astype(dtype)
        return {name: predict(make(), out, x, level) for name, make in TARGETS.items()}

    for name, prediction in ends(x0, eps, out, level).items():
        assert np.isfinite(prediction.x0).all() and np.isfinite(prediction.eps).all(), name


@pytest.mark.parametrize("name", ["v", "flow", "edm", "x0"])
def test_x0_is_exact_without_signal(name):
    """At alpha = 0, where sampling with zero terminal SNR starts."""
    level = jax.jit(Process(schedules.rectified_flow(), PATHS["vp"]).at)(jnp.ones(4))
    x0, eps = _data(level)
    prediction = predict(
        TARGETS[name](), express(TARGETS[name](), x0, eps, level), corrupt(x0, eps, level), level
    )
    assert_allclose(prediction.x0, x0, rtol=1e-6)


@pytest.mark.parametrize("name", ["v", "flow", "edm", "eps"])
def test_eps_is_exact_without_noise(name):
    level = jax.jit(Process(schedules.rectified_flow(), PATHS["rectified"]).at)(jnp.zeros(4))
    x0, eps = _data(level)
    target = TARGETS[name]()
    prediction = predict(target, express(target, x0, eps, level), corrupt(x0, eps, level), level)
    assert_allclose(prediction.eps, eps, rtol=1e-5, atol=1e-6)


def test_rows_are_the_definitions(x64):
    level = jax.jit(Process(schedules.cosine(), PATHS["subvp"]).at)(jnp.array([0.2, 0.6]))
    x0, eps = _data(level)
    a, s = level.alpha[:, None], level.sigma[:, None]
    wanted = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "flow": eps - x0, "score": -eps / s}
    for name, value in wanted.items():
        assert_allclose(express(TARGETS[name](), x0, eps, level), value, rtol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_edm_is_the_papers_preconditioning(x64, path):
    """D(y) = c_skip·y + c_out·F in y = x/alpha (Karras et al. 2022, table 1)."""
    level = jax.jit(Process(schedules.cosine(), PATHS[path]).at)(jnp.linspace(0.1, 0.9, 5))
    sigma_data = 0.7
    out, x = _data(level)
    s = (level.sigma / level.alpha)[:, None]
    c_skip = sigma_data**2 / (s**2 + sigma_data**2)
    c_out = s * sigma_data / np.sqrt(s**2 + sigma_data**2)
    wanted = c_skip * x / level.alpha[:, None] + c_out * out
    assert_allclose(predict(targets.edm(sigma_data), out, x, level).x0, wanted, rtol=1e-10)


def test_the_exact_score_as_output_gives_the_exact_denoiser(x64):
    data = oracles.mixture([1, 2], [[-1.0, 0.5], [1.0, 0.0]], [0.1, 0.3])
    level = jax.jit(Process(schedules.cosine(), PATHS["rectified"]).at)(jnp.linspace(0.1, 0.9, 5))
    x = jax.random.normal(jax.random.key(0), (5, 2))
    got = predict(targets.score(), oracles.score(data, x, level), x, level)
    wanted = oracles.predict(data, x, level)
    assert_allclose(got.x0, wanted.x0, rtol=1e-10)
    assert_allclose(got.eps, wanted.eps, rtol=1e-10)


def test_extra_channels_go_to_aux_and_levels_may_be_shared():
    level = jax.jit(Process(schedules.cosine(), PATHS["vp"]).at)(jnp.asarray(0.4))
    x = jnp.ones((2, 3, 3, 1))
    out = jnp.concatenate([2 * x, 5 * x], -1)
    prediction = predict(targets.x0(), out, x, level)
    assert_allclose(prediction.x0, 2 * x, rtol=1e-6)
    assert_allclose(prediction.aux, 5 * x)
    assert predict(targets.x0(), x, x, level).aux is None


def test_from_x0_is_consistent_with_x(x64):
    level = jax.jit(Process(schedules.rectified_flow(), PATHS["vp"]).at)(jnp.array([0.0, 0.3, 1.0]))
    x0, eps = _data(level)
    prediction = from_x0(x0, corrupt(x0, eps, level), level, aux="kept")
    assert_allclose(prediction.eps, eps * np.array([[0], [1], [1]]), rtol=1e-10)
    assert prediction.aux == "kept"


def test_the_networks_door_scales_input_and_time():
    seen = {}

    def net(params, x, time, cond, *, key=None):
        seen.update(params=params, x=x, time=time, cond=cond, key=key)
        return x

    scale, time = (lambda level: 2 * level.alpha), (lambda level: 7 * level.t)
    process = Process(schedules.cosine(), PATHS["vp"])
    model = Model(net, process, targets.x0(), scale, time, codec=None, condition=None, null=None)
    level = process.at(jnp.asarray(0.5))
    x, key = jnp.ones((3, 2)), jax.random.key(0)
    prediction = targets.denoiser(model, "weights", key=key)(x, level, {"label": 1})
    assert_allclose(seen["x"], 2 * level.alpha * x)
    assert_allclose(seen["time"], [3.5] * 3)
    assert (seen["params"], seen["cond"]) == ("weights", {"label": 1})
    assert seen["key"] is key
    assert_allclose(prediction.x0, 2 * level.alpha * x, rtol=1e-6)
