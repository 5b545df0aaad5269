"""A scheduler_config.json in our names, held to the scheduler that diffusers makes of it."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.convert.schedulers import process_of, sampling_of, target_of
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.spec import build

STABLE_DIFFUSION = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "steps_offset": 1, "set_alpha_to_one": False,
    "skip_prk_steps": True, "clip_sample": False,
}  # fmt: skip


def solver_of(sampling, process):
    return build(SOLVERS, sampling.solver, "solver", process=process, steps=10)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_class_name": "PNDMScheduler"}, ("plms()", "leading(offset=1)", False)),
        ({"_class_name": "DDIMScheduler"}, ("ddim()", "leading(offset=1)", False)),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "set_alpha_to_one": True},
            ("dpmpp_2m(rule='midpoint')", "dpm_linspace()", True),
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
            ("euler()", "trailing()", False),
        ),
        (
            {"_class_name": "LCMScheduler", "set_alpha_to_one": True},
            ("consistency()", "consistency()", True),
        ),
    ],
)
def test_an_authors_sampler_has_our_names(config, expected):
    assert sampling_of({**STABLE_DIFFUSION, **config}) == expected


@pytest.mark.parametrize(
    ("field", "value", "function"),
    [
        ("beta_schedule", "exponential", process_of),
        ("prediction_type", "flow", target_of),
        ("_class_name", "MysteryScheduler", sampling_of),
        ("timestep_spacing", "middle", sampling_of),
    ],
)
def test_what_is_unknown_is_said(field, value, function):
    with pytest.raises(ValueError, match=f"{field} = '{value}' is not known here; known are"):
        function({**STABLE_DIFFUSION, field: value})


@pytest.mark.parametrize("zero", [False, True])
def test_betas_may_be_given_one_by_one(zero):
    betas = np.linspace(0.001, 0.02, 100)
    process = process_of({"trained_betas": list(betas), "rescale_betas_zero_snr": zero})
    assert process.schedule.steps == 100
    last = float(process.at(jnp.ones(())).alpha)
    np.testing.assert_allclose(last, 0.0 if zero else np.sqrt(np.prod(1 - betas)), rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", None])
@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler",
        "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler", "DEISMultistepScheduler",
    ],
)  # fmt: skip
def test_levels_are_those_of_the_scheduler(name, spacing):
    if os.environ.get("REQUIRE_PARITY") == "1":
        import diffusers
    else:
        diffusers = pytest.importorskip("diffusers")
    given = {**STABLE_DIFFUSION, **({"timestep_spacing": spacing} if spacing else {})}
    scheduler = getattr(diffusers, name).from_config(given)
    scheduler.set_timesteps(12)
    config = dict(scheduler.config, _class_name=name)
    process, sampling = process_of(config), sampling_of(config)
    levels = build(GRIDS, sampling.grid, "grid", process=process, n=12)
    times = np.asarray(scheduler.timesteps, np.float64)
    np.testing.assert_allclose(levels.t * 1000 - 1, times, atol=1e-2)
    alphas = np.interp(times, np.arange(1000), scheduler.alphas_cumprod.numpy())
    np.testing.assert_allclose(levels.alpha**2, alphas, rtol=1e-4)
    solver_of(sampling, process)
