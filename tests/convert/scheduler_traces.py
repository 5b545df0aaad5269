"""diffusers' schedulers and the samplers read from their configs, on one cheap network, float64."""

import functools
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "core" / "parity"))
import reference

from diffusion_jax.build.sampling import ENDS
from diffusion_jax.convert.schedulers import PREDICTIONS, process_of, sampling_of, target_of
from diffusion_jax.core import sampling, targets
from diffusion_jax.core.grids import GRIDS, truncate
from diffusion_jax.core.guidance import POSTS
from diffusion_jax.core.solvers import NAMED
from diffusion_jax.spec import build

torch = reference.torch
diffusers = reference.needed("diffusers")
diffusers.utils.logging.set_verbosity_error()
SHAPE = (1, 1, 2, 5)
TARGETS = tuple(PREDICTIONS.values())


def network(x, t, module):
    """A smooth function of x and of the timestep told, which a step of one moves by 2%."""
    return module.tanh(1.3 * x + 0.7 * module.sin(t / 40)) + 0.3 * module.cos(0.9 * x - t / 90)


def noises(n):
    rng = np.random.default_rng(3)
    return rng.normal(size=SHAPE), rng.normal(size=(n, *SHAPE))


def theirs(config, n, strength=None):
    """diffusers' loop over a config: its last x, as alpha·x0 + sigma·eps.

    With a strength it is image to image, as its pipelines begin that.

    All is in float64, but for timesteps that are whole: those are of the scheduler as it is, whose
    float32 decides how they are rounded.

    Raises:
        Exception: whatever diffusers does.
    """
    kind = getattr(diffusers, config["_class_name"])
    told = kind.from_config(config)
    told.set_timesteps(n)
    with reference.double(kind):
        scheduler = kind.from_config(config)
        scheduler.set_timesteps(n)
        if not told.timesteps.is_floating_point():
            scheduler.timesteps = told.timesteps
        return _loop(scheduler, n, strength)


def _loop(scheduler, n, strength):
    module = sys.modules[type(scheduler).__module__]
    first, rows = noises(2 * n)
    first, timesteps = torch.tensor(first), scheduler.timesteps
    x = first * scheduler.init_noise_sigma
    if strength is not None:
        begin = n - min(int(n * strength), n)
        timesteps = timesteps[begin * scheduler.order :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin * scheduler.order)
        rows = rows[begin:]
        x = scheduler.add_noise(torch.tensor(picture()), first, timesteps[:1])
    with reference.drawing(
        module, "randn_tensor", rows if hasattr(module, "randn_tensor") else None
    ):
        for t in timesteps:
            out = network(scheduler.scale_model_input(x, t), t.double(), torch)
            x = scheduler.step(out, t, x).prev_sample
    return np.asarray(x) * _alpha(scheduler)


def picture():
    return np.random.default_rng(4).normal(size=SHAPE) * 0.6


def _alpha(scheduler):
    """Of the level that they end at, where x is y = x/alpha."""
    if "Discrete" not in type(scheduler).__name__:
        return 1.0
    end = float(scheduler.sigmas[scheduler.step_index])
    return 1 / (1 + end**2) ** 0.5


_PROCESS = (
    "_class_name", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule",
    "trained_betas", "rescale_betas_zero_snr",
)  # fmt: skip


@functools.cache
def _process(key):
    return process_of(dict(key))


def ours(config, n, strength=None):
    """Our sampler of a config, on the same network, noise and picture: the last x."""
    chosen = sampling_of(config)
    key = tuple((k, config[k]) for k in _PROCESS if k in config)
    process = _process(key)
    levels = build(GRIDS, chosen.grid, "grid", process=process, n=n)
    end = ENDS[chosen.end]
    to = end.level(SimpleNamespace(process=process), levels)
    taken = levels if strength is None else truncate(levels, strength)
    first, rows = noises(2 * n)
    run = _program(key, chosen.solver, chosen.post, end.stepped, n)
    by = [target_of(config) is target for target in TARGETS]
    at = jax.tree.map(lambda leaf: leaf[0], taken)
    x = sampling.STARTS[chosen.start](at) * first
    if strength is not None:
        x = at.alpha * picture() + at.sigma * first
    return np.asarray(run(x, rows, levels, taken, to, jnp.asarray(by)))


@functools.cache
def _program(key, solver, posts, stepped, n):
    """The sampler as a function of all that does not change its structure."""
    process = _process(key)
    steps = process.schedule.steps

    def run(x, rows, levels, taken, to, by):
        def plain(x, level):
            out = network(x, level.t * steps - 1, jnp)
            each = [targets.predict(target, out, x, level) for target in TARGETS]
            return jax.tree.map(lambda *values: jnp.select(list(by), values), *each)

        denoise = plain
        for post in posts:
            denoise = build(POSTS, post, "post")(denoise)
        noise = lambda key, x, now, nxt: rows[jnp.argmin(jnp.abs(levels.log_snr - now.log_snr))]
        given = {"process": process, "steps": n, "levels": levels, "noise": noise}
        made = build(NAMED, solver, "solver", **given)
        return sampling.sample(jax.random.key(0), made, denoise, x, taken, to, stepped)

    return jax.jit(run)
