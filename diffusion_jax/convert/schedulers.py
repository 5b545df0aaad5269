"""The scheduler_config.json of a diffusers-layout folder: process, target, and sampler.

That file contains two things.  The noise schedule and the prediction type belong to the weights:
``process_of`` and ``target_of``.  The rest is the author's choice of a sampler, which a user may
change: ``sampling_of`` gives it in the names of ``core.solvers`` and ``core.grids``, so that images
are those of diffusers.  ``scheduler_fields`` has what becomes of each field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from diffusion_jax.convert.scheduler_fields import FIELDS, FILE, settings_of, unknown
from diffusion_jax.convert.scheduler_grids import (
    Settings,
    arguments,
    curve,
    multistep_grid,
    one_of,
    sigma_grid,
    spaced_grid,
    spacing,
)
from diffusion_jax.convert.scheduler_tables import process_of
from diffusion_jax.core import flow_maps, targets
from diffusion_jax.core.flow_maps import Boundary
from diffusion_jax.core.types import Target


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
    clean = s["set_alpha_to_one"]
    # Its steps of ⌊T/n⌋ are those of its levels, but where a last one would not leave the table.
    own = spacing(s) == "leading" and (not clean or not s["steps_offset"])
    return Sampling(
        "ddim()" if own else "scheduler_ddim()",
        spaced_grid(s),
        _end(clean, by_solver=not own),
        _bounds(s, keep_eps=True),
        elsewhere="" if own else "ddim()",
    )


def _ddpm(s: Settings) -> Sampling:
    kinds = {
        "fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"
    }  # fmt: skip
    kind = one_of(kinds, s, "variance_type")
    # Its last step adds noise unless it starts at the table's first level.
    first = spacing(s) == "linspace" or (spacing(s) == "leading" and not s["steps_offset"])
    return Sampling(
        "ddpm()" if kind == "fixed_small" else f"ddpm(variance={kind!r})",
        spaced_grid(s),
        _end(True, by_solver=kind == "fixed_large" and not first),
        _bounds(s),
    )


def _pndm(s: Settings) -> Sampling:
    average = {"epsilon": "eps", "v_prediction": "v"}.get(s["prediction_type"], "eps")
    warm = "" if s["skip_prk_steps"] else ", runge_kutta=True"
    return Sampling(
        f"scheduler_pndm(average={average!r}{warm})",
        spaced_grid(s),
        _end(s["set_alpha_to_one"], by_solver=True),
        elsewhere="pndm()" if warm else "plms()",
    )


def _in_sigma(s: Settings, solver: str, end: str = "clean") -> Sampling:
    """Schedulers that came from k-diffusion, in y = x/alpha."""
    if s.get("interpolation_type") == "log_linear" and not curve(s):
        end = "first"  # its n levels are the noisier of n + 1, which end there
    # y starts as s·noise, without the variance of the data.
    start = "noise" if spacing(s) in ("linspace", "trailing") else "prior"
    return Sampling(solver, sigma_grid(s), end, _bounds(s), start)


def _euler(s: Settings) -> Sampling:
    for name, known in (
        ("timestep_type", ("discrete", "continuous")),
        ("interpolation_type", ("linear", "log_linear")),
    ):
        if s[name] not in known:
            raise ValueError(unknown(name, s[name], known))
    return _in_sigma(s, "euler()", _end(_to_zero(s)))


def _dpm(s: Settings) -> Sampling:
    form, eta = one_of(ALGORITHMS, s, "algorithm_type")
    rule = one_of(RULES, s, "solver_type")
    order, zero = s["solver_order"], _to_zero(s)
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
    made = f"scheduler_dpm({arguments(**chosen).removeprefix(', ')})"
    plain = PLAIN_DPM[form, eta](order, rule)
    same = zero and order == 2 and (form, rule) != ("eps", "exact")
    return Sampling(
        plain if same else made,
        multistep_grid(s),
        _end(zero, by_solver=not zero),
        _bounds(s),
        elsewhere="" if same else plain,
    )


def _deis(s: Settings) -> Sampling:
    order = s["solver_order"]
    lower = "" if s["lower_order_final"] else ", lower_order_final=False"
    return Sampling(
        f"scheduler_deis(order={order}{lower})",
        multistep_grid(s),
        # It never goes to sigma = 0; along a curve it steps from the last level to that same one.
        "solver_last" if curve(s) else "solver_first",
        _bounds(s),
        elsewhere=f"deis(order={order}, variable='log_rho')",
    )


def _unipc(s: Settings) -> Sampling:
    variants = {"bh1": "bh1", "bh2": "bh2", **dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")}
    variant, order, zero = one_of(variants, s, "solver_type"), s["solver_order"], _to_zero(s)
    lower = "" if s["lower_order_final"] else ", lower_order_final=False"
    plain = f"unipc(order={order}, variant={variant!r})"
    made = f"scheduler_unipc(order={order}, variant={variant!r}{lower})"
    same = zero and order <= 2
    return Sampling(
        plain if same else made,
        multistep_grid(s),
        _end(zero) if zero else "solver_last" if curve(s) else "solver_first",
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


def _bounds(s: Settings, keep_eps: bool = False) -> tuple[str, ...]:
    """What is done to the predicted x0."""
    kept = {"keep_eps": True} if keep_eps else {}
    if s.get("thresholding"):
        ratio, most = float(s["dynamic_thresholding_ratio"]), float(s["sample_max_value"])
        return (f"dynamic_threshold({ratio}, 1.0, {most}{arguments(**kept)})",)
    if s.get("clip_sample"):
        size = float(s["clip_sample_range"])
        return (f"clip({-size}, {size}{arguments(**kept)})",)
    return ()


def _end(clean: bool, by_solver: bool = False) -> str:
    return ("solver_" if by_solver else "") + ("clean" if clean else "first")


def _to_zero(s: Settings) -> bool:
    return one_of({"zero": True, "sigma_min": False}, s, "final_sigmas_type")


PREDICTIONS: dict[str, Target] = {
    "epsilon": targets.eps(),
    "v_prediction": targets.v(),
    "sample": targets.x0(),
}
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

__all__ = ["Sampling", "boundary_of", "process_of", "sampling_of", "target_of"]
