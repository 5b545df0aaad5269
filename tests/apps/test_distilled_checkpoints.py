"""An LCM-LoRA of a tiny checkpoint: what teaches it, and that diffusers draws with what is left."""

import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import stable_diffusion_lcm_lora
from diffusion_jax import build_finetune, build_tuning, jobs
from diffusion_jax.convert.lora import read_lora
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.core.types import Context
from diffusion_jax.data.prepare import Options, prepare
from diffusion_jax.recipes import teachers
from diffusion_jax.recipes.latent_consistency import latent_consistency

pytestmark = pytest.mark.parity
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import stable_diffusion
    import torch
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    import stable_diffusion

PROMPT, SIDE = "a photo of a red cat", 32


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(diffusers' pipeline, its folder, folder of the data set "pets")."""
    root = tmp_path_factory.mktemp("distilled")
    pipe, checkpoint = stable_diffusion.pipeline("sd1", root)
    rng = np.random.default_rng(0)
    (root / "pets").mkdir()
    for i in range(4):
        picture = rng.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(picture).save(root / "pets" / f"{i}.png")
    prepare("image_folder", root / "sets", Options(folder=str(root / "pets"), test_fraction=0.0))
    return pipe, checkpoint, root / "sets"


def config_of(place, **changes):
    config = stable_diffusion_lcm_lora.get_config()
    config.checkpoint, config.data.dir = str(place[1]), str(place[2])
    config.data.name, config.prompt = "image_folder/pets", PROMPT
    config.image_size, config.chunks = (SIDE, SIDE), 1
    config.tuning = config.tuning.replace("rank=64", "rank=2")
    config.train.update(steps=3, batch_size=2, log_every=1, checkpoint_every=3, sample_every=3)
    config.optimizer.learning_rate = 1e-2
    config.update_from_flattened_dict(changes)
    return config


def test_it_is_trained_and_drawn_with_by_diffusers_too(place, tmp_path):
    pipe, checkpoint, _ = place
    jobs.train(config_of(place), tmp_path)
    file = tmp_path / "lora.safetensors"
    adapted = read_lora(file, read_checkpoint(checkpoint))["unet"].factors
    kinds = ("attention/query", "mlp/in", "proj_in", "conv_1", "emb", "shortcut")
    assert all(any(kind in name for name in adapted) for kind in kinds)

    config = jobs.run_config(tmp_path, {"sampler.steps": 1, "seed": 3})
    ours = np.asarray(jobs.sample(config, tmp_path).images, np.float32)
    pipe.scheduler = diffusers.LCMScheduler(**stable_diffusion.SCHEDULER)
    noise = np.asarray(jax.random.normal(jax.random.key(3), (SIDE // 8, SIDE // 8, 4)))[None]

    def theirs():
        return 255 * pipe(
            [PROMPT], num_inference_steps=1, guidance_scale=1.0, output_type="np", height=SIDE,
            width=SIDE, latents=torch.tensor(noise).permute(0, 3, 1, 2),
        ).images  # fmt: skip

    without = theirs()
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    try:
        assert np.abs(ours - theirs()).max() <= 2
        assert np.abs(ours - without).mean() > 3
    finally:
        pipe.unload_lora_weights()


def test_the_checkpoint_itself_is_the_teacher(place):
    """With factors that change nothing, as with factors that do, the loss is the recipe's own."""
    config = config_of(place)
    plan = build_tuning.plan(config)
    made = build_finetune.opened(config, read_checkpoint(config.checkpoint), plan)
    experiment = build_finetune.finetune(config, made, plan)
    batch = next(iter(build_finetune.training_data(config, made)(0)))
    params = experiment.recipe.init(jax.random.key(0), batch)
    frozen, key = experiment.frozen(), jax.random.key(1)
    teacher = teachers.guided(made.model, scale=jnp.float32(7.5))
    own = latent_consistency(made.model, teacher, None, 50, teachers.nothing)
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
            "tells its network .'guidance_scale',.; a",
        ),
        ({"distill": "distribution_matching()"}, "trains several networks; a checkpoint takes"),
        ({"distill": "latent()"}, "unknown name 'latent'"),
        ({"tuning": "full()"}, r"which config.tuning = 'full\(\)' changes; take"),
        ({"distill": "latent_consistency(levels=0, scale=7.5)"}, "levels=0.*must be 1 or more"),
    ],
)
def test_what_cannot_be_learned_is_refused(place, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        jobs.train(config_of(place, **changes), tmp_path)
