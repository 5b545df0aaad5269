"""Images steered by one or two ControlNets: the same as diffusers' pipeline; and by the job."""

import os

import jax
import numpy as np
import pytest
from drawing_by_hand import author_sampler, compiled
from PIL import Image

from configs import sample as config_file
from diffusion_jax import jobs
from diffusion_jax.apps.plan import Request
from diffusion_jax.build.checkpoint.control import control, equipped
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

PROMPTS, NEGATIVE = ["a photo of a red cat", "a blue house"], ["a dog", ""]
STEPS, SCALE, SIDE = 4, 4.0, 64
SCALES = [1.0, 0.6]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """SD 1's pipeline and its folder, two ControlNets and theirs, two pictures."""
    root = tmp_path_factory.mktemp("checkpoint")
    pipe, folder = stable_diffusion.pipeline("sd1", root)
    shared = {k: v for k, v in stable_diffusion.BLOCKS.items() if "up" not in k}
    shared.pop("sample_size")
    nets = []
    for i in range(2):
        net = diffusers.ControlNetModel(
            **shared, conditioning_embedding_out_channels=(8, 8, 16, 16)
        )
        nets.append(stable_diffusion.randomised(net, 7 + i))
        nets[-1].save_pretrained(root / f"control_{i}")
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(2)]
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(root / f"picture_{i}.png")
    return pipe, folder, nets, root, pictures


def theirs_of(pipe, nets, pictures, latents, count):
    made = diffusers.StableDiffusionControlNetPipeline(
        **{**pipe.components, "scheduler": diffusers.DDIMScheduler(**stable_diffusion.SCHEDULER)},
        controlnet=nets[:count] if count > 1 else nets[0], requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    pixels = [torch.from_numpy(p / 255.0).permute(2, 0, 1)[None].float() for p in pictures[:count]]
    return made(
        PROMPTS, pixels if count > 1 else pixels[0], negative_prompt=NEGATIVE, output_type="np",
        num_inference_steps=STEPS, guidance_scale=SCALE, height=SIDE, width=SIDE,
        latents=torch.from_numpy(np.moveaxis(latents, -1, 1)),
        controlnet_conditioning_scale=SCALES[:count] if count > 1 else SCALES[0],
    ).images  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
def test_the_same_images(given, count):
    pipe, folder, nets, root, pictures = given
    latents = np.random.default_rng(1).normal(size=(2, 8, 8, 4)).astype(np.float32)
    wanted = theirs_of(pipe, nets, pictures, latents, count)
    plain = text_to_image(read_checkpoint(folder))
    paths = [(str(root / f"control_{i}"), str(root / f"picture_{i}.png")) for i in range(count)]
    edits = [control(*path, scale) for path, scale in zip(paths, SCALES, strict=False)]
    sampler = author_sampler(plain, plain.sampling, STEPS)
    generator, draw = compiled(plain, sampler, edits)
    rows, avoid = generator.inputs.pair(PROMPTS, NEGATIVE, (SIDE, SIDE), chunks=1)
    request = Request(size=(SIDE, SIDE))
    arrays = [edit.arrays(generator, request) for edit in edits]
    both = lambda leaf: np.stack([leaf, leaf])
    got = draw(rows, avoid, latents, SCALE, jax.tree.map(both, arrays))
    assert np.abs(got - wanted * 255).max() <= 2
    blind = [{**each, "hint": 0 * each["hint"]} for each in arrays]  # so nothing passes unread
    other = draw(rows, avoid, latents, SCALE, jax.tree.map(both, blind))
    assert np.abs(other - wanted * 255).max() > 20


def config_of(given, **changes):
    config = config_file.get_config()
    config.update(checkpoint=str(given[1]), prompt="a red cat", image_size=(SIDE, SIDE))
    config.sampler.steps = 2
    config.edits = (steering(given[3] / "control_0", given[3] / "picture_0.png"),)
    config.update(changes)
    return config


def steering(network, picture, scale=1.0):
    return f"control({str(network)!r}, {str(picture)!r}, {scale})"


def test_the_job_draws_with_the_picture(given, tmp_path):
    root = given[3]
    steered_by = jobs.sample(config_of(given), tmp_path / "a").images
    other = steering(root / "control_0", root / "picture_1.png")
    other = jobs.sample(config_of(given, edits=(other,)), tmp_path / "b").images
    assert steered_by.shape == (1, SIDE, SIDE, 3) and (steered_by != other).any()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ("control('nowhere', 'picture.png')", "there is no ControlNet at nowhere"),
        ("control('CONTROL', 'nowhere.png')", "'nowhere.png' cannot be read as a picture"),
        ("control('CONTROL')", "missing a required argument: 'picture'"),
    ],
)
def test_a_wrong_request_is_a_sentence(given, edit, words, tmp_path):
    edit = edit.replace("CONTROL", str(given[3] / "control_0"))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        jobs.sample(config_of(given, edits=(edit,)), tmp_path)


def test_another_familys_control_is_named(given):
    _, folder, _, root, _ = given
    checkpoint = read_checkpoint(folder)
    unet = {**checkpoint.configs["unet"], "cross_attention_dim": 64}
    other = checkpoint._replace(configs={**checkpoint.configs, "unet": unet})
    with pytest.raises(ValueError, match="of the checkpoint's family"):
        equipped(str(root / "control_0"), text_to_image(checkpoint)._replace(origin=other))
