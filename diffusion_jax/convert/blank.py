"""Checkpoints of the published sizes with zeros for weights, for planning and timing.

The cost of a program depends on shapes alone; so memory, time and compilation can be measured
without the published weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.convert import families, sd_autoencoder, sd_unet, text_encoders
from diffusion_jax.convert.checkpoint_folder import write_checkpoint
from diffusion_jax.convert.folders import write_json
from diffusion_jax.convert.names import nested
from diffusion_jax.convert.stable_diffusion import Checkpoint, Part

_ENDS = ("<|startoftext|>", "<|endoftext|>")


def blank_checkpoint(family: str, dtype: DTypeLike = np.float16) -> Checkpoint:
    """All parts of a family with weights 0; takes no memory.

    Args:
        family: key of ``families.FAMILIES``.
        dtype: dtype of the weights.

    Raises:
        ValueError: for an unknown family.
    """
    told = families.configs(family)
    zeros = lambda shapes: nested(
        {path: np.broadcast_to(np.zeros((), dtype), shape) for path, shape in shapes.items()}
    )
    unet = sd_unet.TextUNet(**sd_unet.text_unet_config(told.unet))
    vae, texts = sd_autoencoder.module_of(told.vae), []
    for config in told.text_encoders:
        module = text_encoders.module_of(config)
        shapes = text_encoders.parameter_shapes(module, text_encoders.LAYOUTS["clip_text"])
        texts.append(Part(module, zeros(shapes)))
    configs = {"unet": told.unet, "vae": told.vae}
    configs |= {f"text_encoder_{i}": config for i, config in enumerate(told.text_encoders)}
    return Checkpoint(
        unet=Part(unet, zeros(sd_unet.unet_shapes(told.unet))),
        autoencoder=Part(vae, zeros(sd_autoencoder.parameter_shapes(vae))),
        text_encoders=tuple(texts),
        scheduler=told.scheduler,
        tokenizers=None,
        configs=configs,
        index={},
    )


def write_blank(folder: str | Path, family: str, dtype: DTypeLike = np.float16) -> Path:
    """A folder of the diffusers layout with ``blank_checkpoint`` and a tokenizer of letters.

    Args:
        folder: the folder to create.
        family, dtype: see ``blank_checkpoint``.

    Raises:
        ValueError: for an unknown family, or if the folder exists.
    """
    made = blank_checkpoint(family, dtype)
    sizes = [made.configs[f"text_encoder_{i}"] for i in range(len(made.text_encoders))]
    with tempfile.TemporaryDirectory() as root:
        places = [Path(root) / str(i) for i in range(len(sizes))]
        for place, config in zip(places, sizes, strict=True):
            _write_letters(place, config)
        write_checkpoint(folder, made, places)
    return Path(folder)


def _write_letters(folder: Path, config: dict[str, Any]) -> None:
    """CLIP tokenizer files for words split into letters, padded to the size of the vocabulary."""
    letters = [chr(i) for i in range(33, 127)]
    known = [*letters, *(f"{letter}</w>" for letter in letters)]
    count = config["vocab_size"] - len(known) - len(_ENDS)
    tokens = [*known, *(f"<unused{i}>" for i in range(count)), *_ENDS]
    folder.mkdir()
    write_json(folder, "vocab.json", {token: i for i, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    told = {"model_max_length": config["max_position_embeddings"], "pad_token": _ENDS[1]}
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **told})
