"""Names of the original layout, of Stable Diffusion 1.x's published shapes and of odd counts."""

import pytest

from diffusion_jax.convert.original_names import controlnet_pairs, unet_pairs, vae_pairs

WIDTHS = [320, 640, 1280, 1280]
SD1 = {
    "block_out_channels": WIDTHS,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}


def test_the_unet_of_stable_diffusion_1():
    """25 input and output blocks in one list each; diffusers counts by level."""
    pairs = unet_pairs(SD1)
    names = dict(pairs)
    assert len(names) == len(pairs) == len(set(names.values()))
    assert {
        "input_blocks.0.0": "conv_in",
        "input_blocks.1.0.in_layers.0": "down_blocks.0.resnets.0.norm1",
        "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks.4.1": "down_blocks.1.attentions.0",
        "input_blocks.11.0.out_layers.3": "down_blocks.3.resnets.1.conv2",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2.skip_connection": "mid_block.resnets.1.conv_shortcut",
        "output_blocks.0.0.emb_layers.1": "up_blocks.0.resnets.0.time_emb_proj",
        "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",  # a level without attention
        "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
        "output_blocks.11.1": "up_blocks.3.attentions.2",
        "out.2": "conv_out",
    }.items() <= names.items()
    assert not [name for name in names if name.startswith(("input_blocks.12", "output_blocks.12"))]
    assert "input_blocks.12.0.op" not in names and "output_blocks.11.2.conv" not in names


def test_levels_may_have_counts_of_their_own():
    names = dict(unet_pairs({**SD1, "layers_per_block": [1, 2, 1, 3]}))
    assert names["input_blocks.2.0.op"] == "down_blocks.0.downsamplers.0.conv"
    assert names["input_blocks.7.0.op"] == "down_blocks.2.downsamplers.0.conv"
    assert names["input_blocks.10.1"] == "down_blocks.3.attentions.2"
    assert names["output_blocks.3.1.conv"] == "up_blocks.0.upsamplers.0.conv"  # four blocks
    assert names["output_blocks.10.1"] == "up_blocks.3.attentions.1"


def test_a_controlnet_has_a_convolution_for_each_skip_and_a_list_for_the_hint():
    names = dict(controlnet_pairs(SD1))
    skips = [name for name in names if name.startswith("zero_convs")]
    assert skips == [f"zero_convs.{i}.0" for i in range(12)]
    assert names["zero_convs.11.0"] == "controlnet_down_blocks.11"
    hint = {name: ours for name, ours in names.items() if name.startswith("input_hint_block")}
    assert list(hint) == [f"input_hint_block.{i}" for i in range(0, 15, 2)]
    assert hint["input_hint_block.2"] == "controlnet_cond_embedding.blocks.0"
    assert hint["input_hint_block.14"] == "controlnet_cond_embedding.conv_out"
    short = controlnet_pairs({**SD1, "conditioning_embedding_out_channels": [16, 32]})
    assert ("input_hint_block.6", "controlnet_cond_embedding.conv_out") in short
    assert not [ours for _, ours in short if ours.startswith("up_blocks")]


@pytest.mark.parametrize("given", [{}, {"layers_per_block": 1}])
def test_an_autoencoder_counts_levels_from_the_full_size(given):
    names = dict(vae_pairs({"block_out_channels": [128, 256, 512], **given}))
    blocks = given.get("layers_per_block", 2)
    last = f"decoder.up.2.block.{blocks}.conv2"
    assert names[last] == f"decoder.up_blocks.0.resnets.{blocks}.conv2"
    assert f"decoder.up.2.block.{blocks + 1}.conv2" not in names
    assert f"encoder.down.0.block.{blocks - 1}.norm1" in names
    assert f"encoder.down.0.block.{blocks}.norm1" not in names
    assert (
        names["decoder.up.0.block.0.nin_shortcut"] == "decoder.up_blocks.2.resnets.0.conv_shortcut"
    )
    assert names["encoder.down.1.downsample.conv"] == "encoder.down_blocks.1.downsamplers.0.conv"
    assert names["decoder.up.1.upsample.conv"] == "decoder.up_blocks.1.upsamplers.0.conv"
    assert names["encoder.mid.attn_1.proj_out"] == "encoder.mid_block.attentions.0.to_out.0"
    assert names["decoder.mid.block_2.conv1"] == "decoder.mid_block.resnets.1.conv1"
    assert names["encoder.norm_out"] == "encoder.conv_norm_out"
    assert names["post_quant_conv"] == "post_quant_conv"
