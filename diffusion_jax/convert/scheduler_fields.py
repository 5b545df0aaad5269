"""The fields of a scheduler_config.json, class by class: followed, without effect, or refused.

diffusers gives a class the fields that its ``__init__`` takes, fills in the rest by its defaults
and keeps the others unread, so that a file may hold leftovers of any other class.  ``FIELDS`` has
every field that a class takes, as of version 0.42, and the two more that some look for among the
leftovers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

FILE = "scheduler_config.json"


class Field(NamedTuple):
    """A field of a class.

    Attributes:
        default: its value where a file does not have it.
        how: "followed"; "no effect"; or "refused" where it differs from the default.
        why: of "no effect", the reason; of "refused", what to do.
        others: of "refused", more values that are as good as the default.
    """

    default: Any
    how: str = "followed"
    why: str = ""
    others: tuple[Any, ...] = ()


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each field of the file's class, with ``_class_name``.

    Args:
        config: entries of scheduler_config.json.

    Raises:
        ValueError: for a class that is not read, or a value that is refused.
    """
    name = config.get("_class_name", "DDIMScheduler")
    if name not in FIELDS:
        raise ValueError(unknown("_class_name", name, FIELDS))
    fields, unset = FIELDS[name], config.get("_use_default_values", ())
    given = {k: v for k, v in config.items() if k not in unset and not k.startswith("_")}
    for key, value in given.items():
        if key not in LEFTOVERS:
            warnings.warn(
                f"{FILE}: {key} = {value!r} is a field of no scheduler that is known here; it is "
                "passed over",
                stacklevel=3,
            )
        elif key in fields and _is_refused(fields[key], value):
            raise ValueError(
                f"{FILE}: {key} = {value!r} of {name} is not followed here; {_mend(fields[key])}"
            )
    if given.get("trained_betas") is not None:
        count, steps = len(given["trained_betas"]), given.get("num_train_timesteps")
        if steps not in (None, count):
            raise ValueError(
                f"{FILE}: num_train_timesteps = {steps!r} but trained_betas has {count} numbers; "
                "let the first be the number of the second"
            )
        given["num_train_timesteps"] = count
    found = {key: given.get(key, field.default) for key, field in fields.items()}
    return {"_class_name": name, **found}


def unknown(field: str, value: Any, known: Any) -> str:
    """The sentence that refuses a value which is none of the known ones."""
    return f"{FILE}: {field} = {value!r} is not known here; known are {', '.join(sorted(known))}"


def _is_refused(field: Field, value: Any) -> bool:
    return field.how == "refused" and value != field.default and value not in field.others


def _mend(field: Field) -> str:
    return f"{field.why}, or set it to {field.default!r}"


_TABLE = {
    "num_train_timesteps": Field(1000),
    "beta_start": Field(0.0001),
    "beta_end": Field(0.02),
    "beta_schedule": Field("linear"),
    "trained_betas": Field(None),
    "prediction_type": Field("epsilon"),
}
_TABLE_OF_TWO_STAGES = {**_TABLE, "beta_start": Field(0.00085), "beta_end": Field(0.012)}
_ZERO_SNR = {"rescale_betas_zero_snr": Field(False)}
_LEADING = {"timestep_spacing": Field("leading"), "steps_offset": Field(0)}
_LINSPACE = {"timestep_spacing": Field("linspace"), "steps_offset": Field(0)}
_CURVES = {
    "use_karras_sigmas": Field(False),
    "use_exponential_sigmas": Field(False),
    "use_beta_sigmas": Field(False),
}
_ENDS_OF_CURVES = {"sigma_min": Field(None), "sigma_max": Field(None)}
_THRESHOLD = {
    "thresholding": Field(False),
    "dynamic_thresholding_ratio": Field(0.995),
    "sample_max_value": Field(1.0),
}
_CLIP = {"clip_sample": Field(True), "clip_sample_range": Field(1.0)}
_NO_CLIP = {**_CLIP, "clip_sample": Field(False)}
_MULTISTEP = {"solver_order": Field(2), "lower_order_final": Field(True)}
_FLOW = {
    "use_flow_sigmas": Field(
        False, "refused", "take a scheduler of a noise schedule in place of rectified flow", (None,)
    ),
    "flow_shift": Field(1.0, "no effect", "it moves flow sigmas alone"),
    "use_dynamic_shifting": Field(False, "no effect", "it moves flow sigmas alone"),
    "time_shift_type": Field("exponential", "no effect", "it moves flow sigmas alone"),
}

_ONE = "there is one, which takes the place of another class's"

FIELDS: dict[str, dict[str, Field]] = {
    "DDIMScheduler": {
        **_TABLE, **_ZERO_SNR, **_LEADING, **_CLIP, **_THRESHOLD, "set_alpha_to_one": Field(True),
    },
    "DDPMScheduler": {
        **_TABLE, **_ZERO_SNR, **_LEADING, **_CLIP, **_THRESHOLD,
        "variance_type": Field("fixed_small"),
    },
    "PNDMScheduler": {
        **_TABLE, **_LEADING, "skip_prk_steps": Field(False), "set_alpha_to_one": Field(False),
    },
    "EulerDiscreteScheduler": {
        **_TABLE, **_ZERO_SNR, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES,
        "interpolation_type": Field("linear"), "timestep_type": Field("discrete"),
        "final_sigmas_type": Field("zero"),
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
        "algorithm_type": Field("dpmsolver++"), "solver_type": Field("midpoint"),
        "euler_at_final": Field(False), "use_lu_lambdas": Field(False),
        "final_sigmas_type": Field("zero"), "lambda_min_clipped": Field(-math.inf),
        "variance_type": Field(
            None, "refused", "it is for networks that predict a variance too, which are not read"
        ),
    },
    "UniPCMultistepScheduler": {
        **_TABLE, **_ZERO_SNR, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES, **_THRESHOLD,
        **_MULTISTEP, **_FLOW,
        "solver_type": Field("bh2"), "final_sigmas_type": Field("zero"),
        "predict_x0": Field(
            True, "refused", "take DPMSolverMultistepScheduler with algorithm_type = 'dpmsolver'"
        ),
        "disable_corrector": Field(
            [], "refused", "take DPMSolverMultistepScheduler, which has no corrector", (None, ())
        ),
        "solver_p": Field(None, "refused", "take a scheduler of one solver"),
        "use_dynamic_shifting": Field(
            False, "refused", "it needs a shift that no pipeline of this noise schedule gives"
        ),
        "shift_terminal": Field(None, "refused", "it is of flow sigmas alone"),
    },
    "DEISMultistepScheduler": {
        **_TABLE, **_LINSPACE, **_CURVES, **_ENDS_OF_CURVES, **_THRESHOLD, **_MULTISTEP, **_FLOW,
        "algorithm_type": Field("deis", "no effect", _ONE), "solver_type": Field(
            "logrho", "no effect", _ONE
        ),
    },
    "LCMScheduler": {
        **_TABLE_OF_TWO_STAGES, **_ZERO_SNR, **_NO_CLIP, **_THRESHOLD,
        "beta_schedule": Field("scaled_linear"),
        "original_inference_steps": Field(50), "timestep_scaling": Field(10.0),
        "set_alpha_to_one": Field(True, "no effect", "no step goes below the table's levels"),
        "timestep_spacing": Field("leading", "no effect", "its levels are those of distillation"),
        "steps_offset": Field(0, "no effect", "its levels are those of distillation"),
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
