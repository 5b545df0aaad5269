"""Text encoders read before their last layer: the states, and the images, of diffusers."""

import json
import os

import numpy as np
import pytest
from drawing_by_hand import author_sampler, compiled

from configs import sample as config_file
from diffusion_jax import jobs
from diffusion_jax.build.checkpoint.text_to_image import text_to_image
from diffusion_jax.convert.stable_diffusion import read_checkpoint

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import stable_diffusion
    import torch
else:
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import stable_diffusion

PROMPTS, NEGATIVE, SIDE = ["a photo of a red cat", "blue house"], ["a dog", ""], 64


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def both(request, tmp_path_factory):
    return stable_diffusion.pipeline(request.param, tmp_path_factory.mktemp("checkpoint"))


def theirs_of(pipe, prompts, skip):
    """diffusers' states of prompts, which it skips layers for in prompts alone."""
    # Where diffusers expects its norm, which newer releases of transformers have moved.
    encoder = pipe.text_encoder
    if not hasattr(encoder, "text_model"):
        object.__setattr__(encoder, "text_model", encoder)
    with torch.no_grad():
        if hasattr(pipe, "text_encoder_2"):
            found = pipe.encode_prompt(prompts, None, "cpu", 1, False, clip_skip=skip)
            return found[0], found[2]
        return pipe.encode_prompt(prompts, "cpu", 1, False, clip_skip=skip)[0], None


@pytest.mark.parametrize("skip", [0, 1])
def test_the_states_of_prompts(both, skip):
    pipe, folder = both
    made = text_to_image(read_checkpoint(folder), clip_skip=skip)
    rows = made.inputs.rows(PROMPTS, (SIDE, SIDE), chunks=1)
    ours = made.model.condition(made.weights.frozen, rows)
    theirs, pooled = theirs_of(pipe, PROMPTS, skip or None)
    assert np.abs(np.asarray(ours["context"]) - theirs.numpy()).max() <= 1e-4 * theirs.abs().max()
    if pooled is not None:
        assert np.abs(np.asarray(ours["pooled"]) - pooled.numpy()).max() <= 1e-4


def test_the_same_images(both):
    pipe, folder = both
    latents = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    shown, pooled = theirs_of(pipe, PROMPTS, 1)
    avoided, avoided_pooled = theirs_of(pipe, NEGATIVE, 1)
    given = {"prompt_embeds": shown, "negative_prompt_embeds": avoided}
    if pooled is not None:
        given |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": avoided_pooled}
    theirs = pipe(
        **given, num_inference_steps=3, guidance_scale=4.0, output_type="np", height=SIDE,
        width=SIDE, latents=torch.tensor(latents).permute(0, 3, 1, 2),
    ).images  # fmt: skip
    made = text_to_image(read_checkpoint(folder), clip_skip=1)
    _, draw = compiled(made, author_sampler(made, made.sampling, 3))
    rows, avoid = made.inputs.pair(PROMPTS, NEGATIVE, (SIDE, SIDE), chunks=1)
    want = np.round(theirs * 255)
    assert want.std() > 10
    assert np.abs(draw(rows, avoid, latents, 4.0) - want).max() <= 2


def test_too_many_layers_are_refused(both):
    checkpoint = read_checkpoint(both[1])
    for skip in (3, -1):
        with pytest.raises(ValueError, match=rf"config.clip_skip = {skip}: of 3 layers 0 to 2"):
            text_to_image(checkpoint, clip_skip=skip)


def test_the_option_and_drawing_again(tmp_path):
    _, folder = stable_diffusion.pipeline("sd1", tmp_path)
    config = config_file.get_config()
    config.update(checkpoint=str(folder), prompt="a red cat", image_size=(SIDE, SIDE), clip_skip=1)
    config.sampler.steps = 2
    skipped = jobs.sample(config, tmp_path / "a").images
    config.clip_skip = 0
    assert (jobs.sample(config, tmp_path / "b").images != skipped).any()
    (picture,) = (tmp_path / "a" / "samples").glob("000000*.png")
    again = config_file.get_config()
    again.again = str(picture)
    assert (jobs.sample(again, tmp_path / "c").images == skipped).all()


def test_a_config_with_fewer_layers_than_the_weights(tmp_path):
    pipe, folder = stable_diffusion.pipeline("sd1", tmp_path)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.warns(UserWarning, match="text_encoder/config.json: num_hidden_layers = 2, and"):
        made = text_to_image(read_checkpoint(folder))
    rows = made.inputs.rows(PROMPTS, (SIDE, SIDE), chunks=1)
    ours = np.asarray(made.model.condition(made.weights.frozen, rows)["context"])
    theirs, _ = theirs_of(pipe, PROMPTS, 1)  # of three layers the last but one
    assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * theirs.abs().max()
