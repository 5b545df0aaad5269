"""Stable Diffusion's networks and files without PyTorch: errors, dtypes, families, single files."""

import jax.numpy as jnp
import numpy as np
import pytest
from sd_configs import TINY

from diffusion_jax.convert import families, single_file
from diffusion_jax.convert.controlnet import controlnet_config
from diffusion_jax.convert.fitting import differences, tensor_shapes
from diffusion_jax.convert.folders import read_weights, write_weights
from diffusion_jax.convert.names import by_path
from diffusion_jax.convert.read_single_file import read_single_file
from diffusion_jax.convert.sd_names import rows
from diffusion_jax.convert.sd_unet import (
    from_sd_unet,
    text_unet_config,
    to_sd_unet,
    unet_shapes,
)
from diffusion_jax.convert.tensors import write_safetensors

CONFIG = TINY["sd1"]


@pytest.fixture(scope="module")
def state():
    """Half-precision tensors under diffusers' names, distinct."""
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(unet_shapes(CONFIG), rows(CONFIG))
    return {name: rng.normal(size=s).astype(np.float16) for name, s in shapes.items()}


def test_a_checkpoint_keeps_its_bytes_and_is_not_copied(state, tmp_path):
    write_weights(tmp_path / "in", "unet", state, variant="fp16", most_bytes=20_000)
    read = read_weights(tmp_path / "in", "unet")
    _, params = from_sd_unet(read, CONFIG)
    kernel = params["mid"]["transformer"]["layer_0"]["mlp"]["in"]["kernel"]
    name = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"
    assert np.shares_memory(kernel, read[name])
    np.testing.assert_array_equal(kernel, state[name].T)
    assert {leaf.dtype for leaf in by_path(params).values()} == {np.dtype(np.float16)}
    write_weights(tmp_path / "out", "unet", to_sd_unet(params, CONFIG))
    again = read_weights(tmp_path / "out", "unet")
    assert again.keys() == state.keys()
    for tensor, array in state.items():
        assert again[tensor].dtype == array.dtype and again[tensor].tobytes() == array.tobytes()


def test_parameters_in_another_type(state):
    _, params = from_sd_unet(state, CONFIG, jnp.float32)
    assert {leaf.dtype for leaf in by_path(params).values()} == {np.dtype(np.float32)}


def test_every_misfit_is_named(state):
    bad = dict(state)
    del bad["conv_in.bias"], bad["mid_block.attentions.0.proj_in.weight"]
    bad |= {"encoder.weight": np.zeros(3), "conv_out.bias": np.zeros(7)}
    with pytest.raises(ValueError) as error:
        from_sd_unet(bad, CONFIG)
    assert str(error.value) == (
        "The weights do not fit the config: missing conv_in.bias; "
        "missing mid_block.attentions.0.proj_in.weight; extra encoder.weight; "
        "misshapen conv_out.bias: (7,) instead of (4,)."
    )
    many = {f"w{i:02}": (1,) for i in range(45)}
    said = differences(many, {"w00": (1,)})
    assert said is not None and said.endswith("missing w40; and 4 more missing")
    assert differences(many, many) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_embed_type": "projection"}, "class_embed_type='projection'"),
        ({"addition_embed_type": "image"}, "addition_embed_type='image'"),
        ({"mid_block_type": None}, "mid_block_type=None"),
        ({"only_cross_attention": [True, False]}, r"only_cross_attention=\(True, False\)"),
        ({"dual_cross_attention": True}, "dual_cross_attention=True"),
        ({"encoder_hid_dim": 8}, "encoder_hid_dim=8"),
        ({"time_cond_proj_dim": "256"}, "time_cond_proj_dim=.256."),
        ({"down_block_types": ("KDownBlock2D", "DownBlock2D")}, "up_block_types="),
        ({"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}, "up_block_types="),
        ({"transformer_layers_per_block": [[1], [2, 2]]}, "transformer_layers_per_block="),
        ({"cross_attention_dim": (8, 12)}, r"cross_attention_dim=\(8, 12\)"),
        ({"norm_num_groups": None}, "norm_num_groups=None"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim=None"),
        ({"attention_head_dim": (1, 2, 3)}, r"attention_head_dim=\(1, 2, 3\)"),
    ],
)
def test_what_has_no_counterpart_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        text_unet_config({**CONFIG, **change})


def test_what_a_controlnet_has_no_counterpart_for():
    assert controlnet_config(CONFIG)["hint_widths"] == (16, 32, 96, 256)
    with pytest.raises(ValueError, match="channel_order='bgr'"):
        controlnet_config(CONFIG | {"controlnet_conditioning_channel_order": "bgr"})
    with pytest.raises(ValueError, match="KDownBlock2D"):
        controlnet_config(CONFIG | {"down_block_types": ("KDownBlock2D", "DownBlock2D")})


def test_a_single_file_is_split_and_joined(state):
    original = single_file.unet_from_diffusers(state, CONFIG)
    text = {"text_model.embeddings.token_embedding.weight": np.zeros((4, 2))}
    parts = single_file.Split(
        original, {"quant_conv.weight": np.ones(1)}, {"cond_stage_model.transformer.": text}
    )
    whole = single_file.join(parts)
    assert "model.diffusion_model.output_blocks.2.1.conv.weight" in whole
    assert "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight" in whole
    rest = {"betas": np.zeros(3), "model_ema.decay": np.zeros(1)}
    again = single_file.split(whole | rest)
    assert again.rest == ("betas", "model_ema.decay")
    assert [*again.text_encoders] == ["cond_stage_model.transformer."]
    assert single_file.TEXT_LAYOUTS[next(iter(again.text_encoders))] == "transformers"
    renamed = single_file.unet_to_diffusers(again.unet, CONFIG)
    assert renamed.keys() == state.keys()
    assert all(renamed[name] is state[name] for name in state)
    with pytest.raises(ValueError, match=r"no place in the U-Net .*: extra input_blocks\.9\.0\.x"):
        single_file.unet_to_diffusers({"input_blocks.9.0.x": np.zeros(1)}, CONFIG)


def test_a_single_file_is_read_with_its_familys_configs(tmp_path):
    prefix = single_file.UNET_PREFIX
    names = {
        f"{prefix}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        f"{prefix}input_blocks.0.0.weight": (320, 9, 3, 3),
        "first_stage_model.decoder.up.0.block.0.conv1.bias": (128,),
        "first_stage_model.encoder.mid.attn_1.k.weight": (512, 512, 1, 1),
        "cond_stage_model.model.ln_final.bias": (1024,),
        "alphas_cumprod": (1000,),
    }
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {n: np.zeros(s, np.float16) for n, s in names.items()})
    got = read_single_file(path, "epsilon")
    assert got.family == "sd2" and got.configs.unet["in_channels"] == 9
    assert got.configs.scheduler["prediction_type"] == "epsilon"
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert {n: a.shape for n, a in got.unet.items()} == {
        key: (320, 1024),
        "conv_in.weight": (320, 9, 3, 3),
    }
    assert {n: a.shape for n, a in got.vae.items()} == {
        "decoder.up_blocks.3.resnets.0.conv1.bias": (128,),
        "encoder.mid_block.attentions.0.to_k.weight": (512, 512),
    }
    assert [(layout, [*state]) for layout, state in got.text_encoders] == [
        ("openclip", ["ln_final.bias"])
    ]


def test_families_are_told_by_the_width_of_the_text():
    key = "model.diffusion_model.input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
    assert families.detect({key.format(1): (320, 768)}) == "sd1"
    assert families.detect({key.format(1): (320, 1024)}) == "sd2"
    assert families.detect({key.format(4): (640, 2048)}) == "sdxl"
    with pytest.raises(ValueError, match="reads text of 1280 channels"):
        families.detect({key.format(4): (640, 1280)})
    with pytest.raises(ValueError, match="not a Stable Diffusion model of the original layout"):
        families.detect({"lora_unet_x.alpha": ()})


def test_a_familys_configs_are_the_callers_own():
    base = families.configs("sd2", "epsilon", in_channels=9)
    assert base.scheduler["prediction_type"] == "epsilon" and base.unet["in_channels"] == 9
    base.unet["block_out_channels"].append(3)
    fresh = families.configs("sd2")
    assert fresh.scheduler["prediction_type"] == "v_prediction"
    assert fresh.unet["block_out_channels"] == [320, 640, 1280, 1280]
    assert families.configs("sd1").scheduler["prediction_type"] == "epsilon"
    with pytest.raises(ValueError, match="prediction_type='v' is unknown"):
        families.configs("sd2", "v")
    with pytest.raises(ValueError, match="family='sd3' is unknown"):
        families.configs("sd3")
