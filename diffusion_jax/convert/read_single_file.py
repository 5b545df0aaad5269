"""A model of the original single-file layout, as parts in diffusers' layout with configs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.convert import families, single_file
from diffusion_jax.convert.families import Family
from diffusion_jax.convert.single_file_marks import marks_of, say_unread
from diffusion_jax.convert.tensors import read_metadata, read_safetensors


class SingleFile(NamedTuple):
    """The contents of a single file.

    Attributes:
        family: key of ``families.FAMILIES``.
        configs: configs of all parts.
        unet: tensors under diffusers' names.
        vae: tensors under diffusers' names; {} if the file has none.
        text_encoders: (layout, tensors) of each, in the order of ``configs.text_encoders``, the
            layout being "transformers", or "openclip", which has different names.
    """

    family: str
    configs: Family
    unet: dict[str, np.ndarray]
    vae: dict[str, np.ndarray]
    text_encoders: tuple[tuple[str, dict[str, np.ndarray]], ...]


def read_single_file(path: str | Path, prediction_type: str | None = None) -> SingleFile:
    """Read it, mapped into memory; the family and the U-Net's input channels follow from shapes.

    Args:
        path: the .safetensors file.
        prediction_type: in place of what the file says, see ``single_file_marks``; the weights do
            not tell.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, a pickle, of no known family, or has tensors that are not
            in the family.
    """
    state = read_safetensors(path)
    family = families.detect({name: array.shape for name, array in state.items()})
    first = state.get(f"{single_file.UNET_PREFIX}input_blocks.0.0.weight")
    in_channels = None if first is None else first.shape[1]
    marks = marks_of(Path(path).name, state, read_metadata(path))
    configs = families.configs(
        family, prediction_type or marks.prediction_type, in_channels, marks.zero_snr
    )
    parts = single_file.split(state)
    say_unread(Path(path).name, parts.rest)
    texts = ((single_file.TEXT_LAYOUTS[p], tensors) for p, tensors in parts.text_encoders.items())
    return SingleFile(
        family,
        configs,
        single_file.unet_to_diffusers(parts.unet, configs.unet),
        single_file.vae_to_diffusers(parts.vae, configs.vae),
        tuple(texts),
    )
