"""Fine-tuning a tiny checkpoint from pictures: a LoRA, with or without DreamBooth's prior."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import sample as sampling_config
from configs.checkpoints import lora as stable_diffusion_lora
from diffusion_jax import jobs
from diffusion_jax.build.checkpoint import finetune
from diffusion_jax.build.checkpoint.text_to_image import text_to_image
from diffusion_jax.build.checkpoint.training_data import training_data
from diffusion_jax.build.generator import open_source
from diffusion_jax.convert.lora import read_lora
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.core.types import Context
from diffusion_jax.data.prepare import Options, prepare

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import stable_diffusion
else:
    for needed in ("torch", "diffusers", "transformers"):
        pytest.importorskip(needed)
    import stable_diffusion

PROMPT = "a photo of the cat"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(checkpoint's folder, folder of the data sets "pets" and "kind")."""
    root = tmp_path_factory.mktemp("finetuning")
    _, checkpoint = stable_diffusion.pipeline("sd1", root)
    rng = np.random.default_rng(0)
    for name in ("pets", "kind"):
        (root / name).mkdir()
        for i in range(4):
            picture = rng.integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(picture).save(root / name / f"{i}.png")
        prepare("image_folder", root / "sets", Options(folder=str(root / name), test_fraction=0.0))
    return checkpoint, root / "sets"


def config_of(place, steps=3):
    config = stable_diffusion_lora.get_config()
    config.checkpoint, config.data.dir = str(place[0]), str(place[1])
    config.data.name, config.prompt = "image_folder/pets", PROMPT
    config.image_size, config.tuning = (32, 32), "lora(rank=2)"
    config.train.update(steps=steps, batch_size=2, log_every=1, checkpoint_every=2, sample_every=3)
    config.optimizer.learning_rate = 1e-2
    config.sampler.steps = 2
    return config


def test_a_lora_is_trained_saved_and_used(place, tmp_path):
    config = config_of(place)
    state = jobs.train(config, tmp_path)
    assert int(state.step) == 3 and list(state.params) == ["lora"]
    assert all(np.any(pair["up"]) for pair in jax.device_get(state.params["lora"]).values())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines) and len(lines) == 3
    file = tmp_path / "lora.safetensors"
    checkpoint = read_checkpoint(place[0])
    factors = read_lora(file, checkpoint)["unet"].factors
    for name, pair in jax.device_get(state.ema["lora"]).items():
        jax.tree.map(np.testing.assert_array_equal, pair, factors[name.removeprefix("net/")])
    assert len(factors) == len(state.params["lora"]) == 32

    sampling = sampling_config.get_config()
    sampling.update(checkpoint=str(place[0]), prompt=PROMPT, image_size=(32, 32))
    sampling.sampler.steps = 2
    plain = jobs.sample(sampling, tmp_path / "plain").images
    sampling.lora = (f"{file}:1.0",)
    changed = jobs.sample(sampling, tmp_path / "changed").images
    shown = np.asarray(Image.open(tmp_path / "samples" / "step_0000003.png"), np.int32)
    # The picture on the way, in its frame, is what the file gives.
    assert np.abs(shown[2:-2, 2:-2] - changed[0]).max() <= 1
    assert np.abs(plain.astype(np.int32) - changed).max() > 5
    own = jobs.sample(jobs.run_config(tmp_path), tmp_path).images  # --mode=sample --workdir alone
    np.testing.assert_array_equal(own, changed)
    # The same command again has nothing left to do, and leaves the same file.
    before = file.read_bytes()
    jobs.train(config, tmp_path)
    assert file.read_bytes() == before


def test_dreambooth_adds_its_kind(place):
    config = config_of(place)
    config.prior.update(data="image_folder/kind", prompt="a photo of a dog", weight=0.5)
    experiment = finetune.experiment(config, open_source)
    batch = next(iter(experiment.data()(0)))
    assert batch["image"].shape == batch["prior_image"].shape == (2, 32, 32, 3)
    assert np.any(batch["ids_0"] != batch["prior_ids_0"]) and np.all(batch["weights_0"] == 1)
    frozen = experiment.frozen()
    params = experiment.recipe.init(jax.random.key(0), batch)

    def of(params, base):
        context = Context(jnp.int32(0), params, {**frozen, "base": base}, ())
        loss, report = experiment.recipe.loss(params, context, batch, jax.random.key(1))
        return loss, report.metrics

    loss, metrics = jax.jit(of)(params, frozen["base"])
    parts = metrics["instance_loss"], metrics["prior_loss"]
    assert float(loss) == pytest.approx(float(parts[0] + 0.5 * parts[1]), rel=1e-5)
    assert parts[0] != parts[1]


def test_wrong_fields_are_sentences(place, tmp_path):
    config = config_of(place)
    config.tuning = "lora(targets='atention')"
    with pytest.raises(ValueError, match=r"lora\(targets='atention'\) matches no parameter"):
        jobs.train(config, tmp_path)
    config = config_of(place)
    config.prior.data = "image_folder/kind"
    with pytest.raises(ValueError, match=r"config\.prior\.prompt is empty"):
        jobs.train(config, tmp_path)
    config.checkpoint = ""
    with pytest.raises(ValueError, match=r"config\.checkpoint is empty"):
        jobs.train(config, tmp_path)


def test_sdxl_is_told_sizes_and_crops_of_buckets(place, tmp_path):
    _, checkpoint = stable_diffusion.pipeline("sdxl", tmp_path)
    shapes = [(24, 72), (72, 24), (40, 40)]  # (height, width)
    (tmp_path / "wide").mkdir()
    for i in range(12):
        height, width = shapes[i % 3]
        picture = Image.new("RGB", (width, height), (20 * i, 0, 0))
        picture.save(tmp_path / "wide" / f"{i}.png")
    prepare("image_folder", place[1], Options(folder=str(tmp_path / "wide"), test_fraction=0.0))
    config = config_of((checkpoint, place[1]))
    config.data.name = "image_folder/wide"
    config.data.buckets = ((16, 32), (32, 16), (24, 24))
    made = text_to_image(read_checkpoint(checkpoint))
    stream = training_data(config, made)(0)
    # Resized to cover: 24x72 to 16x48, of which the middle 16x32 is left; a square is not cut.
    wanted = {
        (16, 32): [24, 72, 0, 8, 16, 32],
        (32, 16): [72, 24, 8, 0, 32, 16],
        (24, 24): [40, 40, 0, 0, 24, 24],
    }
    seen = set()
    for _ in range(6):
        batch = next(stream)
        assert sorted(batch) == ["ids_0", "ids_1", "image", "time_ids", "weights_0", "weights_1"]
        size = batch["image"].shape[1:3]
        assert batch["time_ids"].dtype == np.float32
        np.testing.assert_array_equal(batch["time_ids"], [wanted[size]] * 2)
        seen.add(size)
    assert seen == set(wanted)
    np.testing.assert_array_equal(
        made.inputs.rows(["a"], (8, 16))["time_ids"], [[8, 16, 0, 0, 8, 16]]
    )

    config.prior.update(data="image_folder/kind", prompt="a photo of a dog")  # all are 40x40
    stream = training_data(config, made)(0)
    for _ in range(6):
        batch = next(stream)
        height, width = size = batch["image"].shape[1:3]
        assert batch["prior_image"].shape[1:3] == size
        np.testing.assert_array_equal(batch["time_ids"], [wanted[size]] * 2)
        # A square covers 16x32 as 32x32, of which the middle is left.
        cut = [abs(size[0] - max(size)) // 2, abs(size[1] - max(size)) // 2]
        np.testing.assert_array_equal(batch["prior_time_ids"], [[40, 40, *cut, height, width]] * 2)


def test_a_lora_is_trained_on_buckets(place, tmp_path):
    config = config_of(place, steps=2)
    config.data.buckets = ((32, 16), (16, 16))
    config.train.update(sample_every=0)
    with pytest.raises(ValueError, match=r"has 20x16: image size .* is not a multiple of 8"):
        wrong = config.copy_and_resolve_references()
        wrong.data.buckets = ((32, 16), (20, 16))
        jobs.train(wrong, tmp_path / "wrong")
    config.prior.update(data="image_folder/kind", prompt="a photo of a dog")
    with pytest.warns(UserWarning, match=r"left out.* 32x16 \(0\)"):
        state = jobs.train(config, tmp_path / "run")
    assert int(state.step) == 2 and list(state.params) == ["lora"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["prior_loss"]) for line in lines) and len(lines) == 2
