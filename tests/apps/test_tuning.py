"""Tuning all of a tiny checkpoint's denoiser, or one new word: what changes, is left, is drawn."""

import os
import pathlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs import stable_diffusion as sampling_config
from configs import stable_diffusion_full, stable_diffusion_lora, stable_diffusion_word
from diffusion_jax import build_finetune, build_tuning, jobs
from diffusion_jax.build_checkpoint import text_to_image
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.convert.textual_inversion import read_word
from diffusion_jax.core.types import Context
from diffusion_jax.data.prepare import Options, prepare

pytestmark = pytest.mark.parity
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

if os.environ.get("REQUIRE_PARITY") == "1":
    import stable_diffusion
else:
    for needed in ("torch", "diffusers", "transformers"):
        pytest.importorskip(needed)
    import stable_diffusion


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the checkpoints sd1 and sdxl, and the data set "pets", which has captions."""
    root = tmp_path_factory.mktemp("tuning")
    for kind in ("sd1", "sdxl"):
        stable_diffusion.pipeline(kind, root / f"of_{kind}")
    (root / "pets").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        picture = rng.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(picture).save(root / "pets" / f"{i}.png")
        (root / "pets" / f"{i}.txt").write_text(f"a {('red', 'blue')[i % 2]} cat")
    prepare("image_folder", root / "sets", Options(folder=str(root / "pets"), test_fraction=0.0))
    return root


def config_of(place, settings, kind="sd1"):
    config = settings.get_config()
    config.checkpoint, config.data.dir = str(place / f"of_{kind}" / kind), str(place / "sets")
    config.data.name, config.image_size = "image_folder/pets", (32, 32)
    config.train.update(steps=2, batch_size=2, log_every=1, checkpoint_every=2, sample_every=2)
    config.optimizer.learning_rate = 1e-2
    config.sampler.steps = 2
    config.prompts = ("a red cat",)
    return config


def shown_on_the_way(folder):
    return np.asarray(Image.open(folder / "samples" / "step_0000002.png"), np.int32)[2:-2, 2:-2]


def drawn(config, folder, prompt):
    config.prompt, config.prompts, config.image_size = prompt, (), (32, 32)
    config.sampler.steps = 2
    return jobs.sample(config, folder).images


def test_all_weights_of_the_denoiser_from_captions(place, tmp_path):
    config = config_of(place, stable_diffusion_full)
    config.tuning = "full(dtype='float16')"
    before = read_checkpoint(config.checkpoint)
    state = jobs.train(config, tmp_path)
    left = read_checkpoint(tmp_path / "checkpoint_0000002")
    trained = jax.device_get(state.ema["net"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), trained, before.unet.params)
    # A bias before a norm may have a gradient of 0.
    assert np.mean([m > 1e-4 for m in jax.tree.leaves(moved)]) > 0.9
    half = jax.tree.map(lambda x: x.astype(np.float16), trained)
    jax.tree.map(np.testing.assert_array_equal, half, left.unet.params)
    of = lambda c: [part.params for part in (c.autoencoder, *c.text_encoders)]
    jax.tree.map(np.testing.assert_array_equal, of(left), of(before))

    images = drawn(jobs.run_config(tmp_path), tmp_path, "a red cat")  # --mode=sample --workdir
    assert np.abs(shown_on_the_way(tmp_path) - images[0]).max() <= 2  # which half precision moves
    elsewhere = sampling_config.get_config()
    elsewhere.checkpoint = str(tmp_path / "checkpoint_0000002")
    np.testing.assert_array_equal(drawn(elsewhere, tmp_path / "there", "a red cat"), images)
    jobs.train(config, tmp_path)  # nothing is left to do, and nothing is in the way


def test_the_first_loss_is_the_checkpoints_whatever_is_tuned(place):
    losses = []
    for settings in (stable_diffusion_full, stable_diffusion_lora):
        config = config_of(place, settings)
        config.loss.condition_dropout = 0.0
        plan = build_tuning.plan(config)
        made = build_finetune.opened(config, read_checkpoint(config.checkpoint), plan)
        experiment = build_finetune.finetune(config, made, plan)
        batch = next(iter(build_finetune.training_data(config, made)(0)))
        params = experiment.start()
        if params is None:
            params = experiment.recipe.init(jax.random.key(0), batch)
        context = Context(0, params, experiment.frozen(), ())
        params = params if "lora" in params else {**params, "terms": [{}]}
        loss = jax.jit(lambda *a, of=experiment.recipe.loss: of(*a, jax.random.key(1))[0])
        losses.append(float(loss(params, context, batch)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("kind", "vectors"), [("sd1", 2), ("sdxl", 1)])
def test_a_word_is_taught_alone(place, tmp_path, kind, vectors):
    config = config_of(place, stable_diffusion_word, kind)
    config.tuning = f"word('<pet>', start_from='cat', vectors={vectors})"
    config.prompt, config.prompts = "a photo of the <pet>", ("the <pet>",)
    state = jobs.train(config, tmp_path)
    assert list(state.params) == ["vectors"]
    before = read_checkpoint(config.checkpoint)
    learnt = read_word(tmp_path / "word.safetensors")
    assert learnt.name == "<pet>"
    encoders, tokenizers = before.text_encoders, text_to_image(before).tokenizers
    for i, vector in enumerate(learnt.vectors):
        np.testing.assert_array_equal(vector, state.ema["vectors"][i])
        row = tokenizers[i].raw(["cat"])[0][0]
        cat = encoders[i].params["token"]["embedding"][row]
        assert vector.shape == (vectors, len(cat))
        assert 1e-4 < np.abs(vector - cat).max() < 0.05  # two steps of at most 1e-2
    images = drawn(jobs.run_config(tmp_path), tmp_path, "the <pet>")
    assert np.abs(shown_on_the_way(tmp_path) - images[0]).max() <= 1
    elsewhere = sampling_config.get_config()
    elsewhere.checkpoint = config.checkpoint
    elsewhere.embeddings = (str(tmp_path / "word.safetensors"),)
    np.testing.assert_array_equal(drawn(elsewhere, tmp_path / "there", "the <pet>"), images)


def test_a_lora_of_sdxl_from_captions(place, tmp_path):
    config = config_of(place, stable_diffusion_lora, "sdxl")
    config.tuning = "lora(rank=2, alpha=4)"
    state = jobs.train(config, tmp_path)
    assert all(np.any(pair["up"]) for pair in jax.device_get(state.params["lora"]).values())
    images = drawn(jobs.run_config(tmp_path), tmp_path, "a red cat")
    assert np.abs(shown_on_the_way(tmp_path) - images[0]).max() <= 1


@pytest.mark.parametrize(
    ("tuning", "prompt", "says"),
    [
        ("word('', start_from='cat')", "a cat", "name a word, such as"),
        ("word('cat</w>', start_from='cat')", "cat</w>", "is a token of this tokenizer already"),
        ("word('<pet>', start_from='cat dog')", "<pet>", "'cat dog' is 2 tokens"),
        ("word('<pet>', start_from='')", "<pet>", "'' is 0 tokens"),
        ("word('<pet>', start_from='cat', vectors=0)", "<pet>", "vectors must be at least 1"),
        ("word('<pet>', start_from='cat')", "a cat", "lacks the word '<pet>' that is taught"),
        ("word('<pet>')", "<pet>", "missing a required argument: 'start_from'"),
        ("lora(rank=0)", "a cat", "must be of rank 1 at least"),
        ("lora(rank='4')", "a cat", "rank must be of type int"),
        ("full(dtype='half')", "a cat", "known are float32, bfloat16 and float16"),
        ("all()", "a cat", "unknown name 'all'; known are full, lora, word"),
    ],
)
def test_wrong_tunings_are_sentences(place, tmp_path, tuning, prompt, says):
    config = config_of(place, stable_diffusion_lora)
    config.tuning, config.prompt = tuning, prompt
    with pytest.raises(ValueError, match=says):
        jobs.train(config, tmp_path)
