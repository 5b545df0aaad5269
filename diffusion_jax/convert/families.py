"""The published Stable Diffusion models, recognised by their weights, with configs as data.

Configs are those of the published diffusers-layout checkpoints: stable-diffusion-v1-5,
stable-diffusion-2-1 and stable-diffusion-xl-base-1.0, without fields that do not affect the
network.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from diffusion_jax.convert.file_kinds import described


class Family(NamedTuple):
    """A family of models with the same configs.

    Attributes:
        unet: config of the U-Net (UNet2DConditionModel).
        vae: config of the autoencoder (AutoencoderKL).
        text_encoders: configs of the text encoders (CLIPTextModel), in the order of the file.
        scheduler: config of the noise schedule.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...]
    scheduler: dict[str, Any]


def detect(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The key of ``FAMILIES`` for a single file.

    Args:
        shapes: tensor name -> shape, of the original layout, prefixes kept.

    Raises:
        ValueError: if it is not a complete model of a known family, saying what it is instead.
    """
    name = next((n for n in _TELLING if n in shapes), None)
    if name is None:
        kind = described(shapes) or "perhaps another network, or of diffusers' layout"
        raise ValueError(
            f"There is no {_TELLING[0]} in the file: it is not a Stable Diffusion model of the "
            f"original layout ({kind})."
        )
    width = shapes[name][-1]
    if width not in _BY_WIDTH:
        raise ValueError(
            f"{name} reads text of {width} channels, but known are {_BY_WIDTH}: this model "
            "(1280: SDXL's refiner) cannot be converted."
        )
    return _BY_WIDTH[width]


def configs(
    family: str,
    prediction_type: str | None = None,
    in_channels: int | None = None,
    zero_snr: bool = False,
) -> Family:
    """A copy of a family's configs.

    Args:
        family: key of ``FAMILIES``.
        prediction_type: "epsilon" or "v_prediction"; None for the family's usual one.  It cannot
            be read off the weights: "sd2" is v_prediction as in the 768-pixel models, while the
            512-pixel "base" models need "epsilon" here.
        in_channels: the U-Net's, from its first convolution; 9 in inpainting models.
        zero_snr: whether the table of levels is rescaled to end at pure noise.

    Raises:
        ValueError: for an unknown family or prediction type.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is unknown: use one of {', '.join(FAMILIES)}.")
    if prediction_type not in (None, "epsilon", "v_prediction"):
        raise ValueError(
            f"prediction_type={prediction_type!r} is unknown: use 'epsilon' or 'v_prediction'."
        )
    chosen = deepcopy(FAMILIES[family])
    if prediction_type is not None:
        chosen.scheduler["prediction_type"] = prediction_type
    if zero_snr:
        chosen.scheduler["rescale_betas_zero_snr"] = True
    if in_channels is not None:
        chosen.unet["in_channels"] = in_channels
    return chosen


# The first attention to the text, at the full size or, in SDXL, at half of it.
_TELLING = tuple(
    f"model.diffusion_model.input_blocks.{n}.1.transformer_blocks.0.attn2.to_k.weight"
    for n in (1, 4)
)
_BY_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}

_UNET_4_LEVELS: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_CLIP_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
_SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
# OpenCLIP's ViT-H, of which Stable Diffusion 2 reads the penultimate layer: the last is dropped.
_CLIP_H = _CLIP_L | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
# OpenCLIP's ViT-bigG, with its projection.
_CLIP_G = _CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}

FAMILIES: dict[str, Family] = {
    "sd1": Family(_UNET_4_LEVELS, _VAE, (_CLIP_L,), _SCHEDULER),
    "sd2": Family(
        _UNET_4_LEVELS
        | {
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "sample_size": 96,
            "upcast_attention": True,
            "use_linear_projection": True,
        },
        _VAE | {"sample_size": 768},
        (_CLIP_H,),
        _SCHEDULER | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    ),
    "sdxl": Family(
        _UNET_4_LEVELS
        | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
            "use_linear_projection": True,
        },
        _VAE | {"force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025},
        (_CLIP_L, _CLIP_G),
        _SCHEDULER | {"_class_name": "EulerDiscreteScheduler"},
    ),
}
"""Families by name."""
