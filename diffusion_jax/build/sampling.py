"""From a config to what draws samples: model, solver, levels and guidance."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.build.experiment import Experiment, data_shape, network
from diffusion_jax.build.process import learned_schedule
from diffusion_jax.core import grids
from diffusion_jax.core.guidance import GUIDANCES, POSTS, Guidance
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Denoiser, Model, NoiseLevel, Params, Solver
from diffusion_jax.models.unet.plan import select
from diffusion_jax.spec import Config, build, parse


def sampler_of(
    config: Config, experiment: Experiment
) -> Callable[[Params], tuple[Model, Solver, NoiseLevel]]:
    """params -> the model, the solver and the levels, of the process that belongs to params.

    They are made once, but for a learned schedule, whose levels are a function of params.
    """
    fixed = (experiment.model, *sampler(config, experiment.model))
    if learned_schedule(config) is None:
        return lambda params: fixed

    def at(params: Params) -> tuple[Model, Solver, NoiseLevel]:
        model = experiment.model_of(params)
        return model, *sampler(config, model)

    return at


def sampler(config: Config, model: Model) -> tuple[Solver, NoiseLevel]:
    """The solver and the levels that ``config.sampler`` names."""
    section = config.sampler
    context = {"process": model.process, "steps": section.steps}
    _check_order(section.solver, section.steps)
    solver = build(SOLVERS, section.solver, "sampler.solver", **context)
    grid = {"process": model.process, "n": section.steps}
    return solver, build(grids.GRIDS, section.grid, "sampler.grid", **grid)


def _check_order(spec: str, steps: int) -> None:
    name, args, given = parse(spec, "sampler.solver")
    if name not in SOLVERS or args or "order" not in (known := signature(SOLVERS[name]).parameters):
        return
    order = given.get("order", known["order"].default)
    if steps >= 1 and order > steps:
        raise ValueError(
            f"config.sampler.solver = {spec!r} is of order {order}, more than sampler.steps = "
            f"{steps}; ask for at least {order} steps, or a lower order"
        )


def guidance(config: Config, model: Model, reference: Denoiser | None = None) -> Guidance:
    """How ``config.sampler`` weighs conditions, and the bounds on x0 around it.

    Args:
        config: the experiment.
        model: what it describes.
        reference: the worse model of autoguidance.
    """
    return weighing(config, model, network(config, data_shape(config)[-1]), reference)


def weighing(
    config: Config, model: Model, module: Any, reference: Denoiser | None = None
) -> Guidance:
    """``guidance`` of a network that is not the config's own; its module has the hooks' names."""
    section = config.sampler
    _check_guidance(config, reference)
    context = {
        "target": model.target,
        "reference": reference,
        "attention_gates": _gates(config, getattr(module, "attention_layers", ())),
        "block_gates": _gates(config, getattr(module, "blocks", ())),
    }
    weigh = build(GUIDANCES, section.guidance, "sampler.guidance", **context)
    posts = [build(POSTS, spec, "sampler.post") for spec in section.post]

    def guided(denoiser, cond, null, scale):
        denoise = weigh(denoiser, cond, null, scale)
        for post in posts:
            denoise = post(denoise)
        return denoise

    return guided


def _check_guidance(config: Config, reference: Denoiser | None) -> None:
    section = config.sampler
    name = parse(section.guidance, "sampler.guidance")[0]
    if name == "cfg_plus_plus" and not 0 <= section.guidance_scale <= 1:
        raise ValueError(
            f"config.sampler.guidance_scale = {section.guidance_scale} is too much for "
            "guidance = 'cfg_plus_plus()', which takes 0 to 1; try 0.6"
        )
    if (name == "autoguidance") != (reference is not None):
        raise ValueError(
            f"config.sampler.guidance = {section.guidance!r} and sampler.reference = "
            f"{section.reference!r} do not fit: 'autoguidance()' needs the folder of a worse run, "
            "and nothing else reads one"
        )


def _gates(config: Config, layers: tuple[str, ...]) -> Callable[[Any], jax.Array]:
    def gates(chosen):
        try:
            return jnp.asarray(select(layers, chosen))
        except ValueError as error:
            spec = config.sampler.guidance
            raise ValueError(f"config.sampler.guidance = {spec!r}: {error}") from None

    return gates
