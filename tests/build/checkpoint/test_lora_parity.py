"""LoRA files of both layouts: diffusers' images and U-Net outputs, and files that do not fit."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing_by_hand import author_sampler, compiled

from diffusion_jax.build.checkpoint.additions import with_loras
from diffusion_jax.build.checkpoint.text_to_image import text_to_image
from diffusion_jax.convert.lora import read_lora, write_lora
from diffusion_jax.convert.single_file import unet_from_diffusers
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.convert.tensors import read_safetensors, write_safetensors

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import stable_diffusion
    import torch
else:
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    import stable_diffusion

STEPS, GUIDANCE, SCALE, SIDE, RANK, ALPHA = 4, 3.0, 0.7, 32, 4, 2.0
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def modules(pipe):
    """(part, module's name, module) of the layers that public LoRA files adapt."""
    wanted = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in",
              "proj_out", "conv1", "conv2", "time_emb_proj", "q_proj", "k_proj", "v_proj",
              "out_proj", "fc1", "fc2")  # fmt: skip
    for part in PREFIXES:
        network = getattr(pipe, part, None)
        for name, module in network.named_modules() if network else ():
            if name.endswith(wanted):
                inside = "" if part == "unet" or name.startswith("text_model.") else "text_model."
                yield part, inside + name, module


def tensors(pipe):
    """{(part, module): (down, up)} at random, as PyTorch has them."""
    rng, made = np.random.default_rng(0), {}
    for part, name, module in modules(pipe):
        n, m, *kernel = module.weight.shape
        down = rng.normal(size=(RANK, m, *kernel)) / np.sqrt(m * np.prod(kernel))
        up = rng.normal(size=(n, RANK, *(1 for _ in kernel))) * 0.5
        made[part, name] = down.astype(np.float32), up.astype(np.float32)
    return made


def peft_layout(pipe, config, path):
    out = {}
    for (part, name), (down, up) in tensors(pipe).items():
        out[f"{part}.{name}.lora_A.weight"] = down
        out[f"{part}.{name}.lora_B.weight"] = up
    write_safetensors(path, out, {"format": "pt"})


def older_layout(pipe, config, path):
    out = {}
    for (part, name), (down, up) in tensors(pipe).items():
        if part == "unet":
            dot = "_lora" if ".attn" in name else ".lora"
            name = name.replace(".to_out.0", ".to_out")
            name = name.replace(".to_", ".processor.to_") if ".attn" in name else name
        else:
            dot = ".lora_linear_layer"
        out |= {f"{part}.{name}{dot}.down.weight": down, f"{part}.{name}{dot}.up.weight": up}
    write_safetensors(path, out, {"format": "pt"})


def kohya_layout(pipe, config, path):
    """SDXL's U-Net in the original numbering, with an alpha that is not the rank."""
    two, out = hasattr(pipe, "text_encoder_2"), {}
    for (part, name), (down, up) in tensors(pipe).items():
        prefix = "lora_te1" if two and part == "text_encoder" else PREFIXES[part]
        if two and part == "unet":
            (name,) = unet_from_diffusers({f"{name}.weight": down}, config)
            name = name.removesuffix(".weight")
        stem = f"{prefix}_{name.replace('.', '_')}"
        out |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        out[f"{stem}.alpha"] = np.float32(ALPHA).reshape(())
    write_safetensors(path, out)


LAYOUTS = {"peft": peft_layout, "older": older_layout, "kohya": kohya_layout}


class Case:
    """A pipeline, its checkpoint, and one compiled sampler for all weights."""

    def __init__(self, kind, folder):
        self.folder = folder
        self.pipe, path = stable_diffusion.pipeline(kind, folder)
        self.checkpoint = read_checkpoint(path)
        self.config = self.checkpoint.configs["unet"]
        self.made = made = text_to_image(self.checkpoint)
        latent = (SIDE // 8, SIDE // 8, 4)
        _, self.draw = compiled(made, author_sampler(made, made.sampling, STEPS))
        self.noise = np.random.default_rng(0).normal(size=(1, *latent)).astype(np.float32)

    def ours(self, weights):
        prompts = (["a photo of a red cat"], ["dog"])
        rows, avoid = self.made.inputs.pair(*prompts, (SIDE, SIDE), chunks=1)
        return self.draw(rows, avoid, self.noise, GUIDANCE, weights=weights)

    def theirs(self):
        latents = torch.tensor(self.noise).permute(0, 3, 1, 2)
        images = self.pipe(
            ["a photo of a red cat"], negative_prompt=["dog"], num_inference_steps=STEPS,
            guidance_scale=GUIDANCE, latents=latents, output_type="np", height=SIDE, width=SIDE,
            cross_attention_kwargs={"scale": SCALE},
        ).images  # fmt: skip
        return np.round(images * 255)

    def unets(self, weights):
        rng = np.random.default_rng(1)
        x = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
        context = rng.normal(size=(2, 5, self.config["cross_attention_dim"])).astype(np.float32)
        cond, added = {"context": context}, {}
        if self.made.inputs.sized:
            ids = np.tile(np.asarray([32, 32, 0, 0, 32, 32], np.float32), (2, 1))
            pooled = rng.normal(size=(2, 32)).astype(np.float32)
            cond |= {"pooled": pooled, "time_ids": ids}
            added = {"text_embeds": torch.tensor(pooled), "time_ids": torch.tensor(ids)}
        ours = jax.jit(self.made.model.net)(weights.params, x, jnp.full(2, 300.0), cond)
        with torch.no_grad():
            theirs = self.pipe.unet(
                torch.tensor(x).permute(0, 3, 1, 2), 300, torch.tensor(context),
                added_cond_kwargs=added, cross_attention_kwargs={"scale": SCALE},
            ).sample  # fmt: skip
        return np.asarray(ours), theirs.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_images_and_outputs(case, layout):
    path = case.folder / f"{layout}.safetensors"
    LAYOUTS[layout](case.pipe, case.config, path)
    weights = text_to_image(with_loras(case.checkpoint, [f"{path}:{SCALE}"])).weights
    case.pipe._lora_scale = 1.0  # of the last call, by which loading would scale text encoders
    case.pipe.load_lora_weights(path.parent, weight_name=path.name)
    try:
        want, images = case.unets(weights), case.theirs()
    finally:
        case.pipe.unload_lora_weights()
    assert np.abs(want[0] - want[1]).max() <= 1e-4 * np.abs(want[1]).max()
    ours = case.ours(weights)
    assert np.abs(ours - images).max() <= 2
    assert np.abs(case.ours(case.made.weights) - images).mean() > 5  # the LoRA does something
    # All layouts hold the same tensors under other names.
    first = read_lora(path, case.checkpoint)
    assert sum(len(part.factors) for part in first.values()) == len(tensors(case.pipe))


def test_files_go_round(case):
    peft, copy = case.folder / "a.safetensors", case.folder / "b.safetensors"
    peft_layout(case.pipe, case.config, peft)
    write_lora(copy, read_lora(peft, case.checkpoint), case.checkpoint)
    assert peft.read_bytes() == copy.read_bytes()
    # kohya's alpha of 2 and rank of 4 go into "up".
    kohya = case.folder / "c.safetensors"
    kohya_layout(case.pipe, case.config, kohya)
    write_lora(copy, read_lora(kohya, case.checkpoint), case.checkpoint)
    for name, array in read_safetensors(peft).items():
        ratio = ALPHA / RANK if ".lora_B." in name else 1
        np.testing.assert_array_equal(read_safetensors(copy)[name], array * ratio)


def test_alphas_of_each_module_and_of_the_metadata(case):
    path = case.folder / "told.safetensors"
    peft_layout(case.pipe, case.config, path)
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    told = {"unet.lora_alpha": 8, "unet.alpha_pattern": {module: 3}}
    settings = {"lora_adapter_metadata": json.dumps(told)}
    write_safetensors(path, read_safetensors(path), settings)
    found = read_lora(path, case.checkpoint)
    one = "mid/transformer/layer_0/self_attention/query/kernel"
    alphas = found["unet"].alphas
    assert alphas.pop(one) == 3
    assert set(alphas.values()) == {8} and not found["text_encoder"].alphas


def test_what_does_not_fit_is_named(case):
    path = case.folder / "odd.safetensors"
    peft_layout(case.pipe, case.config, path)
    good = read_safetensors(path)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    dropped = {n: a for n, a in good.items() if n != name}
    for state, words in (
        (dropped, f"missing {name}"),
        ({**good, name: good[name][:, :-1]}, rf"misshapen {name}: \(4, 63\) instead of \(4, 64\)"),
        ({**good, "unet.x.hada_w1_a": good[name]}, "extra unet.x.hada_w1_a"),
        ({**good, "lora_unet_mid_block.alpha": np.ones(())}, "extra lora_unet_mid_block.alpha"),
        ({**good, name: good[name] * np.nan}, f"NaNs or infinities in {name}"),
        ({}, "holds no tensor"),
    ):
        write_safetensors(path, state)
        with pytest.raises(ValueError, match=words):
            read_lora(path, case.checkpoint)
    path.write_bytes(b"\x80\x02pickle.....")
    with pytest.raises(ValueError, match="is a pickle"):
        with_loras(case.checkpoint, [str(path)])
    with pytest.raises(FileNotFoundError, match=r"There is no LoRA at none\.safetensors"):
        with_loras(case.checkpoint, ["none.safetensors"])
    with pytest.raises(ValueError, match="must be a list of files"):
        with_loras(case.checkpoint, "a.safetensors")
