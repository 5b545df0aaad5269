"""Few-step checkpoints: LCM-LoRAs, whole LCMs, Lightning and Turbo, images as diffusers'."""

import os
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import sample as settings
from diffusion_jax import jobs
from diffusion_jax.apps.plan import guided
from diffusion_jax.build.checkpoint.additions import with_loras
from diffusion_jax.build.checkpoint.text_to_image import text_to_image
from diffusion_jax.build.sampling import sampler_of, settled
from diffusion_jax.convert.schedulers import sampling_of
from diffusion_jax.convert.single_file import unet_from_diffusers
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.convert.tensors import write_safetensors
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.guidance import GUIDANCES, POSTS
from diffusion_jax.core.sampling import STARTS
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.data import to_uint8
from diffusion_jax.spec import build

pytestmark = pytest.mark.parity

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

PROMPT, SIDE, RANK = "a photo of a red cat", 32, 4
LATENT = (SIDE // 8, SIDE // 8, 4)
RNG = np.random.default_rng(0)
START = RNG.normal(size=(1, *LATENT)).astype(np.float32)
FRESH = RNG.normal(size=(8, 1, *LATENT)).astype(np.float32)  # what schedulers draw, in turn
NOISY = ("consistency()", "euler_ancestral()")


def posted(guidance, specs):
    def how(denoiser, cond, null, scale):
        denoise = guidance(denoiser, cond, null, scale)
        for spec in specs:
            denoise = build(POSTS, spec, "post")(denoise)
        return denoise

    return how


class Case:
    """A checkpoint on both sides; our network is compiled once for all samplers."""

    def __init__(self, kind, folder):
        self.pipe, self.folder = stable_diffusion.pipeline(kind, folder)
        self.checkpoint = read_checkpoint(self.folder)
        model = text_to_image(self.checkpoint).model
        parts = (model.net, model.condition, model.null, model.codec.decode)
        self.net, self.read, self.null, self.decode = map(jax.jit, parts)
        self.sized = self.checkpoint.unet.module.added_features > 0

    def set(self, name, **options):
        """Choose a scheduler for both; what diffusers writes of it is what we read."""
        base = {**stable_diffusion.SCHEDULER, **options}
        self.pipe.scheduler = getattr(diffusers, name).from_config(base)
        self.pipe.scheduler.save_pretrained(self.folder / "scheduler")

    def theirs(self, steps, scale, start=START, **given):
        module = sys.modules[type(self.pipe.scheduler).__module__]
        draws = iter(torch.tensor(FRESH).permute(0, 1, 4, 2, 3))
        with mock.patch.object(module, "randn_tensor", lambda *a, **k: next(draws), create=True):
            images = self.pipe(
                [PROMPT], num_inference_steps=steps, guidance_scale=scale, output_type="np",
                latents=torch.tensor(start).permute(0, 3, 1, 2), height=SIDE, width=SIDE, **given,
            ).images  # fmt: skip
        return np.round(images * 255)

    def ours(self, steps, scale, loras=()):
        """What ``apps.draw`` does, step by step, with FRESH as the solver's noise."""
        checkpoint = with_loras(read_checkpoint(self.folder), loras)
        made = text_to_image(checkpoint)
        model, weights, own = made.model._replace(net=self.net), made.weights, made.sampling
        process = model.process
        levels = build(GRIDS, own["grid"], "grid", process=process, n=steps)
        level = lambda i: jax.tree.map(lambda leaf: leaf[i], levels)
        cond = self.read(weights.frozen, made.inputs.rows([PROMPT], (SIDE, SIDE), chunks=1))
        null = self.null(weights.frozen, cond) if scale > 1 else None
        weigh = posted(GUIDANCES["cfg"](), own["post"])
        scale = jnp.float32(scale) if scale > 1 or model.student else None
        denoise = guided(model, weights.params, weights.frozen, cond, scale, weigh, null)
        x = START * STARTS[own["start"]](level(0))
        for i in range(steps - 1):
            context = {"process": process, "steps": steps}
            if own["solver"] in NOISY:
                context["noise"] = lambda key, x, now, nxt, i=i: jnp.asarray(FRESH[i])
            solver = build(SOLVERS, own["solver"], "solver", **context)
            x, _ = solver.step(jax.random.key(0), denoise, x, level(i), level(i + 1), ())
        assert own["end"] == "clean"
        x0 = denoise(x, level(-1)).x0
        return np.asarray(to_uint8(self.decode(weights.frozen, x0, jax.random.key(0))), np.float32)

    def job(self, **changes):
        """The sampling command's image of seed 3, and the noise that it starts from."""
        config = settings.get_config()
        config.update_from_flattened_dict(
            {"checkpoint": str(self.folder), "prompt": PROMPT, "seed": 3, "chunks": 1, **changes}
        )
        config.image_size = (SIDE, SIDE)
        start = np.asarray(jax.random.normal(jax.random.key(3), LATENT))[None]
        return np.asarray(jobs.sample(config, self.folder / "out").images, np.float32), start


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("checkpoint"))


def lcm_lora(case):
    """A random LoRA of the kind that LCM-LoRA is: SD 1.x's as PEFT, SDXL's as kohya names it."""
    rng, out = np.random.default_rng(1), {}
    wanted = ("to_q", "to_v", "to_out.0", "ff.net.2", "proj_in", "conv1", "time_emb_proj")
    for name, module in case.pipe.unet.named_modules():
        if not name.endswith(wanted):
            continue
        n, m, *kernel = module.weight.shape
        down = rng.normal(size=(RANK, m, *kernel)) / np.sqrt(m * np.prod(kernel))
        up = rng.normal(size=(n, RANK, *(1 for _ in kernel))) * 0.3
        pair = [a.astype(np.float32) for a in (down, up)]
        names = [f"unet.{name}.lora_A.weight", f"unet.{name}.lora_B.weight"]
        if case.sized:
            (name,) = unet_from_diffusers({f"{name}.weight": down}, case.checkpoint.configs["unet"])
            stem = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            names = [f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"]
            out[f"{stem}.alpha"] = np.float32(RANK).reshape(())
        out |= dict(zip(names, pair, strict=True))
    path = case.folder / "lcm_lora.safetensors"
    write_safetensors(path, out, {"format": "pt"})
    return path


def same(ours, theirs):
    assert theirs.std() > 10  # a picture, not one colour
    assert np.abs(ours - theirs).max() <= 2


def test_an_lcm_lora(case):
    path = lcm_lora(case)
    case.set("LCMScheduler")
    chosen = sampling_of(read_checkpoint(case.folder).scheduler)
    assert chosen.grid == "consistency(original=50)" and chosen.end == "clean"
    assert chosen.post == ("latent_consistency(scale=10.0, steps=1000)",)
    without = case.ours(4, 1.0)
    case.pipe.load_lora_weights(path.parent, weight_name=path.name)
    try:
        for scale in (1.0,) if case.sized else (1.0, 1.8):  # the boundary is around guidance
            same(case.ours(4, scale, [str(path)]), case.theirs(4, scale))
        assert np.abs(without - case.theirs(4, 1.0)).mean() > 3  # the LoRA does something
        # A boundary that is felt at every level, and another number of the teacher's levels.
        case.set("LCMScheduler", timestep_scaling=0.001, original_inference_steps=40)
        same(case.ours(3, scale, [str(path)]), case.theirs(3, scale))
        if not case.sized:
            case.set("LCMScheduler")
            changes = {"sampler.steps": 1, "sampler.guidance_scale": 1.0}
            image, start = case.job(lora=(str(path),), **changes)
            same(image, case.theirs(1, 1.0, start))
    finally:
        case.pipe.unload_lora_weights()


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_lightning_and_turbo(case, prediction):
    """Euler on trailing levels, with no guidance at a scale of 0."""
    options = {"timestep_spacing": "trailing", "prediction_type": prediction}
    case.set("EulerDiscreteScheduler", **options)
    for steps in (1, 2, 4):
        same(case.ours(steps, 0.0), case.theirs(steps, 0.0))
    if prediction == "sample":
        return  # which diffusers' ancestral sampler does not take
    if not case.sized:
        image, start = case.job(**{"sampler.steps": 4, "sampler.guidance_scale": 0.0})
        same(image, case.theirs(4, 0.0, start))
    case.set("EulerAncestralDiscreteScheduler", **options)
    for steps in (1, 3):
        same(case.ours(steps, 0.0), case.theirs(steps, 0.0))


def test_a_whole_lcm_is_told_its_guidance(tmp_path):
    case = Case("lcm", tmp_path)
    case.set("LCMScheduler")
    want = case.theirs(4, 8.5)
    same(case.ours(4, 8.5), want)
    same(case.ours(4, 1.0), case.theirs(4, 1.0))
    assert np.abs(case.ours(4, 1.0) - want).max() > 20  # it listens
    with pytest.raises(ValueError, match="negative_prompt = 'fog' changes nothing"):
        case.job(negative_prompt="fog")


def test_what_a_scale_asks_for(case):
    """As in diffusers, a scale of 1 or less is no guidance: one network evaluation a step."""
    generator = text_to_image(case.checkpoint)
    config = settings.get_config()
    for scale, guidance, wanted in (
        (0.0, "cfg()", False), (1.0, "cfg()", False), (2.0, "cfg()", True),
        (0.5, "cfg_plus_plus()", True),
    ):  # fmt: skip
        config.sampler.guidance_scale, config.sampler.guidance = scale, guidance
        of = sampler_of(settled(config.sampler, generator), generator)
        assert of(generator.model, generator.weights).guided == wanted
