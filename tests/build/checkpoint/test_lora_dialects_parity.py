"""Adapters of every dialect: PEFT's own merged weights, closed forms of the rest, and refusals."""

import json
import os

import numpy as np
import pytest

from diffusion_jax.build.checkpoint.additions import with_loras
from diffusion_jax.build.checkpoint.open import open_checkpoint
from diffusion_jax.convert.lora import read_lora
from diffusion_jax.convert.sd_unet import to_sd_unet
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.convert.tensors import write_safetensors
from diffusion_jax.convert.text_encoders import to_transformers

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import peft
    import stable_diffusion
    import torch
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    import stable_diffusion

RNG = np.random.default_rng(0)
TARGETS = [
    "to_q",
    "to_out.0",
    "ff.net.0.proj",
    "conv1",
    "proj_in",
    "time_emb_proj",
    "downsamplers.0.conv",
]
DENSE = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"  # 64 -> 512
CONV = "down_blocks.1.resnets.0.conv1"  # 32 -> 64, 3x3
POINT = "mid_block.attentions.0.proj_in"  # 1x1
NORM = "mid_block.resnets.0.norm1"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = stable_diffusion.pipeline("sd1", tmp_path_factory.mktemp("checkpoint"))[1]
    return read_checkpoint(folder), folder


def unet_of(checkpoint):
    state = to_sd_unet(checkpoint.unet.params, checkpoint.configs["unet"])
    return {name: np.asarray(array) for name, array in state.items()}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


PEFT = {
    "lora": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS),
    "rslora": lambda: peft.LoraConfig(r=5, lora_alpha=3, use_rslora=True, target_modules=TARGETS),
    "dora": lambda: peft.LoraConfig(r=3, lora_alpha=2, use_dora=True, target_modules=TARGETS),
    "biased": lambda: peft.LoraConfig(
        r=3, lora_alpha=7, lora_bias=True, target_modules=["conv1", "ff.net.0.proj"]
    ),
    "ranks": lambda: peft.LoraConfig(
        r=3,
        lora_alpha=2,
        target_modules=TARGETS,
        rank_pattern={"conv1": 1},
        alpha_pattern={"to_q": 9},
    ),
    "loha": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=TARGETS),
    "loha_core": lambda: peft.LoHaConfig(
        r=3, alpha=5, use_effective_conv2d=True, target_modules=TARGETS
    ),
    "lokr": lambda: peft.LoKrConfig(r=3, alpha=5, target_modules=TARGETS, decompose_factor=4),
    "lokr_both": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=TARGETS, decompose_both=True),
    "lokr_core": lambda: peft.LoKrConfig(
        r=3, alpha=5, use_effective_conv2d=True, target_modules=TARGETS
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=[*TARGETS], feedforward_modules=["ff.net.0.proj", "conv1"]
    ),
}


@pytest.mark.parametrize("name", PEFT)
def test_the_weights_that_peft_merges(checkpoint, name, tmp_path):
    ours, folder = checkpoint
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    model = peft.get_peft_model(unet, PEFT[name]())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if any(part in key for part in ("lora_", "hada_", "lokr_", "ia3_")):
                near = 1.0 if "ia3_" in key or "magnitude" in key else 0.0
                parameter.copy_(near + 0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        merged = model.merge_and_unload().state_dict()
    found, before = unet_of(with_loras(ours, [str(tmp_path)])), unet_of(ours)
    assert found.keys() == merged.keys()
    moved = 0
    for key, array in merged.items():
        want = array.numpy()
        assert np.abs(found[key] - want).max() <= 2e-6 * np.abs(want).max(), key
        moved += np.abs(before[key] - want).max() > 1e-3
    assert moved >= 8


def kohya(name):
    return "lora_unet_" + name.replace(".", "_")


def dora(weight, change, size, axes):
    moved = (weight + change).astype(np.float64)
    return size * moved / np.sqrt((moved**2).sum(axes, keepdims=True)) - weight


def cases(state):
    """name -> (tensors of the file, {tensor: difference}), by definitions of LyCORIS."""
    dense, conv = (state[f"{name}.weight"] for name in (DENSE, CONV))
    (out, into), (n, m, kh, kw) = dense.shape, conv.shape
    d, c, p, norm = kohya(DENSE), kohya(CONV), kohya(POINT), kohya(NORM)
    a, b = normal(3, into), normal(out, 3)
    change = 0.5 * np.einsum("or,ri->oi", b, a)
    pair = {f"{d}.lora_down.weight": a, f"{d}.lora_up.weight": b, f"{d}.alpha": np.array(1.5, "f")}
    up, mid, down = normal(n, 5, 1, 1), normal(5, 4, kh, kw), normal(4, m, 1, 1)
    core = {
        f"{c}.lora_up.weight": up,
        f"{c}.lora_mid.weight": mid,
        f"{c}.lora_down.weight": down,
        f"{c}.alpha": np.array([2.0], "f"),
    }
    t = lambda array: torch.tensor(array, dtype=torch.float64)
    # Its three convolutions one after the other, as the trainer runs them, of each input channel.
    pulse = torch.zeros(m, m, 5, 5, dtype=torch.float64)
    pulse[:, :, 2, 2] = torch.eye(m)
    f = torch.nn.functional.conv2d
    seen = f(f(f(pulse, t(down)), t(mid), padding=1), t(up))[:, :, 1:4, 1:4]
    cored = 0.5 * seen.flip(2, 3).permute(1, 0, 2, 3).numpy()
    h = [normal(n, 2), normal(2, m * kh * kw), normal(n, 3), normal(3, m * kh * kw)]
    roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    loha = dict(zip((f"{c}.{r}" for r in roles), h, strict=True)) | {
        f"{c}.alpha": np.array(3.0, "f")
    }
    loha_change = 1.5 * ((h[0] @ h[1]) * (h[2] @ h[3])).reshape(conv.shape)
    k1, k2a, k2b = normal(4, 8), normal(n // 4, 3), normal(3, m // 8 * kh * kw)
    lokr = {
        f"{c}.lokr_w1": k1,
        f"{c}.lokr_w2_a": k2a,
        f"{c}.lokr_w2_b": k2b,
        f"{c}.alpha": np.array(6.0, "f"),
    }
    second = (k2a @ k2b).reshape(n // 4, m // 8, kh, kw)
    lokr_change = 2.0 * np.einsum("ab,cdkl->acbdkl", k1, second).reshape(conv.shape)
    both = {
        f"{d}.lokr_w1": normal(16, 4),
        f"{d}.lokr_w2": normal(out // 16, into // 4),
        f"{d}.alpha": np.array(1e9, "f"),
    }  # of two whole factors it says nothing
    both_change = np.kron(both[f"{d}.lokr_w1"], both[f"{d}.lokr_w2"])
    rows, columns = normal(out, 1), normal(into)
    by_output, by_input = np.abs(normal(out, 1)), np.abs(normal(1, into))
    conv_in = np.abs(normal(1, m, 1, 1))
    full, bias, scale, shift = normal(n, m, kh, kw), normal(n), normal(64), normal(64)
    flat_a, flat_b = normal(3, 64), normal(64, 3, 1, 1)
    weight = f"{DENSE}.weight"
    comfy = "diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj"
    return {
        "alpha_absent": ({k: v for k, v in pair.items() if "alpha" not in k}, {weight: 2 * change}),
        "core": (core, {f"{CONV}.weight": cored}),
        "pointwise_as_dense": (
            {f"{p}.lora_down.weight": flat_a, f"{p}.lora_up.weight": flat_b},
            {f"{POINT}.weight": (flat_b[:, :, 0, 0] @ flat_a)[:, :, None, None]},
        ),
        "loha": (loha, {f"{CONV}.weight": loha_change}),
        "lokr": (lokr, {f"{CONV}.weight": lokr_change}),
        "lokr_whole": (both, {weight: both_change}),
        "dora_by_output": (
            {**pair, f"{d}.dora_scale": by_output}, {weight: dora(dense, change, by_output, 1)}
        ),
        "dora_by_input": (
            {**pair, f"{d}.dora_scale": by_input}, {weight: dora(dense, change, by_input, 0)}
        ),
        "dora_of_a_loha": (
            {**loha, f"{c}.dora_scale": conv_in},
            {f"{CONV}.weight": dora(conv, loha_change, conv_in, (0, 2, 3))},
        ),
        "ia3_outputs": (
            {f"{d}.weight": rows, f"{d}.on_input": np.array(False)}, {weight: dense * rows}
        ),
        "ia3_inputs": (
            {f"{d}.weight": columns, f"{d}.on_input": np.array(True)}, {weight: dense * columns}
        ),
        "full": (
            {f"{c}.diff": full, f"{c}.diff_b": bias}, {f"{CONV}.weight": full, f"{CONV}.bias": bias}
        ),
        "norms": (
            {**pair, f"{norm}.w_norm": scale, f"{norm}.b_norm": shift},
            {weight: change, f"{NORM}.weight": scale, f"{NORM}.bias": shift},
        ),
        "bias_alone": ({f"{c}.diff_b": bias}, {f"{CONV}.bias": bias}),
        "comfy": (
            {f"{comfy}.{k.partition('.')[2]}": v for k, v in pair.items()}, {weight: change},
        ),
        "default_adapter": (
            {f"base_model.model.{DENSE}.lora_A.default.weight": a,
             f"base_model.model.{DENSE}.lora_B.default.weight": b}, {weight: 2 * change},
        ),
    }  # fmt: skip


def test_the_closed_forms(checkpoint, tmp_path):
    ours, _ = checkpoint
    before, path = unet_of(ours), tmp_path / "made.safetensors"
    for name, (tensors, wanted) in cases(before).items():
        write_safetensors(path, tensors)
        for scale in (1.0, -0.3):
            after = unet_of(with_loras(ours, [f"{path}:{scale}"]))
            for key, array in after.items():
                change = scale * wanted.get(key, np.zeros(()))
                bound = 4e-6 * max(1.0, np.abs(change).max())
                assert np.abs(array - before[key] - change).max() <= bound, (name, key)


def test_changes_add_up_in_any_order_and_are_rounded_once(checkpoint, tmp_path):
    ours, _ = checkpoint
    half = ours._replace(unet=ours.unet._replace(params=_half(ours.unet.params)))
    before, made, files = unet_of(half), cases(unet_of(half)), []
    for name in ("dora_by_output", "dora_by_input", "ia3_outputs"):
        files.append(str(tmp_path / f"{name}.safetensors"))
        write_safetensors(files[-1], made[name][0])
    found = [unet_of(with_loras(half, order))[f"{DENSE}.weight"] for order in (files, files[::-1])]
    total = before[f"{DENSE}.weight"].astype(np.float64)
    for name in ("dora_by_output", "dora_by_input", "ia3_outputs"):
        total = total + made[name][1][f"{DENSE}.weight"]
    assert found[0].dtype == np.float16
    for one in found:
        step = np.spacing(np.abs(total).astype(np.float16)).astype(np.float64)
        assert (np.abs(one.astype(np.float64) - total) <= 0.51 * step + 1e-6).all()


def _half(tree):
    if isinstance(tree, dict):
        return {name: _half(value) for name, value in tree.items()}
    return np.asarray(tree, np.float16)


def test_sdxls_text_projection(tmp_path):
    ours = read_checkpoint(stable_diffusion.pipeline("sdxl", tmp_path)[1])
    a, b = normal(2, 32), normal(32, 2)
    stem = "lora_te2_text_projection"
    pair = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
    write_safetensors(tmp_path / "a.safetensors", {**pair, f"{stem}.alpha": np.array(1.0, "f")})
    made = with_loras(ours, [str(tmp_path / "a.safetensors")])
    old, new = (
        to_transformers(c.text_encoders[1].params, "clip_text")["text_projection.weight"]
        for c in (ours, made)
    )
    np.testing.assert_allclose(new - old, 0.5 * b @ a, atol=1e-6)


def test_words_that_a_file_brings_along(checkpoint, tmp_path):
    from configs import sample

    ours, folder = checkpoint
    path, vectors = tmp_path / "bundle.safetensors", normal(2, 32)
    tensors = cases(unet_of(ours))["alpha_absent"][0]
    write_safetensors(path, {**tensors, "bundle_emb.my cat.string_to_param.*": vectors})
    assert len(read_lora(path, ours)["unet"].changes) == 1
    settings = sample.get_config()
    settings.lora = (f"{path}:0.5",)
    with pytest.warns(UserWarning, match="brings the words 'my cat', for prompts"):
        made = open_checkpoint(str(folder), settings)
    assert made.inputs.words == (("my cat", 2),)
    table = made.weights.frozen["text"][0]["token"]["embedding"]
    np.testing.assert_array_equal(table[-2:], vectors)


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
