"""Tuning a tiny checkpoint: its denoiser, a word, an LCM-LoRA: what changes, is left, is drawn."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import sample as sampling_config
from configs.checkpoints import full as stable_diffusion_full
from configs.checkpoints import lcm_lora as stable_diffusion_lcm_lora
from configs.checkpoints import lora as stable_diffusion_lora
from configs.checkpoints import word as stable_diffusion_word
from diffusion_jax import jobs
from diffusion_jax.build.checkpoint import finetune, tuning
from diffusion_jax.build.checkpoint.text_to_image import text_to_image
from diffusion_jax.build.generator import open_source
from diffusion_jax.convert.lora import read_lora
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.convert.textual_inversion import read_word
from diffusion_jax.core.types import Context
from diffusion_jax.data.prepare import Options, prepare
from diffusion_jax.recipes.few_step import teachers
from diffusion_jax.recipes.few_step.latent_consistency import latent_consistency

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import stable_diffusion
else:
    for needed in ("torch", "diffusers", "transformers", "peft"):
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
        experiment = finetune.experiment(config, open_source)
        batch = next(iter(experiment.data()(0)))
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
    encoders, tokenizers = before.text_encoders, text_to_image(before).inputs.tokenizers
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


PROMPT, SIDE = "a photo of a red cat", 32


def lcm_of(place, **changes):
    config = config_of(place, stable_diffusion_lcm_lora)
    config.prompt, config.prompts, config.chunks = PROMPT, (), 1
    config.tuning = config.tuning.replace("rank=64", "rank=2")
    config.sampler.steps = 4
    config.update_from_flattened_dict(changes)
    return config


def test_an_lcm_lora_is_trained_and_drawn_with_by_diffusers_too(place, tmp_path):
    config = lcm_of(place)
    checkpoint = config.checkpoint
    pipe = stable_diffusion.diffusers.StableDiffusionPipeline.from_pretrained(checkpoint)
    jobs.train(config, tmp_path)
    file = tmp_path / "lora.safetensors"
    adapted = read_lora(file, read_checkpoint(checkpoint))["unet"].factors
    kinds = ("attention/query", "mlp/in", "proj_in", "conv_1", "emb", "shortcut")
    assert all(any(kind in name for name in adapted) for kind in kinds)

    config = jobs.run_config(tmp_path, {"sampler.steps": 1, "seed": 3})
    ours = np.asarray(jobs.sample(config, tmp_path).images, np.float32)
    pipe.scheduler = stable_diffusion.diffusers.LCMScheduler(**stable_diffusion.SCHEDULER)
    noise = np.asarray(jax.random.normal(jax.random.key(3), (SIDE // 8, SIDE // 8, 4)))[None]

    def theirs():
        return 255 * pipe(
            [PROMPT], num_inference_steps=1, guidance_scale=1.0, output_type="np", height=SIDE,
            width=SIDE, latents=stable_diffusion.torch.tensor(noise).permute(0, 3, 1, 2),
        ).images  # fmt: skip

    without = theirs()
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    try:
        assert np.abs(ours - theirs()).max() <= 2
        assert np.abs(ours - without).mean() > 3
    finally:
        pipe.unload_lora_weights()


def test_of_an_lcm_lora_the_checkpoint_itself_is_the_teacher(place):
    """With factors that change nothing, as with factors that do, the loss is the recipe's own."""
    config = lcm_of(place)
    plan = tuning.plan(config)
    experiment = finetune.experiment(config, open_source)
    made = experiment.generator
    batch = next(iter(experiment.data()(0)))
    params = experiment.recipe.init(jax.random.key(0), batch)
    frozen, key = experiment.frozen(), jax.random.key(1)
    teacher = teachers.guided(made.model, scale=jnp.float32(7.5))
    own = latent_consistency(made.model, teacher, None, 50, teachers.no_extra_cond)
    loss = jax.jit(lambda p, f: experiment.recipe.loss(p, Context(0, p, f, ()), batch, key)[0])

    def plain(params):
        whole = plan.weights(frozen, params).params
        context = Context(0, whole, {**frozen, "teacher": frozen["base"]}, ())
        return own.loss(whole, context, batch, key)[0]

    np.testing.assert_allclose(loss(params, frozen), jax.jit(plain)(params), rtol=1e-4)
    moved = jax.tree.map(lambda x: x + 0.05, params)
    np.testing.assert_allclose(loss(moved, frozen), jax.jit(plain)(moved), rtol=1e-4)
    assert abs(loss(moved, frozen) / loss(params, frozen) - 1) > 0.02  # they do change it


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"distill": "latent_consistency()"},
            "conditions its network on .'guidance_scale',.; a",
        ),
        ({"distill": "distribution_matching()"}, "trains several networks; a checkpoint takes"),
        ({"distill": "latent()"}, "unknown name 'latent'"),
        ({"tuning": "full()"}, r"which config.tuning = 'full\(\)' changes; take"),
        ({"distill": "latent_consistency(levels=0, scale=7.5)"}, "levels=0.*must be 1 or more"),
    ],
)
def test_what_a_checkpoint_cannot_learn_of_itself_is_refused(place, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        jobs.train(lcm_of(place, **changes), tmp_path)
