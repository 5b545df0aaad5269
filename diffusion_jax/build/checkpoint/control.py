"""A checkpoint steered by pictures: the edit ``control``, a ControlNet beside its denoiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from diffusion_jax.apps.plan import Drawing, Edit, Generator, Request
from diffusion_jax.convert.config_fields import checked
from diffusion_jax.convert.config_tables import CONTROLNET
from diffusion_jax.convert.controlnet import from_diffusers_controlnet
from diffusion_jax.convert.file_kinds import described
from diffusion_jax.convert.folders import read_json, read_weights
from diffusion_jax.convert.single_file import controlnet_to_diffusers
from diffusion_jax.convert.stable_diffusion import Checkpoint, Part
from diffusion_jax.convert.tensors import read_safetensors
from diffusion_jax.core.types import Params
from diffusion_jax.models.unet.control import control_from_module, with_control
from diffusion_jax.pictures import read_picture

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
        raise FileNotFoundError(f"config.edits: control: there is no ControlNet at {path}")
    if path.is_dir():
        config, state = read_json(path, "config.json"), read_weights(path)
        checked(config, CONTROLNET, f"config.edits: control: {path}/config.json")
    else:
        own = ("_class_name", "sample_size", "in_channels", "out_channels", "up_block_types")
        own += ("time_cond_proj_dim",)
        config = {k: v for k, v in unet.items() if k not in own}
        state = read_safetensors(path)
        _check_kind(path, state)
        if not any(name.startswith("controlnet_down_blocks.") for name in state):
            state = controlnet_to_diffusers(state, config)
    widths = [c.get("cross_attention_dim", 1280) for c in (config, unet)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"config.edits: control: {path} reads texts of {widths[0]} features and the "
            f"checkpoint's U-Net of {widths[1]}; take a ControlNet of the checkpoint's family"
        )
    try:
        return Part(*from_diffusers_controlnet(state, config))
    except ValueError as error:
        raise ValueError(f"config.edits: control: {path}: {error}") from None


def _check_kind(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Refuse by name what is no ControlNet at all."""
    if any(name.startswith(_OWN) for name in state):
        return
    kind = described({name: array.shape for name, array in state.items()})
    if kind:
        raise ValueError(f"config.edits: control: {path} is {kind}; name a ControlNet")


_OWN = ("controlnet_", "input_hint_block.", "control_model.")


def control(network: str, picture: str, scale: float = 1.0) -> Edit:
    """Steer by a picture through a ControlNet (Zhang et al. 2023); several add up.

    Args:
        network: a folder or a file of one, of the checkpoint's family.
        picture: path of the hint that it was trained on, such as edges or a pose; resized to the
            size that is drawn.
        scale: factor on what it adds; a new one compiles nothing.

    Raises:
        FileNotFoundError, ValueError: see ``read_controlnet``; for a scale that is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"config.edits: control(scale={scale}) must be a finite number")

    def arrays(generator: Generator, request: Request):
        size = request.size or generator.geometry.size
        hint = (read_picture(picture, size, 3, "edits") + 1) / 2
        return {HINT: hint, SCALE: np.float32(scale)}

    def apply(drawing: Drawing, arrays) -> Drawing:
        def hinted(cond):
            return cond and {**cond, **{k: (*cond.get(k, ()), arrays[k]) for k in (HINT, SCALE)}}

        return drawing._replace(cond=hinted(drawing.cond), negative=hinted(drawing.negative))

    return Edit(arrays, apply, equip=partial(equipped, network), sources=(picture,))


def equipped(network: str | Path, generator: Generator) -> Generator:
    """A checkpoint's generator with a ControlNet, whose conditions then have hints.

    Raises:
        ValueError: if the model takes none.
        FileNotFoundError, ValueError: see ``read_controlnet``.
    """
    if not isinstance(generator.origin, Checkpoint):
        raise ValueError(
            f"config.edits: control({str(network)!r}) needs a Stable Diffusion checkpoint, for "
            "which there are ControlNets; this model is a run of its own"
        )
    part, plain = read_controlnet(network, generator.origin), generator.model
    module = part.module.clone(dtype=generator.net.dtype)
    net = with_control(plain.net, [control_from_module(module)])

    def null(frozen: Params, cond):
        hints = {name: cond[name] for name in (HINT, SCALE) if name in cond}
        text = {name: x for name, x in cond.items() if name not in hints}
        return {**plain.null(frozen, text), **hints}  # the empty prompt, with the same hints

    weights = generator.weights
    if weights is not None:
        params = {"net": weights.params, "control": (part.params,)}
        weights = weights._replace(params=params)
    return generator._replace(model=plain._replace(net=net, null=null), weights=weights)
