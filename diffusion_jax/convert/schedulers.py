"""The scheduler_config.json of a diffusers-layout folder: process, target, and sampler.

That file contains two things.  The noise schedule and the prediction type belong to the weights:
``process_of`` and ``target_of``.  The rest is the author's choice of a sampler, which a user may
change: ``sampling_of`` gives it in the names of ``core.solvers`` and ``core.grids``, so that images
are those of diffusers.  ``scheduler_fields`` has what becomes of each field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.convert.scheduler_fields import FIELDS, FILE, settings_of, unknown
from diffusion_jax.convert.scheduler_tables import first_is_short, process_of
from diffusion_jax.core import flow_maps, targets
from diffusion_jax.core.flow_maps import Boundary
from diffusion_jax.core.types import Target

Settings = Mapping[str, Any]
"""Every field of a file's class with its value, ``scheduler_fields.settings_of``."""


class Sampling(NamedTuple):
    """The sampler that a checkpoint's author chose.

    Attributes:
        solver: for ``core.solvers.NAMED``, such as "dpmpp_2m()".
        grid: for ``core.grids.GRIDS``, such as "leading(offset=1)".
        end: for ``build.sampling.ENDS``: where the last step goes, and whether the solver takes it.
        post: for ``core.guidance.POSTS``: processing of x0, such as LCM's boundary.
        start: for ``core.sampling.STARTS``: the scale of x at the first level.
        elsewhere: the solver in place of ``solver`` on any other grid; "" for the same.
    """

    solver: str
    grid: str
    end: str = "clean"
    post: tuple[str, ...] = ()
    start: str = "prior"
    elsewhere: str = ""


def target_of(config: Mapping[str, Any]) -> Target:
    """The prediction target.

    Raises:
        ValueError: for an unsupported prediction type.
    """
    name = settings_of(config)["prediction_type"]
    if name not in PREDICTIONS:
        raise ValueError(unknown("prediction_type", name, PREDICTIONS))
    return PREDICTIONS[name]


def sampling_of(config: Mapping[str, Any]) -> Sampling:
    """The author's sampler in the names of this package.

    Raises:
        ValueError: for an unsupported scheduler, or a value of a field that is not followed.
    """
    s = settings_of(config)
    return SCHEDULERS[s["_class_name"]](s)


def boundary_of(config: Mapping[str, Any]) -> Boundary:
    """The boundary of a full LCM network, which is conditioned on guidance, when LCM samples it."""
    if config.get("_class_name") == "LCMScheduler":
        s = settings_of(config)
        return flow_maps.latent_consistency(
            float(s["timestep_scaling"]), steps=s["num_train_timesteps"]
        )
    return flow_maps.free()


def _ddim(s: Settings) -> Sampling:
    spacing, clean = _spacing(s), s["set_alpha_to_one"]
    # Its steps of ⌊T/n⌋ are those of its levels, but where a last one would not leave the table.
    own = spacing == "leading" and (not clean or not s["steps_offset"])
    return Sampling(
        "ddim()" if own else "scheduler_ddim()",
        _grid(s),
        _end(clean, by_solver=not own),
        _bounds(s, keep_eps=True),
        elsewhere="" if own else "ddim()",
    )


def _ddpm(s: Settings) -> Sampling:
    kinds = {
        "fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"
    }  # fmt: skip
    kind = _one_of(kinds, s, "variance_type")
    # Its last step adds noise unless it starts at the table's first level.
    first = _spacing(s) == "linspace" or (_spacing(s) == "leading" and not s["steps_offset"])
    return Sampling(
        "ddpm()" if kind == "fixed_small" else f"ddpm(variance={kind!r})",
        _grid(s),
        _end(True, by_solver=kind == "fixed_large" and not first),
        _bounds(s),
    )


def _pndm(s: Settings) -> Sampling:
    average = {"epsilon": "eps", "v_prediction": "v"}.get(s["prediction_type"], "eps")
    warm = "" if s["skip_prk_steps"] else ", runge_kutta=True"
    return Sampling(
        f"scheduler_pndm(average={average!r}{warm})",
        _grid(s),
        _end(s["set_alpha_to_one"], by_solver=True),
        elsewhere="pndm()" if warm else "plms()",
    )


def _in_sigma(s: Settings, solver: str, end: str = "clean", elsewhere: str = "") -> Sampling:
    """Schedulers that came from k-diffusion, in y = x/alpha."""
    spacing = _spacing(s)
    shape = _curve(s)
    rounds = s["_class_name"].startswith("KDPM2") and shape == "karras"
    told = "rounded" if rounds else "exact"
    if s.get("timestep_type") == "continuous" and s["prediction_type"] == "v_prediction":
        told = "log"
    where = _arguments(offset=s["steps_offset"]) if spacing == "leading" else ""
    grid = _grid(s, linspace="fractional_linspace")
    if shape:
        ends = "table" if s.get("interpolation_type") == "log_linear" else spacing
        shown = "" if told == "exact" else f", told={told!r}"
        grid = f"curve(shape={shape!r}, ends={ends!r}{where}{_ends_of_curve(s, shape)}{shown})"
    elif s.get("interpolation_type") == "log_linear":
        grid, end = f"log_linear(spacing={spacing!r}{where}{_log(told)})", "first"
    elif told == "log":
        grid = f"log_told(spacing={spacing!r}{where})"
    # y starts as s·noise, without the variance of the data.
    start = "noise" if spacing in ("linspace", "trailing") else "prior"
    return Sampling(solver, grid, end, _bounds(s), start, elsewhere)


def _log(told: str) -> str:
    return ", log=True" if told == "log" else ""


def _euler(s: Settings) -> Sampling:
    for name, known in (
        ("timestep_type", ("discrete", "continuous")),
        ("interpolation_type", ("linear", "log_linear")),
    ):
        if s[name] not in known:
            raise ValueError(unknown(name, s[name], known))
    return _in_sigma(s, "euler()", _end(_to_zero(s)))


def _dpm(s: Settings) -> Sampling:
    form, eta = _one_of(ALGORITHMS, s, "algorithm_type")
    rule = _one_of(RULES, s, "solver_type")
    order, zero = _order(s), _to_zero(s)
    if eta and order > 2:
        raise ValueError(
            f"{FILE}: solver_order = {order} with algorithm_type = {s['algorithm_type']!r} is not "
            "followed here, as the third-order term that diffusers has there does not fall to 0 "
            "with the step; set solver_order to 2"
        )
    chosen = {"order": order} | ({"form": form} if form != "x0" else {})
    chosen |= {"eta": eta} if eta else {}
    chosen |= {"rule": rule} if rule != "midpoint" else {}
    chosen |= {} if s["lower_order_final"] else {"lower_order_final": False}
    chosen |= {"euler_at_final": True} if s["euler_at_final"] and not zero else {}
    made = f"scheduler_dpm({_arguments(**chosen).removeprefix(', ')})"
    plain = PLAIN_DPM[form, eta](order, rule)
    same = zero and order == 2 and (form, rule) != ("eps", "exact")
    return Sampling(
        plain if same else made,
        _multistep_grid(s),
        _end(zero, by_solver=not zero),
        _bounds(s),
        elsewhere="" if same else plain,
    )


def _deis(s: Settings) -> Sampling:
    _one_of({"deis": 0, "dpmsolver": 0, "dpmsolver++": 0}, s, "algorithm_type")
    _one_of(dict.fromkeys(("logrho", *LEFT_OF_OTHERS), 0), s, "solver_type")
    order = _order(s)
    lower = "" if s["lower_order_final"] else ", lower_order_final=False"
    return Sampling(
        f"scheduler_deis(order={order}{lower})",
        _multistep_grid(s),
        # It never goes to sigma = 0; along a curve it steps from the last level to that same one.
        "solver_last" if _curve(s) else "solver_first",
        _bounds(s),
        elsewhere=f"deis(order={order}, variable='log_rho')",
    )


def _unipc(s: Settings) -> Sampling:
    variants = {"bh1": "bh1", "bh2": "bh2", **dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")}
    variant, order, zero = _one_of(variants, s, "solver_type"), _order(s), _to_zero(s)
    lower = "" if s["lower_order_final"] else ", lower_order_final=False"
    plain = f"unipc(order={order}, variant={variant!r})"
    made = f"scheduler_unipc(order={order}, variant={variant!r}{lower})"
    same = zero and order <= 2
    return Sampling(
        plain if same else made,
        _multistep_grid(s),
        _end(zero) if zero else "solver_last" if _curve(s) else "solver_first",
        _bounds(s),
        elsewhere="" if same else plain,
    )


def _lcm(s: Settings) -> Sampling:
    scale, steps = float(s["timestep_scaling"]), s["num_train_timesteps"]
    return Sampling(
        "consistency()",
        f"consistency(original={s['original_inference_steps']})",
        post=(*_bounds(s), f"latent_consistency(scale={scale}, steps={steps})"),
    )


def _spacing(s: Settings) -> str:
    return _one_of(
        {name: name for name in ("leading", "linspace", "trailing")}, s, "timestep_spacing"
    )


def _grid(s: Settings, leading: str = "leading", linspace: str = "linspace", last: int = 0) -> str:
    most = {"last": last} if last else {}
    grids = {
        "leading": f"{leading}({_arguments(offset=s['steps_offset'], **most).removeprefix(', ')})",
        "linspace": f"{linspace}({_arguments(**most).removeprefix(', ')})",
        "trailing": "trailing()",
    }
    return grids[_spacing(s)]


def _multistep_grid(s: Settings) -> str:
    shape = _curve(s)
    if not shape:
        return _grid(s, "dpm_leading", "dpm_linspace", _last_step(s))
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
    if last < steps and (last < 2 or _spacing(s) == "trailing"):
        raise ValueError(
            f"{FILE}: lambda_min_clipped = {least} leaves {last} of {steps} steps on the spacing "
            f"{s['timestep_spacing']!r}, which is not followed here; set timestep_spacing to "
            "'linspace', or lambda_min_clipped to -Infinity"
        )
    return last if last < steps else 0


def _curve(s: Settings) -> str:
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
    for name, value in given.items():
        if not 0 < value < math.inf:
            field = name.replace("s_", "sigma_")
            raise ValueError(f"{FILE}: {field} = {value} is not above 0; take it out of the file")
    return _arguments(**given)


def _bounds(s: Settings, keep_eps: bool = False) -> tuple[str, ...]:
    """What is done to the predicted x0."""
    kept = {"keep_eps": True} if keep_eps else {}
    if s.get("thresholding"):
        ratio, most = float(s["dynamic_thresholding_ratio"]), float(s["sample_max_value"])
        return (f"dynamic_threshold({ratio}, 1.0, {most}{_arguments(**kept)})",)
    if s.get("clip_sample"):
        size = float(s["clip_sample_range"])
        return (f"clip({-size}, {size}{_arguments(**kept)})",)
    return ()


def _arguments(**given: Any) -> str:
    """A comma and name=value for each that is given."""
    return "".join(f", {name}={value!r}" for name, value in given.items())


def _end(clean: bool, by_solver: bool = False) -> str:
    return ("solver_" if by_solver else "") + ("clean" if clean else "first")


def _to_zero(s: Settings) -> bool:
    return _one_of({"zero": True, "sigma_min": False}, s, "final_sigmas_type")


def _order(s: Settings) -> int:
    return _one_of({1: 1, 2: 2, 3: 3}, s, "solver_order")


def _one_of(known: Mapping[Any, Any], s: Settings, field: str) -> Any:
    if s[field] not in known:
        raise ValueError(unknown(field, s[field], map(str, known)))
    return known[s[field]]


PREDICTIONS: dict[str, Target] = {
    "epsilon": targets.eps(),
    "v_prediction": targets.v(),
    "sample": targets.x0(),
}
LEFT_OF_OTHERS = ("midpoint", "heun", "bh1", "bh2")
ALGORITHMS = {
    "dpmsolver++": ("x0", 0.0),
    "dpmsolver": ("eps", 0.0),
    "sde-dpmsolver++": ("x0", 1.0),
    "deis": ("x0", 0.0),
}
RULES = {"heun": "exact", **dict.fromkeys(("midpoint", "logrho", "bh1", "bh2"), "midpoint")}
PLAIN_DPM: dict[tuple[str, float], Callable[[int, str], str]] = {
    ("x0", 0.0): lambda order, rule: (
        "ddim()", f"dpmpp_2m(rule={rule!r})", "dpmpp_3m()")[order - 1],
    ("eps", 0.0): lambda order, rule: (
        "ddim()", "dpm_multistep(order=2)", "dpm_multistep(order=3)")[order - 1],
    ("x0", 1.0): lambda order, rule: (
        "ddim(eta=1.0)", f"dpmpp_2m_sde(rule={rule!r})")[order - 1],
}  # fmt: skip
"""(form, eta) -> (order, rule) -> the papers' solver, for any grid."""

SCHEDULERS: dict[str, Callable[[Settings], Sampling]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": partial(_in_sigma, solver="euler_ancestral()"),
    "HeunDiscreteScheduler": partial(_in_sigma, solver="heun()"),
    "LMSDiscreteScheduler": partial(_in_sigma, solver="lms()", end="solver_clean"),
    "KDPM2DiscreteScheduler": partial(_in_sigma, solver="dpm_2()"),
    "KDPM2AncestralDiscreteScheduler": partial(_in_sigma, solver="dpm_2_ancestral()"),
    "DPMSolverMultistepScheduler": _dpm,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "LCMScheduler": _lcm,
}
assert SCHEDULERS.keys() == FIELDS.keys()
