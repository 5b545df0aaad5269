"""Single-file checkpoints of the original layout (CompVis, Stability) <-> diffusers' parts.

One .safetensors file holds the U-Net under ``model.diffusion_model``, the autoencoder under
``first_stage_model`` and the text encoders under ``cond_stage_model`` or ``conditioner``.  Of the
pairs of prefixes in ``original_names`` the longest that matches a name is used, so one list serves
both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.convert.fitting import differences
from diffusion_jax.convert.original_names import Pairs, controlnet_pairs, unet_pairs, vae_pairs

State = dict[str, np.ndarray]


class Split(NamedTuple):
    """A single file's tensors by part, prefixes removed, otherwise as they were.

    Attributes:
        unet: input_blocks..., middle_block..., output_blocks..., time_embed..., out...
        vae: encoder..., decoder..., quant_conv, post_quant_conv.
        text_encoders: prefix, a key of ``TEXT_LAYOUTS`` -> tensors, in the order of that table.
        rest: names of no part: tables of the noise schedule, averages of the weights.
    """

    unet: State
    vae: State
    text_encoders: dict[str, State]
    rest: tuple[str, ...] = ()


def split(state: Mapping[str, np.ndarray]) -> Split:
    """The parts of a single file.

    Args:
        state: its tensors, from ``tensors.read_safetensors``.

    Returns:
        Its parts; the moving average that some files have beside the weights is dropped.
    """
    unet, vae = _below(state, UNET_PREFIX), _below(state, VAE_PREFIX)
    texts = {prefix: _below(state, prefix) for prefix in TEXT_LAYOUTS}
    texts = {prefix: tensors for prefix, tensors in texts.items() if tensors}
    prefixes = (UNET_PREFIX, VAE_PREFIX, *texts)
    rest = tuple(sorted(name for name in state if not name.startswith(prefixes)))
    return Split(unet, vae, texts, rest)


def join(parts: Split) -> State:
    """The inverse of ``split``, without the rest."""
    below = {UNET_PREFIX: parts.unet, VAE_PREFIX: parts.vae, **parts.text_encoders}
    return {prefix + n: a for prefix, tensors in below.items() for n, a in tensors.items()}


def _below(state: Mapping[str, np.ndarray], prefix: str) -> State:
    return {n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)}


def unet_to_diffusers(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> State:
    """A U-Net's tensors, prefix removed, under diffusers' names.

    Args:
        state: ``Split.unet``.
        config: config of diffusers' UNet2DConditionModel, such as ``families`` has.

    Raises:
        ValueError: naming tensors that the config has no place for.
    """
    return _renamed(state, unet_pairs(config), "the U-Net")


def unet_from_diffusers(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> State:
    """The inverse of ``unet_to_diffusers``."""
    return _renamed(state, _swapped(unet_pairs(config)), "the U-Net")


def controlnet_to_diffusers(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> State:
    """A ControlNet's tensors under diffusers' names.

    Args:
        state: state of a ControlNet's own file, with or without the prefix ``control_model.``.
        config: config of diffusers' ControlNetModel.

    Raises:
        ValueError: naming tensors that the config has no place for.
    """
    own = _below(state, CONTROL_PREFIX) or dict(state)
    return _renamed(own, controlnet_pairs(config), "the ControlNet")


def controlnet_from_diffusers(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> State:
    """The inverse of ``controlnet_to_diffusers``, without a prefix."""
    return _renamed(state, _swapped(controlnet_pairs(config)), "the ControlNet")


def vae_to_diffusers(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> State:
    """An autoencoder's tensors, prefix removed, under diffusers' names.

    Its attention has 1x1 convolutions in the original layout and dense layers in diffusers'.

    Args:
        state: ``Split.vae``.
        config: config of diffusers' AutoencoderKL.

    Raises:
        ValueError: naming tensors that the config has no place for.
    """
    state = {n: a for n, a in state.items() if not n.startswith(_VAE_TRAINING)}
    out = _renamed(state, vae_pairs(config), "the autoencoder")
    return {n: a[:, :, 0, 0] if _attends(n) and a.ndim == 4 else a for n, a in out.items()}


def vae_from_diffusers(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> State:
    """The inverse of ``vae_to_diffusers``."""
    state = {n: a[:, :, None, None] if _attends(n) and a.ndim == 2 else a for n, a in state.items()}
    return _renamed(state, _swapped(vae_pairs(config)), "the autoencoder")


def _attends(name: str) -> bool:
    return ".attentions." in name and name.endswith(".weight")


def _swapped(pairs: Pairs) -> Pairs:
    return [(b, a) for a, b in pairs]


def _renamed(state: Mapping[str, np.ndarray], pairs: Pairs, what: str) -> State:
    """The tensors under their new names, by the longest matching prefix."""
    prefixes, out, unknown = dict(pairs), {}, {}
    for name, array in state.items():
        words = name.split(".")
        tries = (".".join(words[:n]) for n in range(len(words) - 1, 0, -1))
        prefix = next((p for p in tries if p in prefixes), None)
        if prefix is None:
            unknown[name] = np.shape(array)
        else:
            out[prefixes[prefix] + name[len(prefix) :]] = array
    if unknown:
        raise ValueError(f"There is no place in {what} of this config: {differences({}, unknown)}.")
    return out


UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CONTROL_PREFIX = "control_model."
TEXT_LAYOUTS = {
    "cond_stage_model.transformer.": "transformers",
    "cond_stage_model.model.": "openclip",
    "conditioner.embedders.0.transformer.": "transformers",
    "conditioner.embedders.1.model.": "openclip",
}
"""Prefixes of text encoders in SD 1, SD 2 and SDXL (two), and the layout of their names."""

_VAE_TRAINING = ("loss.", "model_ema.")
"""Prefixes of an autoencoder's training loss, which some files still contain."""
