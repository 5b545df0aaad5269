"""The grid that a scheduler_config.json describes, in the names of ``core.grids``.

``s`` is a file's settings, every field of its class (``scheduler_fields.settings_of``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.convert.scheduler_fields import FILE, unknown
from diffusion_jax.convert.scheduler_tables import first_is_short, process_of

Settings = Mapping[str, Any]
"""Every field of a file's class with its value."""


def sigma_grid(s: Settings) -> str:
    """Of the schedulers that came from k-diffusion, whose curves end where the spacing does."""
    at, shape = spacing(s), curve(s)
    rounds = s["_class_name"].startswith("KDPM2") and shape == "karras"
    told = "rounded" if rounds else "exact"
    if s.get("timestep_type") == "continuous" and s["prediction_type"] == "v_prediction":
        told = "log"
    offset = arguments(offset=s["steps_offset"]) if at == "leading" else ""
    log_linear = s.get("interpolation_type") == "log_linear"
    if shape:
        ends = "table" if log_linear else at
        shown = "" if told == "exact" else f", told={told!r}"
        return f"curve(shape={shape!r}, ends={ends!r}{offset}{_ends_of_curve(s, shape)}{shown})"
    if log_linear:
        return f"log_linear(spacing={at!r}{offset}{', log=True' if told == 'log' else ''})"
    if told == "log":
        return f"log_told(spacing={at!r}{offset})"
    return spaced_grid(s, linspace="fractional_linspace")


def spacing(s: Settings) -> str:
    """The file's, "leading", "linspace" or "trailing"."""
    return one_of(
        {name: name for name in ("leading", "linspace", "trailing")}, s, "timestep_spacing"
    )


def spaced_grid(
    s: Settings, leading: str = "leading", linspace: str = "linspace", last: int = 0
) -> str:
    """The grid of the spacing, by the names that its class has for two of them."""
    most = {"last": last} if last else {}
    grids = {
        "leading": f"{leading}({arguments(offset=s['steps_offset'], **most).removeprefix(', ')})",
        "linspace": f"{linspace}({arguments(**most).removeprefix(', ')})",
        "trailing": "trailing()",
    }
    return grids[spacing(s)]


def multistep_grid(s: Settings) -> str:
    """Of DPM-Solver, UniPC and DEIS, whose curves end where the table does."""
    shape = curve(s)
    if not shape:
        return spaced_grid(s, "dpm_leading", "dpm_linspace", _last_step(s))
    lu = shape == "lu"
    uncut = shape == "karras" or lu
    if s["_class_name"] == "DPMSolverMultistepScheduler":
        uncut = uncut and s["beta_schedule"] != "squaredcos_cap_v2"
    told = "rounded" if uncut else "cut"
    short = ", short=True" if not uncut and s["sigma_max"] is None and first_is_short(s) else ""
    shape = "exponential" if lu else shape
    ends = "" if lu else _ends_of_curve(s, shape)
    return f"curve(shape={shape!r}{ends}, told={told!r}{short})"


def _last_step(s: Settings) -> int:
    """The noisiest step that ``lambda_min_clipped`` leaves, or 0 for all; λ is log(alpha/sigma)."""
    least = s.get("lambda_min_clipped", -math.inf)
    if least == -math.inf:
        return 0
    process = process_of(s)
    steps = process.schedule.steps or 0
    half = np.asarray(process.schedule.log_snr(jnp.arange(1, steps + 1) / steps)) / 2
    last = int((half >= least).sum())
    if last < steps and (last < 2 or spacing(s) == "trailing"):
        raise ValueError(
            f"{FILE}: lambda_min_clipped = {least} leaves {last} of {steps} steps on the spacing "
            f"{s['timestep_spacing']!r}, which is not followed here; set timestep_spacing to "
            "'linspace', or lambda_min_clipped to -Infinity"
        )
    return last if last < steps else 0


def curve(s: Settings) -> str:
    """Name of the curve of sigmas in place of the spacing's, or ""."""
    chosen = [name for name in ("karras", "exponential", "beta") if s.get(f"use_{name}_sigmas")]
    if len(chosen) > 1:
        raise ValueError(
            f"{FILE}: use_{chosen[0]}_sigmas and use_{chosen[1]}_sigmas are both true; keep one"
        )
    if s.get("use_lu_lambdas") and chosen != ["karras"]:
        return "lu"
    return chosen[0] if chosen else ""


def _ends_of_curve(s: Settings, shape: str) -> str:
    if s["_class_name"] == "LMSDiscreteScheduler" and shape == "karras":
        return ""  # which does not look for them
    given = {
        name: float(s[field])
        for name, field in (("s_min", "sigma_min"), ("s_max", "sigma_max"))
        if s[field] is not None
    }
    return arguments(**given)


def arguments(**given: Any) -> str:
    """A comma and name=value for each that is given."""
    return "".join(f", {name}={value!r}" for name, value in given.items())


def one_of(known: Mapping[Any, Any], s: Settings, field: str) -> Any:
    """What a field's value stands for; ValueError if it is none of the known ones."""
    if s[field] not in known:
        raise ValueError(unknown(field, s[field], map(str, known)))
    return known[s[field]]
