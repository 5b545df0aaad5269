"""One toy denoiser for both sides, and the traces of the independent samplers on it."""

import importlib
import os
import sys
import types
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import sampling
from diffusion_jax.core.types import NoiseLevel, Prediction

if os.environ.get("REQUIRE_PARITY") == "1":  # there a missing package is a failure
    import torch
else:
    torch = pytest.importorskip("torch")


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


def table_noise(rows, log_snr):
    """A Noise: row i for a step that ends at log_snr[i]."""
    rows, log_snr = jnp.asarray(rows), jnp.asarray(log_snr)
    return lambda key, x, now, nxt: rows[jnp.argmin(jnp.abs(log_snr - nxt.log_snr))]


def our_trace(solver, x, levels):
    """x at every level [n, ...], and the sample."""
    run = jax.jit(
        lambda x, levels: sampling.trajectory(jax.random.key(0), solver, denoise, x, levels)
    )
    xs, x0s = run(jnp.asarray(x), levels)
    return np.asarray(xs), np.asarray(x0s[-1])


def k_sampling():
    """k_diffusion.sampling alone: the package's __init__ wants training-time dependencies."""
    if "k_diffusion.sampling" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            if os.environ.get("REQUIRE_PARITY") == "1":
                raise ModuleNotFoundError("k_diffusion")
            pytest.skip("k_diffusion is not installed")
        package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
        package.__path__ = list(spec.submodule_search_locations)
        utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
        package.utils = utils
        sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")


def k_trace(name, sigmas, noises=None, noise_sampler=None, **arguments):
    """k-diffusion's sampler: x at every sigma [n, ...], and its result."""
    module = k_sampling()
    sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    seen = []
    model = lambda x, sigma: posterior_mean(x, sigma[0], torch.exp)
    if noise_sampler is not None:
        arguments["noise_sampler"] = noise_sampler
    x = torch.tensor(start()) * sigmas[0]
    rows = iter(torch.tensor(noises)) if noises is not None else None
    original = torch.randn_like
    if rows is not None:
        torch.randn_like = lambda x: next(rows)
    try:
        end = getattr(module, name)(
            model, x, sigmas, callback=lambda d: seen.append(d["x"].clone()), disable=True,
            **arguments,
        )  # fmt: skip
    finally:
        torch.randn_like = original
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


def diffusers_trace(scheduler, steps, target="epsilon", rows=None, **step_arguments):
    """A diffusers scheduler's own loop, in float64; make the scheduler within ``double`` too.

    Returns (timesteps, x before every call and after the last [calls + 1, ...], s = sigma/alpha
    that the network was called at [calls]).  The network sees x where alpha² + sigma² = 1.
    """
    with double(type(scheduler)):
        return _trace(scheduler, steps, target, rows, **step_arguments)


def _trace(scheduler, steps, target, rows, **step_arguments):
    scheduler.set_timesteps(steps)
    module = sys.modules[type(scheduler).__module__]
    draws = iter(torch.tensor(rows)) if rows is not None else None
    original = getattr(module, "randn_tensor", None)
    if draws is not None:
        module.randn_tensor = lambda *a, **k: next(draws)
    x = torch.tensor(start())
    if getattr(scheduler, "sigmas", None) is not None and _is_sigma_space(scheduler):
        x = x * scheduler.sigmas[0]
    xs, seen = [x], []
    try:
        for t in scheduler.timesteps:
            inner = scheduler.scale_model_input(x, t)
            s = _noise_ratio(scheduler, t)
            seen.append(s)
            alpha = 0.0 if np.isinf(s) else 1 / (1 + s**2) ** 0.5
            out = output(inner, alpha, 1.0 if np.isinf(s) else s * alpha, target)
            x = scheduler.step(out, t, x, **step_arguments).prev_sample
            xs.append(x)
    finally:
        if original is not None:
            module.randn_tensor = original
    return scheduler.timesteps.numpy(), np.stack([x.numpy() for x in xs]), np.array(seen)


def _is_sigma_space(scheduler):
    """Whether x is y = x/alpha, so that the network's input is scaled."""
    return "Discrete" in type(scheduler).__name__ and "Flow" not in type(scheduler).__name__


def _noise_ratio(scheduler, t):
    if _is_sigma_space(scheduler):
        second = not getattr(scheduler, "state_in_first_order", True)
        table = scheduler.sigmas
        if second and hasattr(scheduler, "sigmas_interpol"):
            table = scheduler.sigmas_interpol
            if "Ancestral" in type(scheduler).__name__:
                return float(table[scheduler.step_index - 1])
        return float(table[scheduler.step_index])
    cumulative = float(scheduler.alphas_cumprod[int(t)])
    if getattr(scheduler, "sigmas", None) is not None and hasattr(scheduler, "_step_index"):
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        return float(scheduler.sigmas[scheduler.step_index])
    return np.inf if cumulative == 0 else ((1 - cumulative) / cumulative) ** 0.5
