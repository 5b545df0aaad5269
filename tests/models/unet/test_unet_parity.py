"""Our U-Net against diffusers' UNet2DModel with the same random weights."""

import os

import jax
import numpy as np
import pytest

from diffusion_jax.convert.diffusers_unet import from_diffusers_unet, to_diffusers_unet
from diffusion_jax.models.adapter import net_from_module

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import torch
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")

PLAIN_DOWN, PLAIN_UP = "DownBlock2D", "UpBlock2D"
ATTN_DOWN, ATTN_UP = "AttnDownBlock2D", "AttnUpBlock2D"
RES_DOWN, RES_UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"

BASE = {
    "block_out_channels": (16, 24),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": (PLAIN_DOWN, ATTN_DOWN),
    "up_block_types": (ATTN_UP, PLAIN_UP),
}
ADM = {
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 8,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
CASES = {
    "ddpm": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},
    "adm with classes": {
        **ADM,
        "num_class_embeds": 5,
        "out_channels": 6,
        "down_block_types": (RES_DOWN, ATTN_DOWN),
        "up_block_types": (ATTN_UP, RES_UP),
    },
    "three levels, odd channels, mixed resamplers": {
        **ADM,
        "attn_norm_num_groups": None,
        "block_out_channels": (15, 35, 25),
        "norm_num_groups": 5,
        "attention_head_dim": 6,
        "time_embedding_dim": 33,
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": (ATTN_DOWN, PLAIN_DOWN, PLAIN_DOWN),
        "up_block_types": (PLAIN_UP, PLAIN_UP, ATTN_UP),
    },
    "two blocks, one head, no attention in the middle": {
        "layers_per_block": 2,
        "attention_head_dim": None,
        "add_attention": False,
        "resnet_time_scale_shift": "scale_shift",
    },
}


@pytest.mark.parametrize("case", CASES)
def test_same_output_from_the_same_weights(case):
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**{**BASE, **CASES[case]}).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    unet, params = from_diffusers_unet(state, theirs.config)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 12, theirs.config.in_channels)).astype(np.float32)
    time = np.array([3, 777], np.float32)
    label = np.array([1, 4]) if theirs.config.num_class_embeds else None
    with torch.no_grad():
        expected = theirs(
            torch.tensor(x).permute(0, 3, 1, 2),
            torch.tensor(time),
            None if label is None else torch.tensor(label),
        ).sample.permute(0, 2, 3, 1)

    net = jax.jit(net_from_module(unet), compiler_options={"xla_backend_optimization_level": 0})
    out = net(params, x, time, {} if label is None else {"label": label})
    error = np.abs(np.asarray(out) - expected.numpy()).max()
    print(f"{case}: max abs error {error:.1e} of outputs with deviation {expected.std():.2f}")
    assert float(expected.std()) > 0.3
    assert error < 1e-5

    again = to_diffusers_unet(params)
    assert again.keys() == state.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, state[name])
