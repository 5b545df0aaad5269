"""The original single-file layout against diffusers' own loader, tiny and at full size."""

import os

import numpy as np
import pytest
from sd_configs import TINY

from diffusion_jax.convert import families, single_file
from diffusion_jax.convert.controlnet import controlnet_shapes
from diffusion_jax.convert.controlnet import rows as controlnet_rows
from diffusion_jax.convert.fitting import differences, tensor_shapes
from diffusion_jax.convert.sd_names import rows
from diffusion_jax.convert.sd_unet import unet_shapes

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import torch
    from diffusers.loaders import single_file_utils as theirs
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs = pytest.importorskip("diffusers.loaders.single_file_utils")

PARAMETERS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}
TINY_VAE = {
    "block_out_channels": (8, 8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def same(ours, others):
    """Equal names, shapes and values."""
    assert not differences(shapes(others), shapes(ours))
    for name, array in ours.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(others[name]))


def on_meta(cls, config):
    with torch.device("meta"):
        return cls.from_config(config).state_dict()


@pytest.mark.parametrize("case", TINY)
def test_unet_there_and_back(case):
    state = diffusers.UNet2DConditionModel(**TINY[case]).state_dict()
    original = single_file.unet_from_diffusers(state, TINY[case])
    if case != "upscaler":  # theirs takes one number of blocks for all levels
        config = {"layers_per_block": 2, **TINY[case]}
        named = prefixed(original, single_file.UNET_PREFIX)
        same(theirs.convert_ldm_unet_checkpoint(named, config), state)
    same(single_file.unet_to_diffusers(original, TINY[case]), state)


def test_vae_there_and_back():
    state = diffusers.AutoencoderKL(**TINY_VAE).state_dict()
    original = single_file.vae_from_diffusers(state, TINY_VAE)
    assert original["encoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    named = prefixed(original, single_file.VAE_PREFIX)
    same(theirs.convert_ldm_vae_checkpoint(dict(named), TINY_VAE), state)
    same(single_file.vae_to_diffusers(original, TINY_VAE), state)


def test_controlnet_there_and_back():
    config = {k: v for k, v in TINY["sd1"].items() if k != "up_block_types"}
    state = diffusers.ControlNetModel(**config).state_dict()
    original = single_file.controlnet_from_diffusers(state, config)
    named = prefixed(original, single_file.CONTROL_PREFIX)
    assert "control_model.input_hint_block.14.weight" in named
    same(theirs.convert_controlnet_checkpoint(dict(named), config), state)
    same(single_file.controlnet_to_diffusers(named, config), state)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_full_size_names_shapes_and_counts(name):
    family = families.configs(name)
    unet = on_meta(diffusers.UNet2DConditionModel, family.unet)
    ours = unet_shapes(family.unet)
    assert not differences(shapes(unet), tensor_shapes(ours, rows(family.unet)))
    assert sum(int(np.prod(shape)) for shape in ours.values()) == PARAMETERS[name]

    vae = on_meta(diffusers.AutoencoderKL, family.vae)
    parts = single_file.Split(
        single_file.unet_from_diffusers(unet, family.unet),
        single_file.vae_from_diffusers(vae, family.vae),
        {},
    )
    original = single_file.join(parts)
    again = theirs.convert_ldm_unet_checkpoint(original, family.unet)
    assert not differences(shapes(unet), shapes(again))
    again = theirs.convert_ldm_vae_checkpoint(original, family.vae)
    assert not differences(shapes(vae), shapes(again))
    assert families.detect(shapes(original)) == name


def test_full_size_controlnet():
    config = families.configs("sd1").unet
    config = {k: v for k, v in config.items() if k not in ("up_block_types", "_class_name")}
    for field in ("out_channels", "sample_size", "center_input_sample"):
        config.pop(field)
    state = on_meta(diffusers.ControlNetModel, config)
    ours = controlnet_shapes(config)
    assert not differences(shapes(state), tensor_shapes(ours, controlnet_rows(config)))
    assert sum(int(np.prod(shape)) for shape in ours.values()) == 361_279_120


@pytest.mark.parametrize(("name", "known"), [("sd1", "v1"), ("sd2", "v2"), ("sdxl", "xl_base")])
def test_telling_names_of_published_files(name, known):
    family = families.configs(name)
    unet = on_meta(diffusers.UNet2DConditionModel, family.unet)
    original = prefixed(single_file.unet_from_diffusers(unet, family.unet), single_file.UNET_PREFIX)
    key = theirs.CHECKPOINT_KEY_NAMES[known]
    if key.startswith(single_file.UNET_PREFIX):
        assert key in original
    else:
        original[key] = torch.empty(1)
    assert theirs.infer_diffusers_model_type(original) == known
