"""Images by schedulers of every class, and image to image, the same as diffusers' pipelines."""

import os

import numpy as np
import pytest
from drawing_by_hand import author_sampler, compiled

from diffusion_jax.apps.edits.image_to_image import image_to_image
from diffusion_jax.build.checkpoint.text_to_image import text_to_image
from diffusion_jax.convert.stable_diffusion import read_checkpoint

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import stable_diffusion
    import torch
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import stable_diffusion

PROMPT, STEPS, SCALE, SIDE = "a photo of a red cat", 8, 4.0, 64
LATENT = (1, SIDE // 8, SIDE // 8, 4)
ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
CASES = {
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "PNDM of v, trailing": (
        "PNDMScheduler",
        {"skip_prk_steps": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ),
    "DDIM, zero SNR, linspace": ("DDIMScheduler", {**ZERO, "timestep_spacing": "linspace"}),
    "Euler, Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Heun, exponential": ("HeunDiscreteScheduler", {"use_exponential_sigmas": True}),
    "LMS, trailing": ("LMSDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "DPM++ 2M, zero SNR": ("DPMSolverMultistepScheduler", ZERO),
    "DPM++ 3M, beta": (
        "DPMSolverMultistepScheduler", {"solver_order": 3, "use_beta_sigmas": True}
    ),
    "UniPC 3, Karras": ("UniPCMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
    "DEIS, Karras": ("DEISMultistepScheduler", {"use_karras_sigmas": True}),
    "KDPM2, Karras": ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return stable_diffusion.pipeline("sd1", tmp_path_factory.mktemp("checkpoint"))


def scheduled(pair, name, options):
    """(the pipeline, our generator), both by what diffusers writes of this scheduler."""
    pipe, folder = pair
    config = {**stable_diffusion.SCHEDULER, **options}
    pipe.scheduler = getattr(diffusers, name).from_config(config)
    pipe.scheduler.save_pretrained(folder / "scheduler")
    return pipe, text_to_image(read_checkpoint(folder))


def same(ours, theirs):
    want = np.round(theirs * 255)
    assert want.std() > 10  # a picture, not one colour
    assert np.abs(ours - want).max() <= 2


@pytest.mark.parametrize("case", CASES)
def test_the_same_image(pair, case):
    pipe, made = scheduled(pair, *CASES[case])
    latents = np.random.default_rng(0).normal(size=LATENT).astype(np.float32)
    theirs = pipe(
        PROMPT, num_inference_steps=STEPS, guidance_scale=SCALE, height=SIDE, width=SIDE,
        latents=torch.tensor(latents).permute(0, 3, 1, 2), output_type="np",
    ).images  # fmt: skip
    _, draw = compiled(made, author_sampler(made, made.sampling, STEPS))
    same(draw(made.inputs.rows([PROMPT], (SIDE, SIDE)), None, latents, SCALE), theirs)


@pytest.mark.parametrize(
    ("case", "strength"),
    [
        ("UniPC 3, Karras", 0.3), ("Euler, Karras", 0.5), ("DPM++ 3M, beta", 0.75),
        ("DEIS, Karras", 0.99), ("KDPM2, Karras", 1.0),
    ],
)  # fmt: skip
def test_the_same_image_to_image(pair, case, strength):
    pipe, made = scheduled(pair, *CASES[case])
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe, scheduler=pipe.scheduler)
    other.set_progress_bar_config(disable=True)
    x0 = np.random.default_rng(1).normal(size=LATENT).astype(np.float32)
    noise = torch.randn((1, 4, *LATENT[1:3]), generator=torch.Generator().manual_seed(5))
    theirs = other(
        PROMPT, image=torch.tensor(x0).permute(0, 3, 1, 2), strength=strength,
        guidance_scale=SCALE, num_inference_steps=STEPS, output_type="np",
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    # A picture that is a latent already, as diffusers takes it too.
    codec = made.model.codec._replace(encode=lambda frozen, x, key: x)
    latent = made._replace(model=made.model._replace(codec=codec))
    edit = image_to_image("picture.png", strength)
    _, draw = compiled(latent, author_sampler(made, made.sampling, STEPS), (edit,))
    rows = made.inputs.rows([PROMPT], (SIDE, SIDE))
    same(draw(rows, None, noise.permute(0, 2, 3, 1).numpy(), SCALE, (x0,)), theirs)
