"""A first stage from training to the latents that the next stage reads, at toy size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import base, emoji_autoencoder
from diffusion_jax import jobs
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import training
from diffusion_jax.build.first_stage import code_shape, first_stage, load_autoencoder
from diffusion_jax.build.releases import release
from diffusion_jax.build.runs import Run
from diffusion_jax.data import DataSpec, load_images, make_dataset, to_unit
from diffusion_jax.data.prepare import Options, prepare
from diffusion_jax.jobs.encoding import encode_latents
from diffusion_jax.jobs.evaluating import FIGURES
from diffusion_jax.models.autoencoders.codec import IDENTITY
from diffusion_jax.train.state import abstract_state
from diffusion_jax.train.step import make_step

pytestmark = pytest.mark.whole

NAME = "image_folder/toys"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for i in range(40):
        path = folder / "files" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = np.repeat(np.repeat(rng.integers(0, 256, (4, 4, 3)), 4, 0), 4, 1)
        Image.fromarray(colours.astype(np.uint8)).save(path)
    options = Options(folder=str(folder / "files"), set_name="toys", test_fraction=0.3)
    prepare("image_folder", folder, options)
    return folder


def tiny(root, steps=4):
    config = emoji_autoencoder.get_config()
    config.data.update(name=NAME, image_size=(16, 16), dir=str(root))
    config.model.autoencoder_kl.update(channels=4, channel_mults=(1, 1), latent_channels=2)
    config.first_stage.perceptual = ""
    config.first_stage.adversary = "hinge(start=2, channels=4, halvings=1)"
    config.train.update(steps=steps, batch_size=4, log_every=1, sample_every=4, checkpoint_every=4)
    config.sampler.n = 4
    config.evaluate.update(n=8, quality=False)
    return config


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, jobs.train(tiny(root), folder)


def test_training_leaves_pictures_and_the_losses_of_both(run):
    folder, state = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["discriminator"] > 0 for line in lines] == [False, False, True, True]
    assert all(np.isfinite(line["adaptive_weight"]) for line in lines)
    picture = Image.open(folder / "samples" / "step_0000004.png")
    assert picture.size == (4 * 18 + 2, 2 * 18 + 2)  # originals over reconstructions
    assert set(state.ema) == {"autoencoder", "discriminator"}


def test_evaluation_compares_with_the_originals(run, root, capsys):
    folder, _ = run
    config = jobs.run_config(folder)
    figures = jobs.evaluate(config, folder)
    assert "PSNR of reconstructions, dB" in capsys.readouterr().out
    made = jobs.sample(jobs.run_config(folder, {"sampler.n": 8}), folder)
    originals, _ = load_images(NAME, "test", 8, (16, 16), 3, root)
    error = ((made.astype(float) - originals) ** 2).mean((1, 2, 3))
    psnr = (10 * np.log10(255**2 / error)).mean()
    np.testing.assert_allclose(figures["PSNR of reconstructions, dB"].value, psnr, rtol=1e-4)
    assert figures["SSIM of reconstructions"].n == 8


def test_latents_are_those_of_the_codec_at_unit_scale(run, root):
    folder, _ = run
    path = encode_latents(folder, NAME, "toys", root)
    assert path.parent.name == "toys"
    module, params, codec = load_autoencoder(folder)
    pixels = to_unit(load_images(NAME, "train", 6, (16, 16), 3, root)[0])
    encode = jax.jit(lambda x: module.apply({"params": params}, x, method="encode"))
    held = json.loads((folder / "latents.json").read_text())
    assert held["step"] == 4 and held["data"] == NAME
    spec = DataSpec("latents/toys", "train", 6, shuffle=False, data_dir=root)
    batches = make_dataset(spec)
    assert set(batches[0]) == {"image", "label"}
    mean = held["scale"] * (encode(pixels).mean - held["shift"])
    deviation = held["scale"] * jnp.exp(0.5 * encode(pixels).log_var)
    draws = np.stack([batches[i]["image"] for i in range(0, 5)])
    assert draws.shape == (5, 6, 8, 8, 2)
    first = (batches[0]["image"] - mean) / deviation
    assert abs(float(first.mean())) < 0.2 and abs(float(first.std()) - 1) < 0.1
    everything = np.concatenate([batches[i]["image"] for i in range(len(draws))])
    assert abs(everything.mean()) < 0.1 and abs(everything.std() - 1) < 0.1
    frozen = {"autoencoder": params}
    drawn = jax.jit(codec.encode)(frozen, pixels, jax.random.key(0))
    again = jax.jit(codec.decode)(frozen, drawn, jax.random.key(1))
    assert again.shape == pixels.shape


def test_the_next_stage_takes_codec_and_parameters(run, root):
    folder, _ = run
    encode_latents(folder, NAME, "single", root)
    encode_latents(folder, NAME, "each", root, per_channel=True)
    held = json.loads((folder / "latents.json").read_text())
    np.testing.assert_allclose(np.asarray(held["scale"]) * held["std"], 1, rtol=1e-6)
    config = base.get_config()
    config.data.update(name=NAME, image_size=(16, 16), channels=3, dir=str(root))
    assert first_stage(config).codec is IDENTITY and first_stage(config).frozen() == {}
    config.model.autoencoder = str(folder)
    codec, frozen = first_stage(config)
    assert code_shape(config) == (8, 8, 2)
    x = jax.random.normal(jax.random.key(0), (2, *code_shape(config)))
    pixels = jax.jit(codec.decode)(frozen(), x, jax.random.key(1))
    assert pixels.shape == (2, 16, 16, 3)
    config.data.name = "latents/each"
    latent = first_stage(config).codec
    assert latent.encode({}, x, jax.random.key(0)) is x
    again = jax.jit(latent.decode)(frozen(), x, jax.random.key(2))
    np.testing.assert_allclose(again, pixels, atol=1e-5)
    config.data.name = "latents/single"  # of one scale for all channels
    with pytest.raises(ValueError, match="encode it again"):
        first_stage(config)


def test_a_release_draws_without_the_data_or_the_checkpoints(run, root, tmp_path):
    first, _ = run
    encode_latents(first, NAME, "given", root)
    config = base.get_config()
    config.data.update(name="latents/given", image_size=(16, 16), channels=3, dir=str(root))
    config.data.num_classes = 2
    config.model.autoencoder = str(first)
    config.model.unet.update(channels=8, channel_mults=(1,), head_dim=8)
    config.train.update(steps=2, batch_size=4, checkpoint_every=2, sample_every=0)
    config.sampler.update(n=4, batch_size=4, steps=2)
    jobs.train(config, tmp_path / "run")
    wanted = jobs.sample(jobs.run_config(tmp_path / "run"), tmp_path / "run")
    given = release(tmp_path / "run", tmp_path / "given")
    moved = given.rename(tmp_path / "moved")
    alone = {"data.dir": str(tmp_path / "no sets")}
    drawn = jobs.sample(jobs.run_config(moved, alone), moved)
    # Weights of half precision: a few of 255 grey levels.
    assert np.abs(drawn.images.astype(int) - wanted.images).max() <= 3
    again = release(moved, tmp_path / "again")  # of a release: the same files
    for name in ("weights.safetensors", "autoencoder/weights.safetensors"):
        assert (again / name).read_bytes() == (moved / name).read_bytes()
    with pytest.raises(ValueError, match="exists"):
        release(moved, again)
    with pytest.raises(ValueError, match="is a release"):
        jobs.train(config, moved)
    with pytest.raises(ValueError, match="is a release"):
        jobs.sample(jobs.run_config(moved, {"sampler.params": "params", **alone}), moved)


def test_the_use_of_a_codebook_is_counted(root, tmp_path):
    config = tiny(root)
    config.model.name = "autoencoder_vq"
    config.model.autoencoder_vq = {**config.model.autoencoder_kl, "entries": 8}
    config.first_stage.update(bottleneck="vq()", adversary="")
    experiment = experiments.experiment(config)
    params = experiment.recipe.init(jax.random.key(0), {"image": jnp.zeros((1, 16, 16, 3))})
    figures = FIGURES[type(experiment)](Run(config, experiment, params, 3), tmp_path)
    images = to_unit(load_images(NAME, "test", 8, (16, 16), 3, root)[0])
    encode = lambda x: experiment.module.apply(
        {"params": params["autoencoder"]}, x, method="encode"
    )
    share = np.bincount(np.asarray(jax.jit(encode)(images).indices).reshape(-1), minlength=8)
    share = share[share > 0] / share.sum()
    np.testing.assert_allclose(figures["entries used"].value, len(share) / 8)
    entropy = -(share * np.log(share)).sum()
    np.testing.assert_allclose(figures["perplexity of entries"].value, np.exp(entropy), rtol=1e-5)


def test_a_codebook_of_averages_is_in_the_checkpoint_and_resumes_bit_for_bit(root, tmp_path):
    def train(folder, steps):
        config = tiny(root, steps)
        config.model.name = "autoencoder_vq"
        config.model.autoencoder_vq = {**config.model.autoencoder_kl, "entries": 8}
        config.first_stage.update(bottleneck="vq_ema(decay=0.5)", adversary="")
        config.optimizer.schedule = "constant()"
        config.train.update(sample_every=0, checkpoint_every=2)
        return jobs.train(config, tmp_path / folder)

    through = train("through", 4)
    train("stopped", 2)
    resumed = train("stopped", 4)
    jax.tree.map(np.testing.assert_array_equal, resumed, through)
    # The codebook of the parameters is what the carry says, and the next stage reads its average.
    count, total = through.carry
    smooth = count.sum() * (count + 1e-5) / (count.sum() + 8e-5)
    held = through.params["autoencoder"]["codebook"]
    np.testing.assert_allclose(held, total / smooth[:, None], rtol=1e-5)
    encode_latents(tmp_path / "through", NAME, "entries", root)
    _, params, codec = load_autoencoder(tmp_path / "through")
    book = params["codebook"]
    np.testing.assert_array_equal(book, through.ema["autoencoder"]["codebook"])
    image = to_unit(load_images(NAME, "test", 2, (16, 16), 3, root)[0])
    codes = codec.encode({"autoencoder": params}, image, jax.random.key(0))
    held = json.loads((tmp_path / "through" / "latents.json").read_text())
    entries = (codes / held["scale"] + held["shift"]).reshape(-1, 1, 2)
    np.testing.assert_allclose(np.abs(entries - book).sum(-1).min(1), 0, atol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "vq", "vq_ema"])
def test_the_step_of_the_config_has_consistent_shapes(kind):
    config = emoji_autoencoder.get_config()
    if kind != "kl":
        config.model.name = "autoencoder_vq"
        config.model.autoencoder_vq = config.model.autoencoder_kl
        config.first_stage.bottleneck = f"{kind}()"
    experiment, settings = experiments.experiment(config), training.training(config)
    batch = {"image": jax.ShapeDtypeStruct((2, *experiment.shape), jnp.float32)}
    state = abstract_state(experiment.recipe, settings["tx"], settings["ema"], batch)
    step = make_step(experiment.recipe, settings["tx"], settings["ema"], seed=0)
    after, metrics = jax.eval_shape(step, state, experiment.frozen(), batch)
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shapes(after) == shapes(state)
    assert ("perplexity" in metrics) == (kind != "kl")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("first_stage.bottleneck", "vq()", ["does not fit", "kl()"]),
        ("first_stage.pixel", "l3()", ["first_stage.pixel", "l1, l2"]),
        ("first_stage.perceptual", "vgg()", ["first_stage.perceptual", "efficientnet, lpips"]),
        ("first_stage.perceptual", "lpips('none.safetensors')", ["no file", "efficientnet()"]),
        ("first_stage.adversary", "wgan()", ["first_stage.adversary", "hinge, non_saturating"]),
        ("optimizer.groups", (("autoencoder", 1.0),), ["optimizer.groups", "discriminator"]),
    ],
)
def test_a_wrong_field_is_named_with_its_mend(field, value, words, root):
    config = tiny(root)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError) as error:
        experiment, settings = experiments.experiment(config), training.training(config)
        batch = {"image": jax.ShapeDtypeStruct((2, *experiment.shape), jnp.float32)}
        abstract_state(experiment.recipe, settings["tx"], settings["ema"], batch)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_folder_without_a_first_stage_is_named(run, tmp_path):
    with pytest.raises(ValueError, match=r"config.json is missing"):
        encode_latents(tmp_path, NAME)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"name": "unet"}}))
    with pytest.raises(ValueError, match=r"config.model.name = 'unet'; give one of autoencoder_kl"):
        encode_latents(tmp_path, NAME)
    with pytest.raises(ValueError, match=r"one keeps moments, mean"):
        encode_latents(run[0], NAME, keep="variance")
    with pytest.raises(ValueError, match=r"latents.json is missing"):
        load_autoencoder(tmp_path)
