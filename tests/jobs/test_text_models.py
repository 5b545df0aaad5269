"""A model of texts from training to judged samples, at toy size; an encoder that needs no package.

The pictures are plain colours, which their captions name.
"""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import emoji_text_pixel
from diffusion_jax import jobs
from diffusion_jax.build import conditioning, evaluation
from diffusion_jax.build.runs import open_run
from diffusion_jax.data.prepare import Options, prepare
from diffusion_jax.evaluate.features import FeatureNet
from diffusion_jax.jobs import captioning
from diffusion_jax.jobs.run_samples import sampler_of_run

pytestmark = pytest.mark.whole

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}
NAME = "image_folder/colours"


def words(texts):
    """A vector of each word, drawn by its hash; texts of up to four words."""
    context = np.zeros((len(texts), 4, 16), np.float16)
    mask = np.zeros((len(texts), 4), bool)
    for i, text in enumerate(texts):
        for j, word in enumerate(text.split()[:4]):
            seed = int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)
            context[i, j] = np.random.default_rng(seed).normal(size=16)
            mask[i, j] = True
    return {"context": context, "context_mask": mask}


def mean_colour(x):
    mean = jnp.mean(x, (1, 2)) / 255
    return {"frechet": jnp.concatenate([mean, 1 - mean], -1)}


@pytest.fixture(scope="module", autouse=True)
def encoder():
    patch = pytest.MonkeyPatch()
    made = conditioning.TextEncoder("words", words, 4, 16)
    patch.setitem(conditioning.TEXT_ENCODERS, "words", lambda: made)
    net = FeatureNet("mean colour", "distance", mean_colour)
    patch.setattr(evaluation, "feature_net", lambda config: net)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    draw = np.random.default_rng(0)
    (root / "files").mkdir()
    for i in range(80):
        name = list(COLOURS)[i % 4]
        image = np.clip(np.array(COLOURS[name]) + draw.normal(size=(8, 8, 3)) * 20, 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(root / "files" / f"{i}.png")
        (root / "files" / f"{i}.txt").write_text(f"all {name}")
    options = Options(folder=str(root / "files"), set_name="colours", test_fraction=0.2)
    prepare("image_folder", root, options)
    config = emoji_text_pixel.get_config()
    config.data.update(name=NAME, image_size=(8, 8), dir=str(root))
    config.text.encoder = "words()"
    config.model.text_unet.update(channels=8, channel_mults=(1,), depths=(1,), heads=(1,))
    config.train.update(steps=150, batch_size=32, checkpoint_every=150, sample_every=0)
    config.optimizer.update(learning_rate=5e-3, warmup=10)
    config.ema = "warmup(decay=0.9)"
    config.sampler.update(n=4, batch_size=4, steps=8, prompts=tuple(f"all {c}" for c in COLOURS))
    config.evaluate.update(quality=False, captions=4)
    jobs.train(config, root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def opened(run):
    it = open_run(jobs.run_config(run), run)
    return it, sampler_of_run(it)  # compiled once


def test_it_draws_what_the_prompt_says(opened):
    means = captioning.drawn(opened[1], [f"all {name}" for name in COLOURS], 8).mean((2, 3))
    wanted = np.array(list(COLOURS.values()))
    distance = np.linalg.norm(means[:, :, None] - wanted, axis=-1)
    assert (distance.argmin(-1) == [0, 1, 2, 3]).all()
    # On average, as single ones differ by their noise; two colours are 255 apart.
    assert np.diag(distance.mean(0)).max() < 100


def test_evaluation_finds_the_captions_again(run, capsys):
    figures = jobs.evaluate(jobs.run_config(run), run)
    assert "caption found first of 4, samples of held-out captions" in capsys.readouterr().out
    assert figures["caption found first of 4, trained images"].value == 1
    assert figures["caption found first of 4, samples of trained captions"].value >= 0.75
    told = json.loads((run / "evaluation.json").read_text())["figures"]
    assert told["caption found first of 4, trained images"]["n"] == 4
    assert Image.open(run / "samples" / "captions_held-out.png").text["captions"].count("all") == 4


def test_guidance_trades_diversity_for_agreement(opened):
    it, sampler = opened
    captions = captioning.captions_of(it.config, "train", 4)
    judged = captioning.judge_of(it.config)
    plain, strong = (
        captioning.compromise(sampler, captions, judged, 6, scale) for scale in (0.25, 4.0)
    )
    assert plain.images.shape == (6, 4, 8, 8, 3)
    assert strong.adherence.value > plain.adherence.value
    assert strong.diversity.value < plain.diversity.value


def test_a_model_without_texts_has_no_captions_to_find(opened, tmp_path):
    config = opened[0].config.copy_and_resolve_references()
    config.text.encoder = ""
    with pytest.raises(ValueError, match="needs a model that reads texts"):
        captioning.figures(opened[0]._replace(config=config), tmp_path)
