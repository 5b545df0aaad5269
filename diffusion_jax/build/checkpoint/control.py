"""A checkpoint steered by pictures: ControlNets beside its denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.build.checkpoint.additions import file_and_scale
from diffusion_jax.build.checkpoint.text_to_image import TextToImage, Weights
from diffusion_jax.convert.controlnet import from_diffusers_controlnet
from diffusion_jax.convert.folders import read_json, read_weights
from diffusion_jax.convert.single_file import controlnet_to_diffusers
from diffusion_jax.convert.stable_diffusion import Checkpoint, Part
from diffusion_jax.convert.tensors import read_safetensors
from diffusion_jax.core.types import Params
from diffusion_jax.models.unet.control import control_from_module, with_control

HINT, SCALE = "hint", "control_scale"


def read_controlnet(path: str | Path, checkpoint: Checkpoint) -> Part:
    """A ControlNet of diffusers' layout, or of the original one, for a checkpoint.

    Args:
        path: a folder with config.json, or a .safetensors file, which has none: then it is that of
            the checkpoint's U-Net.
        checkpoint: that it steers.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is of another family, or its tensors do not fit, by name.
    """
    path, unet = Path(path), checkpoint.configs["unet"]
    if not path.exists():
        raise FileNotFoundError(f"config.control: there is no ControlNet at {path}")
    if path.is_dir():
        config, state = read_json(path, "config.json"), read_weights(path)
    else:
        own = ("_class_name", "sample_size", "in_channels", "out_channels", "up_block_types")
        own += ("time_cond_proj_dim",)
        config = {k: v for k, v in unet.items() if k not in own}
        state = read_safetensors(path)
        if not any(name.startswith("controlnet_down_blocks.") for name in state):
            state = controlnet_to_diffusers(state, config)
    widths = [c.get("cross_attention_dim", 1280) for c in (config, unet)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"config.control: {path} reads texts of {widths[0]} features and the checkpoint's "
            f"U-Net of {widths[1]}; take a ControlNet of the checkpoint's family"
        )
    try:
        return Part(*from_diffusers_controlnet(state, config))
    except ValueError as error:
        raise ValueError(f"config.control: {path}: {error}") from None


def steered(
    made: TextToImage, checkpoint: Checkpoint, controls: Sequence[str], dtype: Any = jnp.float32
) -> TextToImage:
    """The checkpoint with ControlNets; none leaves it as it is.

    Its conditions then also read ``hints`` of a batch.

    Args:
        made: of ``text_to_image``.
        checkpoint: that it was made of.
        controls: a folder or a file each, "DIR", or "DIR:0.8" for 0.8 times what it adds.
        dtype: of their computation.

    Raises:
        FileNotFoundError, ValueError: see ``read_controlnet``.
    """
    if isinstance(controls, str):
        raise ValueError(
            f"config.control = {controls!r} must be a list of folders: ('{controls}',)"
        )
    if not controls:
        return made
    paths, scales = zip(*(file_and_scale(spec) for spec in controls), strict=True)
    parts = [read_controlnet(path, checkpoint) for path in paths]
    plain, count = made.model, len(parts)
    nets = [control_from_module(part.module.clone(dtype=jnp.dtype(dtype))) for part in parts]
    net = with_control(lambda params, *a, **k: plain.net({"net": params}, *a, **k), nets)

    def condition(frozen: Params, batch):
        hints = tuple(batch[f"{HINT}_{i}"] for i in range(count))
        factors = tuple(jnp.full(hint.shape[:1], s) for hint, s in zip(hints, scales, strict=True))
        return {**plain.condition(frozen, batch), HINT: hints, SCALE: factors}

    def null(frozen: Params, cond):
        pictures = {name: cond[name] for name in (HINT, SCALE)}
        told = {name: x for name, x in cond.items() if name not in pictures}
        return {**plain.null(frozen, told), **pictures}  # the empty prompt, of the same pictures

    params = {**made.weights.params, "control": tuple(part.params for part in parts)}
    return made._replace(
        model=plain._replace(net=net, condition=condition, null=null),
        weights=Weights(params, made.weights.frozen),
    )


def hints(pictures: Sequence[np.ndarray], count: int) -> dict[str, np.ndarray]:
    """What a steered model's condition reads of pictures [h, w, 3] in [-1, 1], of count images."""
    return {
        f"{HINT}_{i}": np.repeat((picture[None] + 1) / 2, count, 0)
        for i, picture in enumerate(pictures)
    }
