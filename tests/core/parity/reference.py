"""One toy denoiser for both sides, and the traces of the independent samplers on it."""

import importlib
import os
import runpy
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import sampling
from diffusion_jax.core.types import NoiseLevel, Prediction

ROOM = 50  # levels of the walk that is compiled: shorter ones are padded, so that they share it
LOADER = Path(__file__).parents[3] / "scripts" / "benchmarks" / "load_k_diffusion.py"


def needed(name):
    """The package, without which tests are skipped, or fail under REQUIRE_PARITY=1."""
    if os.environ.get("REQUIRE_PARITY") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name)


torch = needed("torch")


def posterior_mean(y, s, exp):
    """E[x0 | y = x0 + s·eps] of 0.3 N(-1, 0.2) + 0.7 N(0.8, 0.4), number by number."""
    v1, v2 = 0.2 + s**2, 0.4 + s**2
    odds = (0.7 / 0.3) * (v1 / v2) ** 0.5 * exp((y + 1) ** 2 / (2 * v1) - (y - 0.8) ** 2 / (2 * v2))
    share = odds / (1 + odds)
    first = -1 + 0.2 / v1 * (y + 1)
    second = 0.8 + 0.4 / v2 * (y - 0.8)
    return first + share * (second - first)


def denoise(x, level):
    """The same as a Denoise, on any path; at alpha = 0 the data's mean."""
    alpha = jnp.where(level.alpha > 0, level.alpha, 1.0)
    found = posterior_mean(x / alpha, level.sigma / alpha, jnp.exp)
    x0 = jnp.where(level.alpha > 0, found, 0.3 * -1 + 0.7 * 0.8)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def output(x, alpha, sigma, target):
    """What a torch network of this target says of x = alpha·x0 + sigma·eps."""
    x0 = posterior_mean(x / alpha, sigma / alpha, torch.exp) if alpha > 0 else 0 * x + 0.26
    eps = (x - alpha * x0) / sigma
    return {
        "epsilon": lambda: eps,
        "sample": lambda: x0,
        "v_prediction": lambda: alpha * eps - sigma * x0,
        "flow_prediction": lambda: eps - x0,
    }[target]()


def noise_rows(n, shape=(3, 4)):
    return np.random.default_rng(1).normal(size=(n, *shape))


def start(shape=(3, 4)):
    return np.random.default_rng(0).normal(size=shape)


def level_at(alpha, sigma, t=0.5):
    """NoiseLevels of given alpha and sigma, as float64."""
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    with np.errstate(divide="ignore"):
        log_snr = 2 * (np.log(alpha) - np.log(sigma))
    t = np.broadcast_to(np.asarray(t, np.float64), alpha.shape)
    return NoiseLevel(*(jnp.asarray(leaf) for leaf in (t, log_snr, alpha, sigma)))


def levels_of(s, path, times=0.0):
    """NoiseLevels of given s = sigma/alpha, as float64, at diffusers' timesteps (0 is our 1/T)."""
    s = np.asarray(s, np.float64)
    with np.errstate(divide="ignore"):
        log_snr = jnp.asarray(-2 * np.log(s))
    t = np.broadcast_to((np.asarray(times, np.float64) + 1) / 1000, s.shape)
    return NoiseLevel(jnp.asarray(t), log_snr, *path(log_snr))


def table_noise(rows, log_snr):
    """A Noise: row i for a step that ends at log_snr[i]."""
    rows, log_snr = jnp.asarray(rows), jnp.asarray(log_snr)
    return lambda key, x, now, nxt: rows[jnp.argmin(jnp.abs(log_snr - nxt.log_snr))]


def _padded(leaf, n):
    """Up to n rows, repeating the last."""
    leaf = np.asarray(leaf, np.float64)
    return np.concatenate([leaf, np.repeat(leaf[-1:], max(n - len(leaf), 0), 0)])


def our_trace(make, x, levels, rows=None, ends=None):
    """x at every level [n, ...], and the sample.

    Args:
        make: (noise, n) -> solver; both are traced.
        x: at levels[0].
        levels: n of them.
        rows: the noise's values; without them it is NaN.
        ends: log-SNR at the end of the step that row i is for; by default of the steps in turn.
    """
    n = len(levels.t)
    if rows is None:
        rows = np.full((1, *x.shape), np.nan)
    if ends is None:
        ends = np.r_[levels.log_snr[1:], 1e9]
    rows, ends = (_padded(leaf, 2 * ROOM) for leaf in (rows, ends[: len(rows)]))
    levels = jax.tree.map(lambda leaf: _padded(leaf, ROOM), levels)

    def run(x, levels, rows, ends, n):
        solver = make(table_noise(rows, ends), n)
        return sampling.trajectory(jax.random.key(0), solver, denoise, x, levels)

    xs, x0s = compiled(run, np.asarray(x), levels, rows, ends, np.int32(n))
    return np.asarray(xs)[:n], np.asarray(x0s)[n - 1]


_PROGRAMS = {}


def compiled(f, *args):
    """f(*args), jitted at low effort, and not again if another f has given the same program."""
    lowered = jax.jit(f, keep_unused=True).lower(*args)  # or the text does not say which it uses
    program = lowered.as_text(), lowered.out_tree
    if program not in _PROGRAMS:
        _PROGRAMS[program] = lowered.compile({"xla_backend_optimization_level": "0"})
    return _PROGRAMS[program](*args)


def k_sampling():
    """k_diffusion.sampling, by the loader that the benchmark uses; skips where it is absent."""
    found = runpy.run_path(str(LOADER))["k_diffusion_sampling"]()
    return needed("k_diffusion") if found is None else found


def drawing(module, name, rows):
    """Within, the module's function of this name returns the rows in turn (its own if None)."""
    if rows is None:
        return nullcontext()
    draws = iter(torch.tensor(rows))
    return mock.patch.object(module, name, lambda *a, **k: next(draws))


def k_trace(name, sigmas, noises=None, noise_sampler=None, **arguments):
    """k-diffusion's sampler: x at every sigma [n, ...], and its result."""
    module = k_sampling()
    sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    seen = []
    model = lambda x, sigma: posterior_mean(x, sigma[0], torch.exp)
    if noise_sampler is not None:
        arguments["noise_sampler"] = noise_sampler
    x = torch.tensor(start()) * sigmas[0]
    with drawing(torch, "randn_like", noises):
        end = getattr(module, name)(
            model, x, sigmas, callback=lambda d: seen.append(d["x"].clone()), disable=True,
            **arguments,
        )  # fmt: skip
    return np.stack([x.numpy() for x in seen]), end.numpy()


class _Double:
    """numpy or torch, in which float32 is float64."""

    def __init__(self, module, double):
        self._module, self.float32 = module, double

    def __getattr__(self, name):
        return getattr(self._module, name)


@contextmanager
def double(kind):
    """Within, the module that defines a scheduler class computes in float64 where it says float32.

    Its tables, its grids and its casts of x are float32 by name, which hides errors below 1e-4.
    """
    module = sys.modules[kind.__module__]
    own = {"np": _Double(np, np.float64), "torch": _Double(torch, torch.float64)}
    before = {name: getattr(module, name) for name in own if hasattr(module, name)}
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for name in before:
            setattr(module, name, own[name])
        yield
    finally:
        torch.set_default_dtype(default)
        for name, value in before.items():
            setattr(module, name, value)
