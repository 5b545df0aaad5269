"""Adapters of every dialect: PEFT's own merged weights, closed forms of the rest, and refusals."""

import os

import numpy as np
import pytest

from diffusion_jax.build.checkpoint.additions import with_loras
from diffusion_jax.build.checkpoint.open import open_checkpoint
from diffusion_jax.convert.lora import read_lora
from diffusion_jax.convert.stable_diffusion import read_checkpoint
from diffusion_jax.convert.tensors import write_safetensors
from diffusion_jax.convert.text_encoders import to_transformers

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import peft
    import stable_diffusion
    import torch
    from lora_files import DENSE, cases, normal, unet_of
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    import stable_diffusion
    from lora_files import DENSE, cases, normal, unet_of

TARGETS = [
    "to_q",
    "to_out.0",
    "ff.net.0.proj",
    "conv1",
    "proj_in",
    "time_emb_proj",
    "downsamplers.0.conv",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = stable_diffusion.pipeline("sd1", tmp_path_factory.mktemp("checkpoint"))[1]
    return read_checkpoint(folder), folder


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
