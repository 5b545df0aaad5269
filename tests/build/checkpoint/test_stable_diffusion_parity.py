"""Prompts to pixels: the same images as diffusers' pipelines, from the same files and latents."""

import os

import numpy as np
import pytest
from drawing_by_hand import author_sampler, compiled

from diffusion_jax.apps.edits.image_to_image import image_to_image
from diffusion_jax.apps.plan import Sampler
from diffusion_jax.build.checkpoint.text_to_image import sampling_settings, text_to_image
from diffusion_jax.build.sampling import ENDS
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.core import grids
from diffusion_jax.core.solvers import SOLVERS

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

PROMPTS = ["a photo of a red cat", "blue house, on the hill 7!"]
NEGATIVE = ["a dog", ""]
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
STEPS, SCALE, SIDE = 6, 4.0, 64


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def both(request, tmp_path_factory):
    return stable_diffusion.pipeline(request.param, tmp_path_factory.mktemp("checkpoint"))


def drawn(generator, config, latents, prompts, negative):
    own = sampling_settings(config)
    _, draw = compiled(generator, author_sampler(generator, own, STEPS))
    rows, avoid = generator.inputs.pair(prompts, negative, (SIDE, SIDE), chunks=1)
    return draw(rows, avoid, latents, SCALE)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_same_images(both, name):
    pipe, folder = both
    scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(pipe.scheduler.config)
    pipe.scheduler = scheduler
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, SIDE // 8, SIDE // 8, 4)).astype(np.float32)
    theirs = pipe(
        PROMPTS, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=SCALE,
        latents=torch.tensor(latents).permute(0, 3, 1, 2), output_type="np",
        height=SIDE, width=SIDE,
    ).images  # fmt: skip
    made = text_to_image(read_checkpoint(folder))
    config = dict(scheduler.config, _class_name=SCHEDULERS[name])
    ours = drawn(made, config, latents, PROMPTS, NEGATIVE)
    want = np.round(theirs * 255)
    assert want.std() > 10  # a picture, not one colour
    assert np.abs(ours - want).max() <= 2
    if name == "ddim":
        other = drawn(made, config, latents, PROMPTS[::-1], NEGATIVE)
        assert np.abs(other - want).max() > 20  # the text matters


def test_image_to_image(both):
    pipe, folder = both
    kind = type(pipe).__name__.replace("Pipeline", "Img2ImgPipeline")
    scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    other = getattr(diffusers, kind).from_pipe(pipe, scheduler=scheduler)
    other.set_progress_bar_config(disable=True)
    made = text_to_image(read_checkpoint(folder))
    rng = np.random.default_rng(1)
    x0 = rng.normal(size=(1, SIDE // 8, SIDE // 8, 4)).astype(np.float32)
    noise = torch.randn((1, 4, SIDE // 8, SIDE // 8), generator=torch.Generator().manual_seed(5))
    theirs = other(
        PROMPTS[0], image=torch.tensor(x0).permute(0, 3, 1, 2), strength=0.5, guidance_scale=SCALE,
        num_inference_steps=STEPS, generator=torch.Generator().manual_seed(5), output_type="np",
    ).images  # fmt: skip
    levels = grids.leading(made.model.process, STEPS, 1)
    sampler = Sampler(SOLVERS["ddim"](), levels, end=ENDS["first"].level(made.model, levels))
    # A picture that is a latent already, as diffusers takes it too.
    model = made.model._replace(codec=made.model.codec._replace(encode=lambda frozen, x, key: x))
    edit = image_to_image("picture.png", 0.5)
    _, draw = compiled(made._replace(model=model), sampler, (edit,))
    rows = made.inputs.rows(PROMPTS[:1], (SIDE, SIDE))
    ours = draw(rows, None, noise.permute(0, 2, 3, 1).numpy(), SCALE, (x0,))
    want = np.round(theirs * 255)
    assert want.std() > 10
    assert np.abs(ours - want).max() <= 2
