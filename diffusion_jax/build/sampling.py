"""From ``config.sampler`` to a ``Sampler``: solver, levels and guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.apps.draw import SamplerOf
from diffusion_jax.apps.plan import Generator, Sampler, Weights
from diffusion_jax.core import grids
from diffusion_jax.core.guidance import ALWAYS_GUIDED, GUIDANCES, POSTS, Guidance
from diffusion_jax.core.sampling import STARTS
from diffusion_jax.core.solvers import NAMED, SOLVERS
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Denoiser, Model, NoiseLevel, Solver
from diffusion_jax.models.unet.plan import select
from diffusion_jax.spec import Config, build, parse

REFERENCE = "reference"
"""Of ``Weights.frozen``: the parameters of the worse model of autoguidance."""


def settled(section: Config, generator: Generator) -> Config:
    """``config.sampler`` with the author's setting for each field that is left open.

    Open is "" or None; the author's solver also brings its bounds on x0, after the chosen ones.
    Some of the author's solvers and ends are for the author's grid alone: where another solver or
    grid is chosen, ``sampling["elsewhere"]`` has what takes their place.
    """
    whole, own = section.copy_and_resolve_references().unlock(), generator.sampling
    if section.get("solver") or section.get("grid"):
        free = own.get("elsewhere", {})
        own = {**own, **{k: free[own[k]] for k in ("solver", "end") if own.get(k) in free}}
    for name, default in DEFAULTS.items():
        if whole.get(name) in ("", None):
            value = own.get(name)
            whole[name] = default if value in ("", None) else value
    if not section.get("solver"):
        whole.post = (*section.post, *own.get("post", ()))
    return whole


def sampler_of(
    section: Config, generator: Generator, reference: Generator | None = None
) -> SamplerOf:
    """(model, weights) -> the sampler that a settled ``config.sampler`` describes.

    It is made once, with its errors, but for a learned schedule, whose levels are a
    function of the weights, and for a reference.

    Args:
        section: of ``settled``.
        generator: what it draws with.
        reference: the worse model of autoguidance, whose parameters are
            ``weights.frozen["reference"]``.

    Raises:
        ValueError: for a field that names nothing or does not fit the others.
    """
    check(section, reference)
    scale, name = section.guidance_scale, parse(section.guidance, "sampler.guidance")[0]
    least = generator.sampling.get("least_scale", -math.inf)
    guided = name in ALWAYS_GUIDED or (scale != 1 and scale > least)
    fixed = None if generator.process_of else _of_process(section, generator.model)
    fixed_guidance = None if reference else guidance(section, generator.model, generator.net)

    def of(model: Model, weights: Weights) -> Sampler:
        solver, levels, (end, stepped) = fixed or _of_process(section, model)
        worse = reference and denoiser(
            reference.model_of(weights.frozen[REFERENCE]), weights.frozen[REFERENCE]
        )
        return Sampler(
            solver,
            levels,
            guidance=fixed_guidance or guidance(section, model, generator.net, worse),
            guided=guided,
            end=end,
            stepped=stepped,
            deviation=STARTS[section.start],
            contrast=section.contrast,
        )

    return of


def check(section: Config, reference: Generator | None = None) -> None:
    """Refuse a ``config.sampler`` whose fields name nothing or do not fit one another.

    Raises:
        ValueError: naming the field.
    """
    if not section.contrast > 0:
        contrast = section.contrast
        raise ValueError(f"config.sampler.contrast = {contrast} must be above 0; 1 changes nothing")
    for name, known in (("end", ENDS), ("start", STARTS)):
        if section[name] not in known:
            raise ValueError(
                f"config.sampler.{name} = {section[name]!r}; known are {', '.join(known)}"
            )
    _check_guidance(section, reference)


def _of_process(
    section: Config, model: Model
) -> tuple[Solver, NoiseLevel, tuple[NoiseLevel | None, bool]]:
    solver, levels = solver_and_levels(section, model)
    end = ENDS[section.end]
    return solver, levels, (end.level(model, levels), end.stepped)


def solver_and_levels(section: Config, model: Model) -> tuple[Solver, NoiseLevel]:
    """What ``config.sampler``'s solver, grid and steps name, for a model's process."""
    _check_order(section.solver, section.steps)
    grid = {"process": model.process, "n": section.steps}
    levels = build(grids.GRIDS, section.grid, "sampler.grid", **grid)
    context = {"process": model.process, "steps": section.steps, "levels": levels}
    return build(NAMED, section.solver, "sampler.solver", **context), levels


class End(NamedTuple):
    """Where sampling ends.

    Attributes:
        level: (model, levels of the grid) -> the level; None for clean data.
        stepped: whether the solver steps there with what it remembers, or it is the way along the
            last prediction.
    """

    level: Callable[[Model, NoiseLevel], NoiseLevel | None]
    stepped: bool = False


def _clean(model: Model, levels: NoiseLevel) -> None:
    del model, levels


def _first_of_table(model: Model, levels: NoiseLevel) -> NoiseLevel:
    del levels
    return model.process.at(jnp.asarray(1 / (model.process.schedule.steps or 1000)))


ENDS: dict[str, End] = {
    "clean": End(_clean),
    "first": End(_first_of_table),
    "solver_clean": End(_clean, stepped=True),
    "solver_first": End(_first_of_table, stepped=True),
    "solver_last": End(
        lambda model, levels: jax.tree.map(lambda leaf: leaf[-1], levels), stepped=True
    ),
}
"""Where sampling ends: at clean data, at the table's first level, as diffusers' DDIM, or at the
grid's last one."""

DEFAULTS = {
    "solver": "ddim()", "grid": "trailing", "end": "clean", "start": "prior", "steps": 50,
    "guidance": "cfg()", "guidance_scale": 1.0, "contrast": 1.0,
    "reference": "", "reference_params": "ema",
}  # fmt: skip
"""Of what neither the settings nor the source's author says."""


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


def guidance(
    section: Config, model: Model, module: Any, reference: Denoiser | None = None
) -> Guidance:
    """How ``config.sampler`` combines conditions, and the bounds on x0 around it.

    Args:
        section: ``config.sampler``.
        model: what draws.
        module: its network, whose layers guidance may name.
        reference: the worse model of autoguidance.
    """
    context = {
        "target": model.target,
        "reference": reference,
        "attention_gates": _gates(section, getattr(module, "attention_layers", ())),
        "block_gates": _gates(section, getattr(module, "blocks", ())),
    }
    combined = build(GUIDANCES, section.guidance, "sampler.guidance", **context)
    posts = [build(POSTS, spec, "sampler.post") for spec in section.post]

    def guided(denoiser, cond, null, scale):
        denoise = combined(denoiser, cond, null, scale)
        for post in posts:
            denoise = post(denoise)
        return denoise

    return guided


def _check_guidance(section: Config, reference: Any) -> None:
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


def _gates(section: Config, layers: tuple[str, ...]) -> Callable[[Any], jax.Array]:
    def gates(chosen):
        try:
            return jnp.asarray(select(layers, chosen))
        except ValueError as error:
            spec = section.guidance
            raise ValueError(f"config.sampler.guidance = {spec!r}: {error}") from None

    return gates
