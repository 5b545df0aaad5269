"""Adapter files that do not fit: said by what they are, tensor by tensor."""

import json
import os

import numpy as np
import pytest

from diffusion_jax.build.checkpoint.additions import with_loras
from diffusion_jax.convert.lora import read_lora
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.convert.tensors import write_safetensors

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import stable_diffusion
    from lora_files import CONV, DENSE, NORM, cases, kohya, normal, unet_of
else:
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import stable_diffusion
    from lora_files import CONV, DENSE, NORM, cases, kohya, normal, unet_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = stable_diffusion.pipeline("sd1", tmp_path_factory.mktemp("checkpoint"))[1]
    return read_checkpoint(folder), folder


CROSS = "transformer_blocks_0_attn2_to_k"
CROSS_V = "attentions.0.transformer_blocks.0.attn2.to_v"
ODD = {
    "flux": (
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 64),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (64, 4),
        },
        "a LoRA of Flux",
    ),
    "flux_peft": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 64)},
        "a LoRA of Flux",
    ),
    "flux2": (
        {"diffusion_model.single_stream_modulation.lin.lora_A.weight": (4, 64)},
        "a LoRA of Flux 2",
    ),
    "ia3": (
        {
            "lora_unet_double_blocks_0_img_attn_qkv.weight": (64,),
            "lora_unet_double_blocks_0_img_attn_qkv.on_input": (1,),
        },
        r"an \(IA\)\^3 of Flux",
    ),
    "sd3": (
        {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 64)},
        "a LoRA of Stable Diffusion 3",
    ),
    "wan": ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (4, 64)}, "a LoRA of Wan"),
    "qwen": (
        {"transformer_blocks.0.img_mlp.net.0.proj.lora_A.weight": (4, 64)},
        "a LoRA of Qwen-Image",
    ),
    "z": ({"diffusion_model.layers.0.attention.to_q.lora_A.weight": (4, 64)}, "a LoRA of Z-Image"),
    "sdxl": (
        {
            f"lora_unet_input_blocks_4_1_{CROSS}.lora_down.weight": (4, 2048),
            f"lora_unet_input_blocks_4_1_{CROSS}.lora_up.weight": (640, 4),
        },
        "a LoRA of Stable Diffusion XL",
    ),
    "sd1": (
        {
            f"lora_unet_down_blocks_0_attentions_0_{CROSS}.hada_w1_b": (4, 768),
            f"lora_unet_down_blocks_0_attentions_0_{CROSS}.hada_w1_a": (320, 4),
        },
        "a LoHa of Stable Diffusion 1",
    ),
    "sd2": (
        {f"unet.down_blocks.0.{CROSS_V}.lora_A.weight": (4, 1024)},
        "a LoRA of Stable Diffusion 2",
    ),
    "glora": ({"lora_unet_mid.a1.weight": (4, 4)}, "a GLoRA, a kind that is not read"),
    "oft": ({"lora_unet_mid.oft_blocks": (4, 4)}, "an OFT, a kind that is not read"),
    "control_lora": (
        {"lora_controlnet": (0,), "input_hint_block.0.weight": (4, 4, 3, 3)},
        "a Control-LoRA",
    ),
    "controlnet": ({"control_model.input_hint_block.0.weight": (4, 4, 3, 3)}, "a ControlNet"),
    "t2i": ({"adapter.body.0.resnets.0.block1.weight": (4, 4, 3, 3)}, "a T2I-Adapter"),
    "whole": (
        {"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3)},
        "a whole checkpoint",
    ),
    "unet": (
        {"down_blocks.0.resnets.0.conv1.weight": (32, 32, 3, 3)},
        "the weights of a U-Net alone",
    ),
    "vae": (
        {"decoder.mid.block_1.conv1.weight": (4, 4, 3, 3)},
        r"the weights of an autoencoder \(VAE\) alone",
    ),
    "text": (
        {"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)},
        "the weights of a text encoder alone",
    ),
    "word": ({"emb_params": (2, 768)}, "an embedding of a word"),
    "ip": ({"ip_adapter.1.to_k_ip.weight": (4, 4)}, "an IP-Adapter"),
}


def test_what_it_is_instead(checkpoint, tmp_path):
    path = tmp_path / "odd.safetensors"
    for shapes, words in ODD.values():
        write_safetensors(
            path, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        )
        name = next(iter(shapes))
        with pytest.raises(
            ValueError, match=f"does not fit the checkpoint: it is {words}"
        ) as error:
            with_loras(checkpoint[0], [str(path)])
        assert name in str(error.value)  # what fits nowhere is listed
    told = {"ss_base_model_version": "sdxl_base_v1-0"}
    write_safetensors(path, {"x.lokr_w1": np.zeros((2, 2), np.float32)}, told)
    with pytest.raises(ValueError, match="it is a LoKr of 'sdxl_base_v1-0'"):
        with_loras(checkpoint[0], [str(path)])


def test_odd_tensors_of_known_modules_are_named(checkpoint, tmp_path):
    ours, path = checkpoint[0], tmp_path / "odd.safetensors"
    made = cases(unet_of(ours))
    c, d = kohya(CONV), kohya(DENSE)
    for name, change, words in (
        ("loha", {f"{c}.hada_w2_b": None}, f"missing {c}.hada_w2_b"),
        ("loha", {f"{c}.hada_w2_b": normal(3, 7)},
         rf"misshapen {c}.hada_w2_b: \(3, 7\) instead of \(3, 288\)"),
        ("loha", {f"{c}.lokr_w1": normal(2, 2)}, f"extra {c}.lokr_w1"),
        ("lokr", {f"{c}.lokr_w1": normal(5, 8)}, f"misshapen {c}.lokr_w2_a"),
        ("lokr", {f"{c}.lokr_w2_b": None}, f"missing {c}.lokr_w2_b"),
        ("core", {f"{c}.lora_mid.weight": normal(5, 4, 1, 3)}, f"misshapen {c}.lora_mid.weight"),
        ("full", {f"{c}.diff_b": normal(3)}, rf"misshapen {c}.diff_b: \(3,\) instead of \(64,\)"),
        ("dora_by_input", {f"{d}.dora_scale": normal(3)}, f"misshapen {d}.dora_scale"),
        ("alpha_absent", {f"{d}.alpha": normal(2)},
         rf"misshapen {d}.alpha: \(2,\) instead of \(1,\)"),
        ("ia3_inputs", {f"{d}.on_input": None}, f"extra {d}.weight"),
        ("ia3_inputs", {f"{d}.weight": normal(3)}, f"misshapen {d}.weight"),
        ("norms", {f"{kohya(NORM)}.w_norm": normal(3)}, "misshapen .*w_norm"),
    ):  # fmt: skip
        tensors = {k: v for k, v in {**made[name][0], **change}.items() if v is not None}
        write_safetensors(path, tensors)
        with pytest.raises(ValueError, match=words):
            read_lora(path, ours)
    tensors = made["alpha_absent"][0]
    for said, words in (
        ("[1]", "is not a JSON object"), ("{", "is not JSON"),
        (json.dumps({"unet.lora_alpha": "x"}), "lora_alpha = 'x' of its settings is no number"),
        (json.dumps({"unet.r": 0}), "r = 0 of its settings is no number"),
    ):  # fmt: skip
        write_safetensors(path, tensors, {"lora_adapter_metadata": said})
        with pytest.raises(ValueError, match=words):
            read_lora(path, ours)
