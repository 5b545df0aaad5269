"""The name map without PyTorch: errors, old names, and what cannot be converted."""

import jax
import numpy as np
import pytest

from diffusion_jax.convert.diffusers_unet import (
    from_diffusers_unet,
    to_diffusers_unet,
    unet_config,
)
from diffusion_jax.convert.names import locate
from diffusion_jax.models.adapter import init_params
from diffusion_jax.models.unet.unet import UNet

CONFIG = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "num_class_embeds": 4,
}


@pytest.fixture(scope="module")
def state():
    """A state dict in diffusers' names, with distinct values."""
    unet = UNet(**unet_config(CONFIG))
    shapes = jax.eval_shape(lambda k: init_params(unet, k, (1, 2, 2, 3)), jax.random.key(0))
    rng = np.random.default_rng(0)
    return to_diffusers_unet(jax.tree.map(lambda s: rng.normal(size=s.shape), shapes))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_names_and_axes_are_diffusers(state):
    assert state["down_blocks.0.downsamplers.0.conv.weight"].shape == (8, 8, 3, 3)
    assert state["up_blocks.1.resnets.1.conv_shortcut.weight"].shape == (8, 16, 1, 1)
    assert state["mid_block.attentions.0.to_out.0.weight"].shape == (16, 16)
    assert state["class_embedding.weight"].shape == (4, 32)
    _, params = from_diffusers_unet(state, CONFIG)
    kernel = params["up_1"]["block_0"]["res"]["conv_0"]["kernel"]
    weight = state["up_blocks.1.resnets.0.conv1.weight"]
    assert kernel.shape == (3, 3, 24, 8) and kernel[0, 2, 5, 7] == weight[7, 5, 0, 2]


def test_there_and_back(state):
    _, params = from_diffusers_unet(state, CONFIG)
    same(to_diffusers_unet(params), state)


def test_checkpoints_with_the_attention_names_of_2022(state):
    old = state
    for new, name in {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }.items():
        old = {key.replace(f".{new}.", f".{name}."): array for key, array in old.items()}
    assert "mid_block.attentions.0.proj_attn.bias" in old
    same(from_diffusers_unet(old, CONFIG)[1], from_diffusers_unet(state, CONFIG)[1])


def test_every_misfit_is_named(state):
    bad = dict(state)
    del bad["conv_in.bias"], bad["mid_block.resnets.1.norm2.weight"]
    bad |= {"encoder.weight": np.zeros(3), "conv_out.bias": np.zeros(7)}
    with pytest.raises(ValueError) as error:
        from_diffusers_unet(bad, CONFIG)
    assert str(error.value) == (
        "The weights do not fit the config: missing conv_in.bias; "
        "missing mid_block.resnets.1.norm2.weight; extra encoder.weight; "
        "misshapen conv_out.bias: (7,) instead of (3,)."
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"class_embed_type": "identity"}, "class_embed_type='identity'"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor=2"),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups=2"),
        (
            {
                "downsample_type": "fir",
                "down_block_types": ("AttnDownBlock2D",) * 2,
                "up_block_types": ("AttnUpBlock2D",) * 2,
            },
            "'fir'",
        ),
        ({"down_block_types": ("KDownBlock2D", "DownBlock2D")}, "KDownBlock2D"),
        (
            {"down_block_types": ("K", "J"), "up_block_types": ("B", "A")},
            r"The blocks \['A', 'B', 'J', 'K'\] cannot be converted",
        ),
        ({"up_block_types": ("UpBlock2D", "AttnUpBlock2D")}, "not at the same levels"),
    ],
)
def test_what_has_no_counterpart_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        unet_config({**CONFIG, **change})


def test_unknown_parameter_is_named():
    with pytest.raises(KeyError, match="nowhere/kernel"):
        locate("nowhere/kernel", ())
