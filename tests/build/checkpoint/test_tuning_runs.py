"""Tuning a run of one's own: what changes, what is left, and what is drawn with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sources

from configs import emoji_text_pixel, imagenet256_dit, mnist, sample
from configs.checkpoints import full, lora, word
from diffusion_jax import jobs
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build.checkpoint import own
from diffusion_jax.build.generator import open_source
from diffusion_jax.build.releases import release
from diffusion_jax.convert.tensors import write_safetensors
from diffusion_jax.recipes import lora as factors

pytestmark = pytest.mark.whole

LABELS = (3, 7)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return sources.run(tmp_path_factory.mktemp("base") / "run")


def config_of(base, settings=lora, **changes):
    """A tuning of the base, of two steps that show."""
    config = settings.get_config()
    config.checkpoint = str(base)
    config.train.update(steps=2, batch_size=8, log_every=1, checkpoint_every=2, sample_every=0)
    config.optimizer.learning_rate = 0.3
    config.ema = "warmup(decay=0.0)"
    config.labels, config.sampler.steps = LABELS, 3
    config.update_from_flattened_dict(changes)
    return config


def drawn(source, folder, **changes):
    """Images by ``configs/sample.py``."""
    settings = sample.get_config()
    settings.checkpoint, settings.labels, settings.n = str(source), LABELS, 2
    settings.sampler.steps = 3
    settings.update(changes)
    return jobs.sample(settings, folder).images.astype(int)


def net_of(source, **changes):
    settings = sample.get_config()
    settings.update(changes)
    return factors.by_path(open_source(str(source), settings).weights.params["net"])


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """(folder of a LoRA's training, its last state)."""
    folder = tmp_path_factory.mktemp("lora")
    config = config_of(base, tuning="lora(rank=2, alpha=4)", n=2)
    return folder, jobs.train(config, folder)


def test_a_lora_trains_its_factors_alone_and_each_way_to_draw_with_it_is_one(base, tuned, tmp_path):
    folder, state = tuned
    file = folder / "lora.safetensors"
    assert list(state.params) == ["lora"] and len(state.params["lora"]) == 4
    assert all(np.any(pair["up"]) for pair in jax.device_get(state.params["lora"]).values())
    plain = drawn(base, tmp_path / "plain")
    adapted = drawn(base, tmp_path / "adapted", lora=(str(file),))
    assert np.abs(adapted - plain).max() > 3
    np.testing.assert_array_equal(drawn(folder, tmp_path / "by_folder"), adapted)
    images = jobs.sample(jobs.run_config(folder), folder).images
    np.testing.assert_array_equal(images, adapted)
    np.testing.assert_array_equal(drawn(base, tmp_path / "off", lora=(f"{file}:0",)), plain)


def test_the_file_merged_is_what_was_trained(base, tuned):
    folder, state = tuned
    before, after = net_of(base), net_of(base, lora=(str(folder / "lora.safetensors"),))
    whole = factors.merged({"net": before}, {}, 1.0)
    pairs = jax.device_get(state.ema["lora"])
    for name, weight in whole["net"].items():
        pair = pairs.get(f"net/{name}")
        change = 0 if pair is None else 4 / 2 * pair["down"] @ pair["up"]
        np.testing.assert_allclose(after[name], weight + change, rtol=1e-5, atol=1e-6)


def test_a_second_start_of_the_same_training_does_nothing(base, tuned):
    folder, _ = tuned
    file, lines = folder / "lora.safetensors", (folder / "metrics.jsonl").read_text()
    before = file.read_bytes()
    jobs.train(config_of(base, tuning="lora(rank=2, alpha=4)", n=2), folder)
    assert file.read_bytes() == before and (folder / "metrics.jsonl").read_text() == lines


def test_a_lora_is_trained_on_top_of_others_and_is_drawn_with_them(base, tuned, tmp_path):
    first = str(tuned[0] / "lora.safetensors")
    config = config_of(base, tuning="lora(rank=1)", lora=(f"{first}:0.5",))
    jobs.train(config, tmp_path)
    second = str(tmp_path / "lora.safetensors")
    both = drawn(base, tmp_path / "both", lora=(f"{first}:0.5", second))
    np.testing.assert_array_equal(drawn(tmp_path, tmp_path / "there"), both)
    # A tuning is a source too: of a whole denoiser that starts from all of that.
    config = config_of(tmp_path, full, tuning="full()")
    config.optimizer.learning_rate = 1e-12
    jobs.train(config, tmp_path / "full")
    images = drawn(tmp_path / "full" / "checkpoint_0000002", tmp_path / "whole")
    assert np.abs(images - both).max() <= 1


def test_all_weights_leave_a_release_that_draws_the_same(base, tmp_path):
    config = config_of(base, full, tuning="full()", n=2)
    config.optimizer.learning_rate = 1e-2
    state = jobs.train(config, tmp_path)
    left = tmp_path / "checkpoint_0000002"
    trained, before = factors.by_path(jax.device_get(state.ema["net"])), net_of(base)
    after = net_of(left)
    assert all(np.array_equal(after[name], trained[name]) for name in trained)
    assert np.mean([np.abs(after[name] - before[name]).max() > 1e-4 for name in before]) > 0.8
    images = jobs.sample(jobs.run_config(tmp_path), tmp_path).images
    np.testing.assert_array_equal(drawn(left, tmp_path / "there"), images)
    np.testing.assert_array_equal(drawn(tmp_path, tmp_path / "by_folder"), images)
    assert np.abs(images - drawn(base, tmp_path / "plain")).max() > 3
    jobs.train(config, tmp_path)  # nothing is left to do, and nothing is in the way


def test_the_terms_of_the_runs_loss_are_trained_on_too(tmp_path):
    """A term with parameters, and several terms; a release has lost them, and starts anew."""

    def change(config):
        config.loss.terms = ("uncertain_regression()", "regression()")

    path = sources.run(tmp_path / "run", change)
    for source, tuning in (
        (path, "lora(rank=1)"),
        (sources.released(tmp_path / "release", path), "full()"),
    ):
        state = jobs.train(config_of(source, tuning=tuning), tmp_path / f"{source.name}_{tuning}")
        assert int(state.step) == 2


def test_what_the_run_draws_by_itself_a_tuning_of_it_draws(base, tuned):
    """What the tuning's config leaves open is the run's own: its number of images, its steps."""
    folder, _ = tuned
    generator = open_source(str(folder), sample.get_config())
    own_sampling = open_source(str(base), sample.get_config()).sampling
    differing = {n for n, v in own_sampling.items() if generator.sampling[n] != v}
    assert differing == {"steps", "labels", "n"}  # which the tuning's config says


@pytest.mark.parametrize(
    ("settings", "changes", "says"),
    [
        (word, {"tuning": "word('<a>', start_from='b')"}, "has none of its own; take 'lora"),
        (lora, {"prior.data": "mnist5k"}, "config.prior.data = 'mnist5k' is for the tuning of a"),
        (lora, {"prompt": "a seven"}, "config.prompt = 'a seven' is for the tuning of a Stable"),
        (lora, {"image_size": (32, 32)}, r"at the size that it was trained on, \(28, 28\)"),
        (lora, {"tuning": "lora(targets='nothing')"}, "matches no parameter; their paths are such"),
        (lora, {"embeddings": ("a.safetensors",)}, "are words of a Stable Diffusion checkpoint"),
        (lora, {"lora": ("absent.safetensors",)}, "there is no LoRA at absent.safetensors"),
    ],
)
def test_what_a_run_cannot_be_tuned_by_is_a_sentence(base, tmp_path, settings, changes, says):
    config = config_of(base, settings)
    if settings is word:
        config.prompt = ""
    config.update_from_flattened_dict(changes)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        jobs.train(config, tmp_path / "never")


def test_a_student_and_a_first_stage_are_not_tuned(base, tmp_path):
    student = sources.student(tmp_path / "student", base)
    with pytest.raises(ValueError, match="is a student, and the loss of its distillation needs"):
        jobs.train(config_of(student), tmp_path / "never")
    with pytest.raises(ValueError, match="is a first stage; name a model that draws"):
        jobs.train(config_of("weights/emoji/autoencoder"), tmp_path / "never")


def test_a_lora_of_stable_diffusion_is_not_of_a_run(base, tuned, tmp_path):
    theirs = tmp_path / "theirs.safetensors"
    name = "unet.mid_block.attentions.0.to_q.lora_A.weight"
    write_safetensors(theirs, {name: np.zeros((1, 8), np.float32)})
    with pytest.raises(ValueError, match="is no LoRA of a run of one's own"):
        drawn(base, tmp_path, lora=(str(theirs),))
    other = tmp_path / "other.safetensors"
    pair = {"down": np.zeros((3, 1), np.float32), "up": np.zeros((1, 3), np.float32)}
    own.write_lora(other, {"net/mid/attention/query/kernel": pair}, {}, {})
    with pytest.raises(ValueError, match=r"config.lora: the LoRA of 'net/mid/.* has the shape"):
        drawn(base, tmp_path, lora=(str(other),))
    with pytest.raises(ValueError, match="must be a list of files"):
        own.with_loras(None, "one.safetensors")


def test_a_tuning_is_no_run_to_evaluate_release_or_distil(base, tuned, tmp_path):
    folder, _ = tuned
    with pytest.raises(ValueError, match=r"is the tuning of .*, no run by itself; draw with it"):
        jobs.evaluate(jobs.run_config(folder), folder)
    with pytest.raises(ValueError, match=r"holds a tuning, whose 'lora.* leaves what there is"):
        release(folder, tmp_path / "release")
    unfinished = config_of(base, full)
    unfinished.train.steps = 4
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text(unfinished.to_json())
    with pytest.raises(ValueError, match="holds no checkpoint_: the tuning has not come to its"):
        drawn(tmp_path / "full", tmp_path)


LABEL = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
TEXT = {
    "context": jax.ShapeDtypeStruct((1, 4, 16), jnp.float32),
    "context_mask": jax.ShapeDtypeStruct((1, 4), jnp.bool_),
}
POOLED = {"pooled": jax.ShapeDtypeStruct((1, 16), jnp.float32)}
MMDIT = {
    "width": 16, "depth": 2, "heads": 2, "pooled_features": 16, "max_side": 32, "grid": None,
    "second_attention": (0,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "network", "cond", "count"),
    [
        (mnist, ("unet", {}), LABEL, 4),
        (imagenet256_dit, ("dit", {"depth": 2, "width": 16, "heads": 2}), LABEL, 8),
        (emoji_text_pixel, ("mmdit", MMDIT), TEXT | POOLED, 12 + 7),
        (emoji_text_pixel, ("text_unet", {}), TEXT, 56),
    ],
)
def test_the_default_targets_are_the_attention_of_each_backbone(settings, network, cond, count):
    config = settings.get_config()
    config.model.autoencoder, config.data.image_size = "", (32, 32)
    name, fields = network
    config.model.name = name
    with config.unlocked():
        config.model[name] = {**config.model.get(name, {}), **fields}
    x = jax.ShapeDtypeStruct((1, *experiments.data_shape(config)), jnp.float32)
    params = jax.eval_shape(experiments.initialiser(config), jax.random.key(0), x, cond)
    chosen = factors.init(jax.random.key(0), params, 1)
    assert len(chosen) == count
    assert not any("mlp" in path or "conv" in path for path in chosen)
    if name == "text_unet":
        assert all("self_attention/" in path or "cross_attention/" in path for path in chosen)
