"""Noise that is switched off is off to the bit, for every solver, compiled or not."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.core import sampling, schedules
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.solvers.repaint import repaint
from diffusion_jax.core.types import Prediction

pytestmark = pytest.mark.optimized  # the rounding of fused programs is what it is about

# What switches the noise off; traced, so that no solver may notice it while it is built.
OFF = {
    "ddim": {"eta": 0.0},
    "euler_ancestral": {"eta": 0.0},
    "edm": {"s_churn": 0.0},
    "edm outside": {"s_churn": 40.0, "s_min": 1e-9, "s_max": 1e-8},
    "dpm_2_ancestral": {"eta": 0.0},
    "dpmpp_2s_ancestral": {"eta": 0.0},
    "dpmpp_sde": {"eta": 0.0},
    "dpmpp_2m_sde": {"eta": 0.0},
    "dpmpp_3m_sde": {"eta": 0.0},
    "sa_solver": {"tau": 0.0},
    "er_sde": {"scale": "ode"},
    "jump": {"gamma": 0.0},
}
ALWAYS = {"ddpm", "langevin", "consistency", "restart"}


def _process(path="vp"):
    return Process(schedules.cosine(), PATHS[path])


def _flat(x, level, end=None):
    """A denoiser that is no one's: its x0 and eps belong to x."""
    del end
    x0 = jnp.tanh(0.7 * x + 0.2)
    sigma = level.sigma.reshape(level.sigma.shape + (1,) * (x.ndim - level.sigma.ndim))
    alpha = level.alpha.reshape(sigma.shape)
    return Prediction(x0, (x - alpha * x0) / sigma)


def _solver(name, process, **arguments):
    parameters = inspect.signature(SOLVERS[name]).parameters
    own = {"process": process, "steps": 6}
    return SOLVERS[name](**arguments, **{k: v for k, v in own.items() if k in parameters})


def test_solvers_either_can_be_switched_off_or_always_draw_or_never_see_a_key():
    x, (now, nxt) = jnp.ones((2, 3)), (_process().at(t) for t in (0.6, 0.4))
    for name in SOLVERS:
        solver = _solver(name, _process())
        blind = lambda s=solver: s.step(None, _flat, x, now, nxt, s.init(x))
        if name in {case.split()[0] for case in OFF} | ALWAYS:
            assert "noise" in inspect.signature(SOLVERS[name]).parameters, name
        else:
            jax.eval_shape(blind)  # draws nothing, or it would need the key


def test_two_keys_give_one_sample_to_the_bit_where_the_noise_is_off():
    """On every path, in a compiled sampler (one for all of them), and step by step."""
    x = jax.random.normal(jax.random.key(1), (2, 3))
    log_snr = jnp.array([-6.3, -2.1, 0.3, 2.9])
    traced = {case: {k: v for k, v in row.items() if k != "scale"} for case, row in OFF.items()}

    @jax.jit
    def run(key, i, arguments):
        path = lambda log_snr: jax.lax.switch(i, tuple(PATHS.values()), log_snr)
        process, ends = Process(schedules.cosine(), path), {}
        levels = process.at_log_snr(log_snr)
        for case, row in arguments.items():
            fixed = {k: v for k, v in OFF[case].items() if k not in row}
            solver = _solver(case.split()[0], process, **row, **fixed)
            ends[case] = sampling.sample(key, solver, _flat, x, levels)
        solver = repaint(ddim(), process, arguments["ddim"]["eta"])
        return {**ends, "repaint": sampling.sample(key, solver, _flat, x, levels)}

    for i, path in enumerate(PATHS):
        one, two = (run(jax.random.key(seed), i, traced) for seed in (0, 1))
        assert [case for case in one if (one[case] != two[case]).any()] == [], path
        now, nxt = (_process(path).at_log_snr(lam) for lam in log_snr[1:3])
        for case, row in OFF.items():
            solver = _solver(case.split()[0], _process(path), **row)
            given = _flat, x, now, nxt, solver.init(x)
            one, two = (solver.step(jax.random.key(seed), *given)[0] for seed in (0, 1))
            assert (one == two).all(), (path, case)
