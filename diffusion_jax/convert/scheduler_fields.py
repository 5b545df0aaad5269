"""The fields of a scheduler_config.json, class by class: followed, restricted, or equivalent.

diffusers gives a class the fields that its ``__init__`` takes, fills in the rest by its defaults
and keeps the others unread, so that a file may hold leftovers of any other class.  ``FIELDS`` has
every field that a class takes, as of version 0.42, and the two more that some look for among the
leftovers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from diffusion_jax.convert.config_fields import (
    FLAG,
    NAME,
    NUMBER,
    POSITIVE,
    Equivalent,
    Fields,
    Followed,
    Kind,
    Only,
    checked,
    optional,
    several,
    whole,
)

FILE = "scheduler_config.json"


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each field of the file's class that matters, with ``_class_name``.

    Args:
        config: entries of scheduler_config.json.

    Raises:
        ValueError: for a class that is not read, or a value that is refused or none of its field.
    """
    name = config.get("_class_name", "DDIMScheduler")
    if not isinstance(name, str) or name not in FIELDS:
        raise ValueError(unknown("_class_name", name, FIELDS))
    unset = config.get("_use_default_values")
    unset = unset if isinstance(unset, (list, tuple)) else ()
    given = {k: v for k, v in config.items() if k not in unset and not k.startswith("_")}
    for key in given.keys() - LEFTOVERS:
        warnings.warn(
            f"{FILE}: {key} = {given[key]!r} is a field of no scheduler that is known here; it is "
            "passed over",
            stacklevel=3,
        )
    own = {k: v for k, v in given.items() if k in FIELDS[name]}
    settings = checked(own, FIELDS[name], FILE)
    if settings["trained_betas"] is not None:
        count = len(settings["trained_betas"])
        if own.get("num_train_timesteps", count) != count:
            raise ValueError(
                f"{FILE}: num_train_timesteps = {own['num_train_timesteps']} but trained_betas has "
                f"{count} numbers; let the first be the number of the second"
            )
        settings["num_train_timesteps"] = count
    return {"_class_name": name, **settings}


def unknown(field: str, value: Any, known: Any) -> str:
    """The sentence that refuses a value which is none of the known ones."""
    return f"{FILE}: {field} = {value!r} is not known here; known are {', '.join(sorted(known))}"


_MAYBE = optional(FLAG)  # some files have null for false
_SHARE = Kind("from 0 to 1", lambda x: type(x) in (int, float) and 0 <= x <= 1)
_BETA = Kind("between 0 and 1", lambda x: type(x) in (int, float) and 0 < x < 1)
_LEAST = Kind("a number, or -Infinity", lambda x: NUMBER.fits(x) or x == -math.inf)

_TABLE: Fields = {
    "num_train_timesteps": Followed(1000, whole(1, 10**5)),
    "beta_start": Followed(0.0001, _BETA),
    "beta_end": Followed(0.02, _BETA),
    "beta_schedule": Followed("linear", NAME),
    "trained_betas": Followed(None, optional(several(_BETA, 10**5))),
    "prediction_type": Followed("epsilon", NAME),
}
_TABLE_OF_TWO_STAGES: Fields = {
    **_TABLE, "beta_start": Followed(0.00085, _BETA), "beta_end": Followed(0.012, _BETA)
}  # fmt: skip
_ZERO_SNR: Fields = {"rescale_betas_zero_snr": Followed(False, FLAG)}
_OFFSET = {"steps_offset": Followed(0, whole(0, 10**5))}
_LEADING: Fields = {"timestep_spacing": Followed("leading", NAME), **_OFFSET}
_LINSPACE: Fields = {"timestep_spacing": Followed("linspace", NAME), **_OFFSET}
_CURVES: Fields = {
    "use_karras_sigmas": Followed(False, _MAYBE),
    "use_exponential_sigmas": Followed(False, _MAYBE),
    "use_beta_sigmas": Followed(False, _MAYBE),
}
_ENDS_OF_CURVES: Fields = {
    "sigma_min": Followed(None, optional(POSITIVE)),
    "sigma_max": Followed(None, optional(POSITIVE)),
}
_THRESHOLD: Fields = {
    "thresholding": Followed(False, FLAG),
    "dynamic_thresholding_ratio": Followed(0.995, _SHARE),
    "sample_max_value": Followed(1.0, POSITIVE),
}
_CLIP: Fields = {
    "clip_sample": Followed(True, FLAG),
    "clip_sample_range": Followed(1.0, POSITIVE),
}
_NO_CLIP: Fields = {**_CLIP, "clip_sample": Followed(False, FLAG)}
_MULTISTEP: Fields = {
    "solver_order": Followed(2, whole(1, 3)),
    "lower_order_final": Followed(True, FLAG),
}
_MOVES = Equivalent("it moves flow sigmas alone")
_FLOW: Fields = {
    "use_flow_sigmas": Only(
        (False, None), "take a scheduler of a noise schedule in place of rectified flow"
    ),
    "flow_shift": _MOVES,
    "use_dynamic_shifting": _MOVES,
    "time_shift_type": _MOVES,
}
_OF_DISTILLATION = Equivalent("its levels are those of distillation")

_ONE = "of these any is the same here, as it is left by another class"

FIELDS: dict[str, Fields] = {
    "DDIMScheduler": {
        **_TABLE, **_ZERO_SNR, **_LEADING, **_CLIP, **_THRESHOLD,
        "set_alpha_to_one": Followed(True, FLAG),
    },
    "DDPMScheduler": {
        **_TABLE, **_ZERO_SNR, **_LEADING, **_CLIP, **_THRESHOLD,
        "variance_type": Followed("fixed_small", NAME),
    },
    "PNDMScheduler": {
        **_TABLE, **_LEADING,
        "skip_prk_steps": Followed(False, FLAG), "set_alpha_to_one": Followed(False, FLAG),
    },
    "EulerDiscreteScheduler": {
        **_TABLE, **_ZERO_SNR, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES,
        "interpolation_type": Followed("linear", NAME), "timestep_type": Followed("discrete", NAME),
        "final_sigmas_type": Followed("zero", NAME),
    },
    "EulerAncestralDiscreteScheduler": {**_TABLE, **_ZERO_SNR, **_LINSPACE},
    "HeunDiscreteScheduler": {
        **_TABLE_OF_TWO_STAGES, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES, **_NO_CLIP,
    },
    "LMSDiscreteScheduler": {**_TABLE, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES},
    "KDPM2DiscreteScheduler": {
        **_TABLE_OF_TWO_STAGES, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES,
    },
    "KDPM2AncestralDiscreteScheduler": {
        **_TABLE_OF_TWO_STAGES, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES,
    },
    "DPMSolverMultistepScheduler": {
        **_TABLE, **_ZERO_SNR, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES, **_THRESHOLD,
        **_MULTISTEP, **_FLOW,
        "algorithm_type": Followed("dpmsolver++", NAME), "solver_type": Followed("midpoint", NAME),
        "euler_at_final": Followed(False, FLAG), "use_lu_lambdas": Followed(False, _MAYBE),
        "final_sigmas_type": Followed("zero", NAME),
        "lambda_min_clipped": Followed(-math.inf, _LEAST),
        "variance_type": Only(
            (None,), "it is for networks that predict a variance too, which are not read"
        ),
    },
    "UniPCMultistepScheduler": {
        **_TABLE, **_ZERO_SNR, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES, **_THRESHOLD,
        **_MULTISTEP, **_FLOW,
        "solver_type": Followed("bh2", NAME), "final_sigmas_type": Followed("zero", NAME),
        "predict_x0": Only(
            (True,), "take DPMSolverMultistepScheduler with algorithm_type = 'dpmsolver'"
        ),
        "disable_corrector": Only(
            ((), None), "take DPMSolverMultistepScheduler, which has no corrector"
        ),
        "solver_p": Only((None,), "take a scheduler of one solver"),
        "use_dynamic_shifting": Only(
            (False,), "it needs a shift that no pipeline of this noise schedule gives"
        ),
        "shift_terminal": Only((None,), "it is of flow sigmas alone"),
    },
    "DEISMultistepScheduler": {
        **_TABLE, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES, **_THRESHOLD, **_MULTISTEP, **_FLOW,
        "algorithm_type": Only(("deis", "dpmsolver", "dpmsolver++"), _ONE),
        "solver_type": Only(("logrho", "midpoint", "heun", "bh1", "bh2"), _ONE),
    },
    "LCMScheduler": {
        **_TABLE_OF_TWO_STAGES, **_ZERO_SNR, **_NO_CLIP, **_THRESHOLD,
        "beta_schedule": Followed("scaled_linear", NAME),
        "original_inference_steps": Followed(50, whole(1, 10**5)),
        "timestep_scaling": Followed(10.0, POSITIVE),
        "set_alpha_to_one": Equivalent("no step goes below the table's levels"),
        "timestep_spacing": _OF_DISTILLATION,
        "steps_offset": _OF_DISTILLATION,
    },
}  # fmt: skip
"""Class -> field -> what becomes of it."""

READ_AS_LEFTOVERS = ("sigma_min", "sigma_max")
"""Fields that classes look for without taking them: Heun, LMS, KDPM2, DPM-Solver, DEIS."""

_OF_OTHER_CLASSES = {
    "alpha_cum_end", "alpha_cum_start", "base_image_seq_len", "base_shift", "block_length",
    "clip_denoised", "correct_steps", "corrector_k", "corrector_order", "corrector_selection",
    "corrector_selection_tau", "corrector_steps", "editing_threshold", "entropy_bound", "eps",
    "eta", "final_step_size_scale", "gamma", "gamma_cum_end", "gamma_cum_start",
    "invert_sigmas", "mask_token_id", "masking_schedule", "max_image_seq_len", "max_shift",
    "minimal_topk", "n_grid", "noise_mode", "noise_sampler_seed", "num_inference_steps",
    "num_policy_substeps", "num_vec_classes", "predictor_order", "rho", "s", "s_churn", "s_max",
    "s_min", "s_noise", "sampling_eps", "scale_factors", "scaler", "schedule_mode",
    "scheduler_type", "shift", "sigma_data", "sigma_schedule", "snr", "snr_shift_scale",
    "stage_range", "stages", "stochastic_sampling", "t_lim_ode", "t_lim_ode_below", "t_max",
    "t_min", "tail_step_multiplier", "tail_steps", "tau_func", "threshold", "tsr_k",
    "tsr_sigma", "upscale_mode",
}  # fmt: skip
LEFTOVERS = _OF_OTHER_CLASSES.union(*FIELDS.values())
"""Fields of any scheduler of diffusers: one that its file's class does not take has no effect."""
