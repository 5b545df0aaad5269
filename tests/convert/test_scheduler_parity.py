"""Samplers read from scheduler configs and diffusers' schedulers: the same sample, in float64.

Both run from the same noise on one cheap network that is told the timestep, so that every level,
every timestep told and every term of every step is compared.
"""

import os
from collections import Counter

import numpy as np
import pytest

if os.environ.get("REQUIRE_PARITY") != "1":
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
import scheduler_traces as traces

pytestmark = pytest.mark.parity
BASE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "steps_offset": 1, "clip_sample": False,
    "set_alpha_to_one": False, "skip_prk_steps": True,
}  # fmt: skip
DPM, UNIPC, DEIS = (f"{name}MultistepScheduler" for name in ("DPMSolver", "UniPC", "DEIS"))
KINDS = {
    "PNDM": {"_class_name": "PNDMScheduler"},
    "DDIM": {"_class_name": "DDIMScheduler"},
    "Euler": {"_class_name": "EulerDiscreteScheduler"},
    "Euler a": {"_class_name": "EulerAncestralDiscreteScheduler"},
    "Heun": {"_class_name": "HeunDiscreteScheduler"},
    "LMS": {"_class_name": "LMSDiscreteScheduler"},
    "KDPM2": {"_class_name": "KDPM2DiscreteScheduler"},
    "DPM++ 2M": {"_class_name": DPM},
    "DPM++ 2M SDE": {"_class_name": DPM, "algorithm_type": "sde-dpmsolver++"},
    "DPM++ 3M": {"_class_name": DPM, "solver_order": 3},
    "UniPC 2": {"_class_name": UNIPC},
    "UniPC 3": {"_class_name": UNIPC, "solver_order": 3},
    "DEIS": {"_class_name": DEIS},
}
CURVES = ("", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = {
    "eps": {"prediction_type": "epsilon"},
    "v": {"prediction_type": "v_prediction"},
    "v of zero SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
}


def outcome(config, n, strength=None):
    """("equal", difference), or in one word why diffusers has no sample; ours is finite then."""
    try:
        want = traces.theirs(config, n, strength)
    except (IndexError, AssertionError) as error:
        assert np.isfinite(traces.ours(config, n, strength)).all()
        return type(error).__name__, 0.0
    got = traces.ours(config, n, strength)
    assert np.isfinite(got).all()
    if not np.isfinite(want).all():
        return "not finite", 0.0
    difference = np.abs(got - want).max() / max(1.0, np.abs(want).max())
    assert difference < 1e-9, (config, n, strength, difference)
    return "equal", difference


# Of the 36 cells, those where diffusers raises: its first two timesteps are equal, and it looks up
# the second of them, which runs over the end of its sigmas.
RAISES = {DPM: ("IndexError", 5), UNIPC: ("AssertionError", 5)}


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_sample(x64, kind, spacing):
    found = Counter()
    for curve in CURVES:
        for own in PREDICTIONS.values():
            config = {**BASE, **KINDS[kind], **own, "timestep_spacing": spacing}
            for n in (8, 20, 30):
                found[outcome({**config, curve: True} if curve else config, n)[0]] += 1
    word, count = RAISES.get(KINDS[kind]["_class_name"], ("equal", 0))
    assert found == Counter({"equal": 36 - count, word: count} if count else {"equal": 36})


# The loops of PNDM and LMS begin an image to image amid lists that are made for the whole run.
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.75, 0.99, 1.0])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("PNDM", "LMS")])
def test_the_same_image_to_image(x64, kind, strength):
    for curve in CURVES[:2]:
        config = {**BASE, **KINDS[kind], "timestep_spacing": "leading"}
        for n in (10, 25):
            word, _ = outcome({**config, curve: True} if curve else config, n, strength)
            assert word == "equal"


EULER, V = KINDS["Euler"], PREDICTIONS["v"]
VARIANTS = {
    "PNDM with Runge-Kutta": {**KINDS["PNDM"], "skip_prk_steps": False},
    "PNDM with Runge-Kutta, v": {**KINDS["PNDM"], "skip_prk_steps": False, **V},
    "PNDM to alpha 1": {**KINDS["PNDM"], "set_alpha_to_one": True},
    "DDIM to alpha 1": {**KINDS["DDIM"], "set_alpha_to_one": True},
    "DDIM clipped": {**KINDS["DDIM"], "clip_sample": True, "clip_sample_range": 0.7},
    "DDIM, threshold": {
        **KINDS["DDIM"], "thresholding": True, "dynamic_thresholding_ratio": 0.7,
        "sample_max_value": 1.4,
    },
    "DDPM": {"_class_name": "DDPMScheduler"},
    "DDPM clipped": {"_class_name": "DDPMScheduler", "clip_sample": True},
    "DDPM, large": {"_class_name": "DDPMScheduler", "variance_type": "fixed_large"},
    "DDPM, small log": {"_class_name": "DDPMScheduler", "variance_type": "fixed_small_log"},
    "LCM": {"_class_name": "LCMScheduler", "timestep_scaling": 0.01},
    "LCM, threshold": {
        "_class_name": "LCMScheduler", "timestep_scaling": 0.01, "thresholding": True,
        "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.2,
    },
    "Euler to sigma_min": {**EULER, "final_sigmas_type": "sigma_min"},
    "Euler, continuous": {**EULER, **V, "timestep_type": "continuous"},
    "Euler, continuous, Karras": {
        **EULER, **V, "timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.01,
        "sigma_max": 50.0,
    },
    "Euler, log linear": {**EULER, "interpolation_type": "log_linear"},
    "Euler, log linear, Karras": {
        **EULER, "interpolation_type": "log_linear", "use_karras_sigmas": True
    },
    "Euler of x0": {**EULER, "prediction_type": "sample"},
    "Heun clipped": {**KINDS["Heun"], "clip_sample": True},
    "Heun, beta, leftover ends": {
        **KINDS["Heun"], "use_beta_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0
    },
    "LMS, Karras, leftover ends": {
        **KINDS["LMS"], "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0
    },
    "LMS, beta, leftover ends": {
        **KINDS["LMS"], "use_beta_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0
    },
    "KDPM2 a": {"_class_name": "KDPM2AncestralDiscreteScheduler"},
    "KDPM2 a, Karras": {
        "_class_name": "KDPM2AncestralDiscreteScheduler", "use_karras_sigmas": True
    },
    "KDPM2 a, beta, v": {
        "_class_name": "KDPM2AncestralDiscreteScheduler", "use_beta_sigmas": True, **V
    },
    "DPM of order 1": {**KINDS["DPM++ 2M"], "solver_order": 1},
    "DPM 2M, Heun's": {**KINDS["DPM++ 2M"], "solver_type": "heun"},
    "DPM 2M, another's type": {**KINDS["DPM++ 2M"], "solver_type": "bh2"},
    "DPM 2M, another's algorithm": {
        **KINDS["DPM++ 2M"], "algorithm_type": "deis", "final_sigmas_type": "sigma_min"
    },
    "DPM 2M, threshold": {
        **KINDS["DPM++ 2M"], "thresholding": True, "dynamic_thresholding_ratio": 0.8,
        "sample_max_value": 1.3,
    },
    "DPM 2M, lu": {**KINDS["DPM++ 2M"], "use_lu_lambdas": True},
    "DPM 2M, Karras, leftover ends": {
        **KINDS["DPM++ 2M"], "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0
    },
    "DPM 2M, to sigma_min": {**KINDS["DPM++ 2M"], "final_sigmas_type": "sigma_min"},
    "DPM 2M, cut off": {**KINDS["DPM++ 2M"], "lambda_min_clipped": -1.5},
    "DPM 2M, cosine": {**KINDS["DPM++ 2M"], "beta_schedule": "squaredcos_cap_v2"},
    "DPM 2M, few levels": {**KINDS["DPM++ 2M"], "num_train_timesteps": 100},
    "DPM 2M SDE, order 1": {**KINDS["DPM++ 2M SDE"], "solver_order": 1},
    "DPM 2M SDE, Heun's": {**KINDS["DPM++ 2M SDE"], "solver_type": "heun"},
    "DPM 2M SDE, to sigma_min": {**KINDS["DPM++ 2M SDE"], "final_sigmas_type": "sigma_min"},
    "DPM 3M, full order": {**KINDS["DPM++ 3M"], "lower_order_final": False},
    "DPM 3M, full order to sigma_min": {
        **KINDS["DPM++ 3M"], "lower_order_final": False, "final_sigmas_type": "sigma_min"
    },
    "DPM 3M, Euler to sigma_min": {
        **KINDS["DPM++ 3M"], "euler_at_final": True, "final_sigmas_type": "sigma_min"
    },
    "DPM-Solver 1": {
        "_class_name": DPM, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min",
        "solver_order": 1,
    },
    "DPM-Solver 2, Heun's": {
        "_class_name": DPM, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min",
        "solver_type": "heun",
    },
    "DPM-Solver 3, threshold": {
        "_class_name": DPM, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min",
        "solver_order": 3, "thresholding": True,
    },
    "UniPC 1": {**KINDS["UniPC 2"], "solver_order": 1},
    "UniPC 2, another's type": {**KINDS["UniPC 2"], "solver_type": "midpoint"},
    "UniPC 3, to sigma_min": {**KINDS["UniPC 3"], "final_sigmas_type": "sigma_min"},
    "UniPC 2, bh1, full order to sigma_min": {
        **KINDS["UniPC 2"], "solver_type": "bh1", "final_sigmas_type": "sigma_min",
        "lower_order_final": False, "thresholding": True,
    },
    "UniPC 3, Karras, to sigma_min": {
        **KINDS["UniPC 3"], "final_sigmas_type": "sigma_min", "use_karras_sigmas": True,
        "sigma_min": 0.06,
    },
    "DEIS 1": {**KINDS["DEIS"], "solver_order": 1},
    "DEIS 3": {**KINDS["DEIS"], "solver_order": 3},
    "DEIS 3, full order, threshold": {
        **KINDS["DEIS"], "solver_order": 3, "lower_order_final": False, "thresholding": True
    },
    "DEIS 2, Karras, leftover ends": {
        **KINDS["DEIS"], "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_sample_of_other_settings(x64, name):
    for spacing in SPACINGS:
        if name == "DPM 2M, cut off" and spacing == "trailing":
            continue  # refused: test_scheduler_fields
        for n in (4, 7, 20):
            config = {**BASE, **VARIANTS[name], "timestep_spacing": spacing}
            assert outcome(config, n)[0] == "equal"


def test_what_diffusers_draws_nothing_of(x64):
    """Its bh1 steps to sigma = 0 by an infinite h, and so do full orders of UniPC; ours draw."""
    for own in ({"solver_type": "bh1"}, {"lower_order_final": False}):
        assert outcome({**BASE, **KINDS["UniPC 2"], **own}, 8)[0] == "not finite"


@pytest.mark.parametrize("betas", [(0.0001, 0.02), (0.0015, 0.0195), (0.00085, 0.0125)])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_tables_of_other_betas(x64, schedule, betas):
    table = dict(zip(("beta_start", "beta_end"), betas, strict=True), beta_schedule=schedule)
    for kind, own in (
        ("Euler", {"use_karras_sigmas": True}),
        ("DPM++ 2M", {}),
        ("UniPC 2", {"use_karras_sigmas": True}),
    ):
        config = {**BASE, **KINDS[kind], **table, **own, "timestep_spacing": "trailing"}
        assert outcome(config, 6)[0] in ("equal", *RAISES[DPM][:1], *RAISES[UNIPC][:1])
