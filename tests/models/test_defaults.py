"""Settings that nobody gives: those of papers and published configs, and "off" for the rest."""

import inspect

import pytest

from diffusion_jax.data import DataSpec
from diffusion_jax.models import MODELS
from diffusion_jax.models.autoencoders.autoencoder import AUTOENCODERS
from diffusion_jax.models.layers import Style
from diffusion_jax.models.transformers.dit import DiTLayer
from diffusion_jax.models.transformers.mmdit_blocks import JointLayer
from diffusion_jax.models.unet.control import ControlNet
from diffusion_jax.models.unet.transformer_2d import GatedMLP
from diffusion_jax.models.vision.classifier import Classifier
from diffusion_jax.models.vision.discriminator import FeatureHeads, PatchDiscriminator
from diffusion_jax.models.vision.towers import Towers
from diffusion_jax.train.plan import Plan

COMMON = {
    "num_classes": 0, "dropout": 0.0, "remat": "none", "attention": "full", "scalars": (),
    "time_options": None,
}  # fmt: skip
TIMED = {"time_features": "sinusoidal", "time_dim": None, "groups": 32, "eps": 1e-5}
# Stable Diffusion 1's U-Net (Rombach et al. 2022).
STABLE = {
    **COMMON, **TIMED, "channels": 320, "channel_mults": (1, 2, 4, 4), "num_res_blocks": 2,
    "depths": (1, 1, 1, 0), "mid_depth": 1, "heads": 8, "added_features": 0,
    "conditioning": "additive", "group_channels": 1, "transformer_eps": 1e-6,
    "downsample_padding": (1, 1), "guidance_features": 0,
}  # fmt: skip
CODER = {
    "channels": 128, "channel_mults": (1, 2, 4, 4), "blocks": 2, "latent_channels": 4,
    "out_channels": 3, "groups": 32, "attention": True,
}  # fmt: skip
WANTED = {
    # Improved DDPM and ADM (Dhariwal & Nichol 2021) at a small size.
    MODELS["unet"]: {
        **COMMON, **TIMED, "channels": 64, "channel_mults": (1, 2, 2), "num_res_blocks": 2,
        "attention_levels": (), "head_dim": 64, "out_channels": 3, "conditioning": "scale_shift",
        "downsample": "residual", "upsample": "residual", "patch": 1, "group_channels": 4,
        "skip_scale": 1.0, "mid_attention": True, "mid_norm": True, "downsample_padding": (1, 1),
        "scan_blocks": False,
    },
    MODELS["text_unet"]: {**STABLE, "out_channels": 4, "patch": 1},
    ControlNet: {**STABLE, "hint_widths": (16, 32, 96, 256)},  # Zhang et al. 2023
    # DiT-S/2 (Peebles & Xie 2023, table 1).
    MODELS["dit"]: {
        **COMMON, "width": 384, "depth": 12, "heads": 6, "patch": 2, "out_channels": 4,
        "mlp_ratio": 4.0, "mlp_eps": 1e-6,
    },
    # Stable Diffusion 3 medium (Esser et al. 2024).
    MODELS["mmdit"]: {
        **{name: value for name, value in COMMON.items() if name != "dropout"},
        "width": 1536, "depth": 24, "heads": 24, "patch": 2, "out_channels": 16,
        "pooled_features": 2048, "max_side": 192, "grid": 64, "positions": "computed",
        "second_attention": (), "qk_norm": "none",
    },
    DiTLayer: {"mlp_ratio": 4.0, "mlp_eps": 1e-6, "dropout": 0.0, "kind": "full"},
    JointLayer: {"last": False, "second": False, "qk_norm": "none", "kind": "full"},
    GatedMLP: {"dropout": 0.0, "widening": 4},
    MODELS["mlp"]: {"width": 128, "depth": 3, "out_channels": 2, "num_classes": 0, "scalars": ()},
    AUTOENCODERS["autoencoder_kl"]: {**CODER, "quant": True},
    AUTOENCODERS["autoencoder_vq"]: {**CODER, "entries": 1024, "entry_channels": 0},
    PatchDiscriminator: {"channels": 64, "halvings": 3},  # patches of 70 pixels
    FeatureHeads: {"width": 128},
    Towers: {"hidden": 256, "width": 128, "dropout": 0.3},
    Classifier: {"widths": (32, 64, 64), "hidden": 128, "dropout": 0.4},
    Style: {
        "conditioning": "scale_shift", "dropout": 0.0, "groups": 32, "group_channels": 4,
        "eps": 1e-5, "head_dim": 64, "skip_scale": 1.0, "downsample_padding": (1, 1),
        "attention": "full",
    },
    Plan: {
        "accumulate": 1, "steps_per_call": 1, "log_every": 20, "checkpoint_every": 500, "keep": 3,
        "keep_every": 0, "skip_nonfinite": 0, "trace": "",
    },
    DataSpec: {
        "split": "train", "batch_size": 128, "image_size": None, "channels": None, "flip": False,
        "crop": "center", "balance": "", "buckets": (), "beside": "", "framing": False, "seed": 0,
        "shuffle": True, "repeat": True, "drop_remainder": True, "captions": False,
        "data_dir": None, "process_index": 0, "process_count": 1, "cache_bytes": 2**28,
    },
}  # fmt: skip


@pytest.mark.parametrize("made", WANTED, ids=lambda made: made.__name__)
def test_what_is_not_given(made):
    fields = inspect.signature(made).parameters.values()
    found = {f.name: f.default for f in fields if f.default is not inspect.Parameter.empty}
    for absent in ("parent", "name", "dtype"):
        found.pop(absent, None)
    assert found == WANTED[made]
