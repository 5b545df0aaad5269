"""diffusers' schedulers on the toy denoiser: their loops, and ours beside them."""

import sys

import numpy as np
import reference
from numpy.testing import assert_allclose

from diffusion_jax.core import schedules
from diffusion_jax.core.process import Process

diffusers = reference.needed("diffusers")
BETAS = np.linspace(0.0001, 0.02, 1000)


def scheduler_of(name, **options):
    """diffusers' class of this name, in float64 and at our betas."""
    kind = getattr(diffusers, name)
    betas = None if options.get("rescale_betas_zero_snr") else BETAS
    with reference.double(kind):
        return kind(trained_betas=betas, **options)


def discrete(path):
    """Our process of the same betas."""
    return Process(schedules.discrete(BETAS), path)


def trace(scheduler, steps, target="epsilon", rows=None, **step_arguments):
    """A diffusers scheduler's own loop, in float64; make it within ``reference.double`` too.

    Returns (timesteps, x before every call and after the last [calls + 1, ...], s = sigma/alpha
    that the network was called at [calls]).  The network sees x where alpha² + sigma² = 1.
    """
    with reference.double(type(scheduler)):
        return _trace(scheduler, steps, target, rows, **step_arguments)


def _trace(scheduler, steps, target, rows, **step_arguments):
    scheduler.set_timesteps(steps)
    module = sys.modules[type(scheduler).__module__]
    x = reference.torch.tensor(reference.start())
    if getattr(scheduler, "sigmas", None) is not None and _is_sigma_space(scheduler):
        x = x * scheduler.sigmas[0]
    xs, seen = [x], []
    with reference.drawing(module, "randn_tensor", rows):
        for t in scheduler.timesteps:
            inner = scheduler.scale_model_input(x, t)
            s = _noise_ratio(scheduler, t)
            seen.append(s)
            alpha = 0.0 if np.isinf(s) else 1 / (1 + s**2) ** 0.5
            out = reference.output(inner, alpha, 1.0 if np.isinf(s) else s * alpha, target)
            x = scheduler.step(out, t, x, **step_arguments).prev_sample
            xs.append(x)
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


def compare(make, scheduler, steps, path, target="epsilon", rows=None, pick=None, **arguments):
    """Every x of the scheduler against ours; its last step, to sigma = 0, against our x0.

    Args:
        make: (noise, n) -> our solver.
        scheduler: diffusers'.
        steps: number of them.
        path: ve where x is y = x/alpha, vp elsewhere.
        target: what the network predicts.
        rows: noise in the order of its draws.
        pick: which of its calls start a step (those of two-stage solvers do not all).
        arguments: of its step.
    """
    times, theirs, s = trace(scheduler, steps, target, rows, **arguments)
    starts = np.arange(len(s)) if pick is None else np.arange(len(s))[pick]
    levels = reference.levels_of(s[starts], path, times[starts])
    xs, sample = reference.our_trace(make, theirs[0], levels, rows)
    assert_allclose(xs, theirs[starts], rtol=1e-9, atol=1e-9)
    assert_allclose(sample, theirs[-1], rtol=1e-9, atol=1e-9)
