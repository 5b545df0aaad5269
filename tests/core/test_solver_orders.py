"""Every deterministic solver converges at its order to the exact probability flow of a mixture."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import grids, oracles, sampling, schedules
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers import SOLVERS, noising

LONGEST = 128

# name -> (solver, its arguments, order, even steps of what, values remembered)
ORDERS = {
    "ddim": ("ddim", {}, 1, "log_snr", 0),
    "euler": ("euler", {}, 1, "log_snr", 0),
    "heun": ("heun", {}, 2, "log_snr", 0),
    "flow_heun": ("flow_heun", {}, 2, "log_snr", 0),
    "midpoint": ("midpoint", {}, 2, "log_snr", 0),
    "rk4": ("rk4", {}, 4, "log_snr", 0),
    "edm without churn": ("edm", {"steps": 10, "s_churn": 0.0}, 2, "log_snr", 0),
    "dpm_2": ("dpm_2", {}, 2, "log_snr", 0),
    "dpm_solver 2": ("dpm_solver", {"order": 2}, 2, "log_snr", 0),
    "dpm_solver 3": ("dpm_solver", {"order": 3}, 3, "log_snr", 0),
    "dpmpp_2s": ("dpmpp_2s", {}, 2, "log_snr", 0),
    "dpmpp_2s at 0.7": ("dpmpp_2s", {"share": 0.7}, 2, "log_snr", 0),
    "dpmpp_3s": ("dpmpp_3s", {}, 3, "log_snr", 0),
    "lms 2": ("lms", {"order": 2}, 2, "log_snr", 1),
    "lms 4": ("lms", {"order": 4}, 4, "log_snr", 3),
    "deis 2 in t": ("deis", {"order": 2}, 2, "log_snr", 1),
    "deis 3 in t": ("deis", {"order": 3}, 3, "log_snr", 2),
    "deis 3 in log rho": ("deis", {"order": 3, "variable": "log_rho"}, 3, "log_snr", 2),
    "deis 4 in rho": ("deis", {"order": 4, "variable": "rho"}, 4, "log_snr", 3),
    "exponential_adams 3": ("exponential_adams", {"order": 3}, 3, "log_snr", 2),
    "exponential_adams 4": ("exponential_adams", {"order": 4}, 4, "log_snr", 3),
    "dpm_multistep 2": ("dpm_multistep", {"order": 2}, 2, "log_snr", 1),
    "dpm_multistep 3": ("dpm_multistep", {"order": 3}, 3, "log_snr", 2),
    "dpmpp_2m": ("dpmpp_2m", {}, 2, "uneven", 1),
    "dpmpp_2m exact": ("dpmpp_2m", {"rule": "exact"}, 2, "uneven", 1),
    "dpmpp_3m": ("dpmpp_3m", {}, 3, "uneven", 2),
    "dpmpp_3m as published": ("dpmpp_3m", {"curvature": 0.5}, 2, "log_snr", 2),
    "unipc 1": ("unipc", {"order": 1}, 2, "log_snr", 1),
    "unipc 2 bh1": ("unipc", {"order": 2, "variant": "bh1"}, 3, "uneven", 2),
    "unipc 2 bh2": ("unipc", {"order": 2}, 3, "log_snr", 2),
    "unipc 3": ("unipc", {"order": 3}, 4, "uneven", 3),
    "unip 2": ("unipc", {"order": 2, "corrector": False}, 2, "log_snr", 2),
    "unip 3": ("unipc", {"order": 3, "corrector": False}, 3, "uneven", 3),
    "sa_solver ode": ("sa_solver", {"order": 3, "corrector_order": 0, "tau": 0.0}, 3, "uneven", 2),
    "sa_solver ode corrected": (
        "sa_solver", {"order": 2, "corrector_order": 3, "tau": 0.0}, 3, "uneven", 3,
    ),
    "er_sde 1 ode": ("er_sde", {"order": 1, "scale": "ode"}, 1, "log_snr", 0),
    "er_sde 2 ode": ("er_sde", {"order": 2, "scale": "ode"}, 2, "uneven", 1),
    "ipndm": ("ipndm", {}, 4, "s", 3),
    "plms": ("plms", {}, 4, "s", 3),
    "pndm": ("pndm", {}, 4, "s", 3),
}  # fmt: skip


def _data():
    return oracles.mixture([1, 2], [[-0.8, 0.3], [0.6, -0.4]], [0.5, 0.4])


def _solver(name, process, **arguments):
    factory = SOLVERS[name]
    if "process" in inspect.signature(factory).parameters:
        arguments["process"] = process
    return factory(**arguments)


@functools.lru_cache
def _runner(case, path):
    """(x of the levels before and at the start [k, b, d], levels) -> the end.

    One program for any number of steps up to LONGEST, and for every path if it needs no process.
    The solver first sees the k levels before the start at their exact x, to fill its memory: what
    is measured is the method, not how it starts.
    """
    name, arguments, *_, before = ORDERS[case]
    process = path and Process(schedules.cosine(), PATHS[path])
    solver = noising.skipping(_solver(name, process, **arguments))

    @jax.jit
    def run(xs, levels):
        denoise, key = _exact, jax.random.key(0)
        state = solver.init(xs[0])
        for i in range(before):
            now, nxt = (jax.tree.map(lambda leaf, j=j: leaf[j], levels) for j in (i, i + 1))
            state = solver.step(key, denoise, xs[i], now, nxt, state)[1]
            if hasattr(state, "x"):  # UniPC would go on from its own correction of x
                state = state._replace(x=xs[i])
        rest = jax.tree.map(lambda leaf: leaf[before:], levels)
        return sampling.walk(key, solver, denoise, xs[before], rest, state)[0]

    return run


def _exact(x, level):
    return oracles.predict(_data(), x, level)


def _levels(process, even, n, before):
    """n + 1 levels between two fixed ones, and ``before`` more ahead of them."""
    low, high = -1.5, 2.0  # of log-SNR
    u = np.arange(-before, n + 1) / n
    if even == "s":
        s = np.exp(-low / 2) + u * (np.exp(-high / 2) - np.exp(-low / 2))
        return process.at_log_snr(jnp.asarray(-2 * np.log(s)))
    if even == "uneven":
        u = u + 0.06 * np.sin(2 * np.pi * u)
    return process.at_log_snr(jnp.asarray(low + u * (high - low)))


def _error(case, path, n):
    *_, even, before = ORDERS[case]
    process = Process(schedules.cosine(), PATHS[path])
    levels = jax.jit(lambda: _levels(process, even, n, before))()
    at = lambda i: jax.tree.map(lambda leaf: leaf[i], levels)
    start = jax.random.normal(jax.random.key(3), (4, 2)) * at(before).sigma
    to = lambda i: oracles.flow_map_numeric(_data(), start, at(before), at(i), 1024)
    xs = jnp.stack([to(i) for i in range(before + 1)])
    needs_process = "process" in inspect.signature(SOLVERS[ORDERS[case][0]]).parameters
    run = _runner(case, path if needs_process else None)
    end = run(xs, grids.pad(levels, LONGEST + before + 1))
    return np.abs(end - to(-1)).max() / float(at(-1).alpha)


@pytest.mark.parametrize("path", ["vp", "ve", "rectified"])
@pytest.mark.parametrize("case", ORDERS)
def test_error_falls_with_the_order_of_the_method(x64, case, path):
    order = ORDERS[case][2]
    coarse, fine = (_error(case, path, n) for n in (LONGEST // 2, LONGEST))
    assert fine < 0.1
    assert abs(np.log2(coarse / fine) - order) < 0.15, (coarse, fine, np.log2(coarse / fine))
