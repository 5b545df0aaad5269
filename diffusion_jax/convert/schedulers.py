"""The scheduler_config.json of a diffusers-layout folder: process, target, and sampler.

That file contains two things.  The noise schedule and the prediction type belong to the weights:
``process_of`` and ``target_of``.  The rest is the author's choice of a sampler, which a user may
change: ``sampling_of`` gives it in the names of ``core.solvers`` and ``core.grids``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import flow_maps, schedules, targets
from diffusion_jax.core.flow_maps import Boundary
from diffusion_jax.core.process import Process, vp
from diffusion_jax.core.types import Target

FILE = "scheduler_config.json"


class Sampling(NamedTuple):
    """The sampler that a checkpoint's author chose.

    Attributes:
        solver: for ``core.solvers.SOLVERS``, such as "dpmpp_2m()".
        grid: for ``core.grids.GRIDS``, such as "leading(offset=1)".
        ends_clean: whether the last step goes to sigma = 0, or to the table's first level.
        post: for ``core.guidance.POSTS``: processing of x0, such as LCM's boundary.
        start: for ``core.sampling.STARTS``: the scale of x at the first level.
    """

    solver: str
    grid: str
    ends_clean: bool
    post: tuple[str, ...] = ()
    start: str = "prior"


def process_of(config: Mapping[str, Any]) -> Process:
    """The table of noise levels, on the variance preserving path.

    Args:
        config: entries of scheduler_config.json.

    Raises:
        ValueError: for an unsupported table.
    """
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], np.float64)
    else:
        name = config.get("beta_schedule", "linear")
        if name not in BETAS:
            raise ValueError(_unknown("beta_schedule", name, BETAS))
        start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        betas = BETAS[name](_steps(config), start, end)
    schedule = schedules.discrete(betas)
    if config.get("rescale_betas_zero_snr", False):
        schedule = schedules.zero_terminal_snr(schedule)
    return Process(schedule, vp)


def target_of(config: Mapping[str, Any]) -> Target:
    """The prediction target.

    Raises:
        ValueError: for an unsupported prediction type.
    """
    name = config.get("prediction_type", "epsilon")
    if name not in PREDICTIONS:
        raise ValueError(_unknown("prediction_type", name, PREDICTIONS))
    return PREDICTIONS[name]


def sampling_of(config: Mapping[str, Any]) -> Sampling:
    """The author's sampler in the names of this package.

    Raises:
        ValueError: for an unsupported scheduler or spacing.
    """
    name = config.get("_class_name", "DDIMScheduler")
    if name not in SCHEDULERS:
        raise ValueError(_unknown("_class_name", name, SCHEDULERS))
    family = SCHEDULERS[name]
    spacing = config.get("timestep_spacing", family.spacing)
    known = ("karras", "leading", "linspace", "trailing")
    # Its y = x/alpha starts as s·noise there, without the variance of the data.
    bare = family.in_sigma and spacing in ("linspace", "trailing")
    if config.get("use_karras_sigmas"):
        spacing = "karras"
    if spacing not in known:
        raise ValueError(_unknown("timestep_spacing", spacing, known))
    offset = config.get("steps_offset", 0)
    grids = {"leading": f"{family.leading}(offset={offset})", "linspace": f"{family.linspace}()"}
    grid = grids.get(spacing, f"{spacing}()")
    return Sampling(
        solver=family.solver(config),
        grid=grid if family.grid is None else family.grid(config),
        ends_clean=family.ends_clean(config),
        post=() if family.post is None else (family.post(config),),
        start="noise" if bare else "prior",
    )


def boundary_of(config: Mapping[str, Any]) -> Boundary:
    """The boundary of a full LCM network, which is conditioned on guidance, when LCM samples it."""
    if config.get("_class_name") == "LCMScheduler":
        return flow_maps.latent_consistency(_scaling(config), steps=_steps(config))
    return flow_maps.free()


def _scaling(config: Mapping[str, Any]) -> float:
    return float(config.get("timestep_scaling", 10.0))


def _steps(config: Mapping[str, Any]) -> int:
    return config.get("num_train_timesteps", 1000)


def _unknown(field: str, value: Any, known: Any) -> str:
    return f"{FILE}: {field} = {value!r} is not known here; known are {', '.join(sorted(known))}"


def _by_alpha(config: Mapping[str, Any], default: bool = True) -> bool:
    return bool(config.get("set_alpha_to_one", default))


def _by_sigma(config: Mapping[str, Any]) -> bool:
    return config.get("final_sigmas_type", "zero") == "zero"


class _Family(NamedTuple):
    """A scheduler class there: the solver here, default spacing, whether it ends at sigma = 0."""

    solver: Callable[[Mapping[str, Any]], str]
    spacing: str
    ends_clean: Callable[[Mapping[str, Any]], bool] = _by_sigma
    leading: str = "leading"
    linspace: str = "linspace"
    in_sigma: bool = False  # whether it works in y = x/alpha
    grid: Callable[[Mapping[str, Any]], str] | None = None  # the only one, if there is only one
    post: Callable[[Mapping[str, Any]], str] | None = None


def _dpm(config: Mapping[str, Any]) -> str:
    kind, order = config.get("algorithm_type", "dpmsolver++"), config.get("solver_order", 2)
    rule = {"midpoint": "midpoint", "heun": "exact"}[config.get("solver_type", "midpoint")]
    made = {
        ("dpmsolver++", 1): "ddim()",
        ("dpmsolver++", 2): f"dpmpp_2m(rule={rule!r})",
        ("dpmsolver++", 3): "dpmpp_3m()",
        ("sde-dpmsolver++", 2): f"dpmpp_2m_sde(rule={rule!r})",
        ("dpmsolver", 2): "dpm_multistep(order=2)",
        ("dpmsolver", 3): "dpm_multistep(order=3)",
    }
    if (kind, order) not in made:
        known = [f"{name} of order {n}" for name, n in made]
        raise ValueError(_unknown("algorithm_type", f"{kind} of order {order}", known))
    return made[kind, order]


def _unipc(config: Mapping[str, Any]) -> str:
    order, variant = config.get("solver_order", 2), config.get("solver_type", "bh2")
    return f"unipc(order={order}, variant={variant!r})"


BETAS: dict[str, Callable[[int, float, float], np.ndarray]] = {
    "linear": schedules.linear_betas,
    "scaled_linear": schedules.scaled_linear_betas,
    "squaredcos_cap_v2": lambda steps, start, end: schedules.cosine_betas(steps),
}
PREDICTIONS: dict[str, Target] = {
    "epsilon": targets.eps(),
    "v_prediction": targets.v(),
    "sample": targets.x0(),
}
_in_sigma = partial(_Family, spacing="linspace", linspace="fractional_linspace", in_sigma=True)
_multistep = partial(_Family, spacing="linspace", leading="dpm_leading", linspace="dpm_linspace")
SCHEDULERS: dict[str, _Family] = {
    "DDIMScheduler": _Family(lambda config: "ddim()", "leading", _by_alpha),
    "DDPMScheduler": _Family(lambda config: "ddpm()", "leading"),
    "PNDMScheduler": _Family(
        lambda config: "plms()" if config.get("skip_prk_steps") else "pndm()",
        "leading",
        partial(_by_alpha, default=False),
    ),
    "EulerDiscreteScheduler": _in_sigma(lambda config: "euler()"),
    "EulerAncestralDiscreteScheduler": _in_sigma(lambda config: "euler_ancestral()"),
    "HeunDiscreteScheduler": _in_sigma(lambda config: "heun()"),
    "LMSDiscreteScheduler": _in_sigma(lambda config: "lms()"),
    "KDPM2DiscreteScheduler": _in_sigma(lambda config: "dpm_2()"),
    "DPMSolverMultistepScheduler": _multistep(_dpm),
    "UniPCMultistepScheduler": _multistep(_unipc),
    "DEISMultistepScheduler": _multistep(lambda config: "deis()"),
    "LCMScheduler": _Family(
        lambda config: "consistency()",
        "leading",
        grid=lambda c: f"consistency(original={c.get('original_inference_steps', 50)})",
        post=lambda c: f"latent_consistency(scale={_scaling(c)}, steps={_steps(c)})",
    ),
}
