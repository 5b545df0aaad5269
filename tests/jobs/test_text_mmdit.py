"""MMDiT trained on captions, told their pooled state, and its students of two levels."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import emoji_text_pixel
from diffusion_jax import jobs
from diffusion_jax.build import conditioning, training
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build.few_step import distillation
from diffusion_jax.build.weights import averaged
from diffusion_jax.data.prepare import Options, prepare
from diffusion_jax.train.state import abstract_state
from diffusion_jax.train.step import make_step
from diffusion_jax.train.workdir import read_config

pytestmark = pytest.mark.whole


def words(texts):
    """Two states for "a b", one for "a": numbers that the letters draw."""
    context, mask = np.zeros((len(texts), 3, 8), np.float16), np.zeros((len(texts), 3), bool)
    for i, text in enumerate(texts):
        for j, word in enumerate(text.split()):
            context[i, j] = np.random.default_rng(ord(word[0])).normal(size=8)
            mask[i, j] = True
    context[~mask] = 7.0  # padding has states too
    return {"context": context, "context_mask": mask}


@pytest.fixture(scope="module", autouse=True)
def encoder():
    patch = pytest.MonkeyPatch()
    made = conditioning.TextEncoder("words", words, 3, 8)
    patch.setitem(conditioning.TEXT_ENCODERS, "words", lambda: made)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    (root / "files").mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (255 * (i % 2), 0, 0)).save(root / "files" / f"{i}.png")
        (root / "files" / f"{i}.txt").write_text(("black picture", "red")[i % 2])
    options = Options(folder=str(root / "files"), set_name="two", test_fraction=0.0)
    prepare("image_folder", root, options)
    return root


def config_of(root):
    config = emoji_text_pixel.get_config()
    config.data.update(name="image_folder/two", image_size=(8, 8), dir=str(root))
    config.text.encoder = "words()"
    config.model.name = "mmdit"
    config.model.mmdit = {
        "width": 16, "depth": 1, "heads": 2, "pooled_features": 8, "max_side": 4, "grid": None,
    }  # fmt: skip
    config.train.update(steps=4, batch_size=4, checkpoint_every=4, sample_every=0, log_every=1)
    config.optimizer.warmup = 1
    config.sampler.update(n=2, batch_size=2, steps=2, prompts=("red", "black picture"))
    return config


@pytest.fixture(scope="module")
def teacher(root):
    jobs.train(config_of(root), root / "teacher")
    return root / "teacher"


def test_the_pooled_text_is_the_mean_state_and_nothing_of_the_empty_text(root):
    told = conditioning.conditioning(config_of(root))
    batch = words(["black picture", "red"])
    cond = told.condition({}, batch)
    states = batch["context"].astype(np.float32)
    wanted = [states[0, :2].mean(0), states[1, 0]]
    np.testing.assert_allclose(cond["pooled"], wanted, rtol=1e-6)
    empty = told.null({}, cond)
    assert jax.tree.map(jnp.shape, empty) == jax.tree.map(jnp.shape, cond)
    assert not empty["pooled"].any()
    config = config_of(root)
    config.model.mmdit.pooled_features = 5
    with pytest.raises(ValueError, match=r"mmdit\.pooled_features = 5, but .* has 8; set that"):
        experiments.experiment(config)


def test_a_run_trains_what_reads_the_pooled_text_and_draws(teacher, root):
    params = averaged(teacher, read_config(teacher)["ema"])[0]["net"]
    fresh = experiments.experiment(config_of(root)).recipe.init
    batch = {"image": jnp.zeros((4, 8, 8, 3)), **words(["red"] * 4)}
    before = fresh(jax.random.key(0), batch)["net"]
    moved = np.abs(params["pooled"]["dense_0"]["kernel"] - before["pooled"]["dense_0"]["kernel"])
    assert moved.max() > 1e-6
    assert jobs.sample(jobs.run_config(teacher), teacher).images.shape == (2, 8, 8, 3)


def student_of(name, teacher):
    config = importlib.import_module(f"configs.distill.{name}").get_config()
    config.teacher = str(teacher)
    config.train.update(steps=2, batch_size=4, sample_every=0, checkpoint_every=2, log_every=1)
    config.sampler.update(n=2, batch_size=2, prompts=("red", "black picture"))
    return config


def test_a_student_is_told_where_its_jump_ends(teacher, tmp_path):
    state = jobs.train(student_of("mean_flow", teacher), tmp_path)
    assert {"end", "time_0"} <= set(state.params["net"]["embed"])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines) and len(lines) == 2
    images = jobs.sample(jobs.run_config(tmp_path), tmp_path).images
    assert images.shape == (2, 8, 8, 3)


@pytest.mark.parametrize("name", ["ctm", "guidance", "imm", "lcm", "shortcut"])
def test_the_other_methods_of_more_numbers_have_a_step(name, teacher):
    config = distillation.with_teacher(student_of(name, teacher))
    experiment, settings = distillation.experiment(config), training.training(config)
    assert distillation.read_method(config).scalars
    batch = {"image": jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)}
    for key, one in experiment.conditioning.example.items():
        batch[key] = jax.ShapeDtypeStruct((4, *one.shape[1:]), one.dtype)
    state = abstract_state(experiment.recipe, settings["tx"], settings["ema"], batch)
    step = make_step(experiment.recipe, settings["tx"], settings["ema"], seed=0)
    after, _ = jax.eval_shape(step, state, experiment.training_only(), batch)
    described = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert described(after) == described(state)
