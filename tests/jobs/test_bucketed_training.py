"""A model of texts trained on pictures of two shapes: one compilation of the step for each."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import emoji_text_pixel
from diffusion_jax import jobs
from diffusion_jax.build import conditioning, training
from diffusion_jax.build.buckets import bucket_sizes
from diffusion_jax.data.prepare import Options, prepare

pytestmark = pytest.mark.whole

SHAPES = [(10, 20), (20, 10)] * 8


def words(texts):
    context = np.array([[[len(text)] * 16] for text in texts], np.float16)
    return {"context": context, "context_mask": np.ones((len(texts), 1), bool)}


@pytest.fixture
def config(tmp_path, monkeypatch):
    made = conditioning.TextEncoder("words", words, 1, 16)
    monkeypatch.setitem(conditioning.TEXT_ENCODERS, "words", lambda: made)
    (tmp_path / "files").mkdir()
    for i, (height, width) in enumerate(SHAPES):
        colour = (255 * (i % 2), 16 * i, 0)
        Image.new("RGB", (width, height), colour).save(tmp_path / "files" / f"{i}.png")
        (tmp_path / "files" / f"{i}.txt").write_text("wide" if i % 2 == 0 else "tall one")
    options = Options(folder=str(tmp_path / "files"), set_name="two", test_fraction=0.0)
    prepare("image_folder", tmp_path, options)
    config = emoji_text_pixel.get_config()
    config.data.update(name="image_folder/two", image_size=(8, 8), dir=str(tmp_path))
    config.data.buckets = ((4, 8), (8, 4))
    config.text.encoder = "words()"
    config.model.text_unet.update(channels=8, channel_mults=(1,), depths=(1,), heads=(1,))
    config.train.update(steps=8, batch_size=4, checkpoint_every=8, sample_every=0, log_every=1)
    config.optimizer.warmup, config.seed = 1, 2
    config.sampler.update(n=1, batch_size=1, steps=2, prompts=("wide",))
    return config


def test_two_buckets_are_two_compilations_of_the_step(config, tmp_path):
    stream = training.training_data(config)(0)
    shapes = [next(stream)["image"].shape[1:3] for _ in range(8)]
    assert set(shapes) == {(4, 8), (8, 4)} and shapes.count((4, 8)) == 4
    state = jobs.train(config, tmp_path / "run")
    assert int(state.step) == 8
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines]).all()
    # The second shape comes at step 3, and a step's line is written when the next is on its way.
    assert [shape == shapes[0] for shape in shapes[:3]] == [True, True, False]
    counts = [line["compilations"] for line in lines]
    assert counts[0] + 1 == counts[1] and len(set(counts[1:])) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data.buckets": ((4, 8), (7, 4))}, r"config\.data\.buckets has 7x4: .*multiples of 2"),
        ({"train.steps_per_call": 2}, r"steps_per_call = 2 stacks batches of one shape"),
        ({"data.buckets": ("bucket(8)",)}, r"unknown name 'bucket'; known are buckets"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_step(config, tmp_path, changes, sentence):
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=sentence):
        jobs.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_string_lists_sizes_of_the_samples_area(config):
    config.data.buckets = ("buckets(multiple=4, most_ratio=4)", (2, 8))
    assert bucket_sizes(config, (8, 8)) == ((4, 16), (8, 8), (16, 4), (2, 8))
    config.data.buckets = ()
    assert bucket_sizes(config, (8, 8)) == ()
