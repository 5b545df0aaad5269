"""A scheduler_config.json in our names, held to the scheduler that diffusers makes of it."""

import os
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from configs import sample
from diffusion_jax.build.checkpoint.text_to_image import sampling_settings
from diffusion_jax.build.sampling import settled
from diffusion_jax.convert.schedulers import Sampling, process_of, sampling_of, target_of
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.sampling import STARTS
from diffusion_jax.core.solvers import NAMED
from diffusion_jax.core.types import NoiseLevel
from diffusion_jax.spec import build

STABLE_DIFFUSION = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "steps_offset": 1, "set_alpha_to_one": False,
    "skip_prk_steps": True, "clip_sample": False,
}  # fmt: skip


def solver_of(sampling, process):
    return build(NAMED, sampling.solver, "solver", process=process, steps=10)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        (
            "PNDM",
            {},
            Sampling(
                "scheduler_pndm(average='eps')",
                "leading(offset=1)",
                "solver_first",
                elsewhere="plms()",
            ),
        ),
        ("DDIM", {}, Sampling("ddim()", "leading(offset=1)", "first")),
        (
            "DDIM",
            {"set_alpha_to_one": True},
            Sampling("scheduler_ddim()", "leading(offset=1)", "solver_clean", elsewhere="ddim()"),
        ),
        # Only the two above read set_alpha_to_one, though files of all have it.
        (
            "DPMSolverMultistep",
            {},
            Sampling("dpmpp_2m(rule='midpoint')", "dpm_linspace()", "clean"),
        ),
        ("EulerDiscrete", {}, Sampling("euler()", "fractional_linspace()", "clean", start="noise")),
        (
            "EulerDiscrete",
            {"timestep_spacing": "leading", "final_sigmas_type": "sigma_min"},
            Sampling("euler()", "leading(offset=1)", "first"),
        ),
        (
            "EulerAncestralDiscrete",
            {"timestep_spacing": "trailing"},
            Sampling("euler_ancestral()", "trailing()", "clean", start="noise"),
        ),
        (
            "HeunDiscrete",
            {"use_karras_sigmas": True},
            Sampling("heun()", "curve(shape='karras', ends='linspace')", "clean", start="noise"),
        ),
        (
            "LCM",
            {"timestep_scaling": 8},
            Sampling(
                "consistency()",
                "consistency(original=50)",
                "clean",
                ("latent_consistency(scale=8.0, steps=1000)",),
            ),
        ),
    ],
)
def test_an_authors_sampler_has_our_names(name, changes, expected):
    config = {**STABLE_DIFFUSION, "_class_name": f"{name}Scheduler", **changes}
    assert sampling_of(config) == expected


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
    process = process_of({"trained_betas": betas.tolist(), "rescale_betas_zero_snr": zero})
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
        "UniPCMultistepScheduler", "DEISMultistepScheduler", "LCMScheduler",
    ],
)  # fmt: skip
def test_levels_are_those_of_the_scheduler(name, spacing):
    if os.environ.get("REQUIRE_PARITY") == "1":
        import diffusers
    else:
        diffusers = pytest.importorskip("diffusers")
    given = {**STABLE_DIFFUSION, **({"timestep_spacing": spacing} if spacing else {})}
    given |= {"original_inference_steps": 40} if name == "LCMScheduler" else {}
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
    # How large x is at first, in y = x/alpha for those that have sigmas of it.
    first = NoiseLevel(*(leaf[0] for leaf in levels))
    scale = first.alpha if "Discrete" in name else 1.0
    size = STARTS[sampling.start](first) / scale
    np.testing.assert_allclose(size, float(scheduler.init_noise_sigma), rtol=1e-4)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, ("scheduler_pndm(average='eps')", "leading(offset=1)", "solver_first")),
        ({"grid": "karras()"}, ("plms()", "karras()", "first")),
        ({"solver": "heun()"}, ("heun()", "leading(offset=1)", "first")),
        ({"end": "clean"}, ("scheduler_pndm(average='eps')", "leading(offset=1)", "clean")),
    ],
)
def test_what_belongs_to_the_authors_grid_goes_with_no_other(chosen, expected):
    config = {**STABLE_DIFFUSION, "_class_name": "PNDMScheduler"}
    section = sample.get_config().sampler
    section.update(chosen)
    whole = settled(section, SimpleNamespace(sampling=sampling_settings(config)))
    assert (whole.solver, whole.grid, whole.end) == expected
