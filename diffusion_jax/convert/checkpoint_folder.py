"""A Stable Diffusion checkpoint as a folder of the diffusers layout, for other tools to read."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.convert import sd_autoencoder, sd_unet, text_encoders
from diffusion_jax.convert.folders import write_json, write_weights
from diffusion_jax.convert.stable_diffusion import INDEX, SCHEDULER, Checkpoint
from diffusion_jax.files import whole_folder

LARGEST_FILE = 10 * 10**9
"""Largest size of a weights file in bytes; larger weights are sharded."""


def write_checkpoint(
    folder: str | Path,
    checkpoint: Checkpoint,
    tokenizers: Sequence[str | Path],
    dtype: DTypeLike | None = None,
    most_bytes: int = LARGEST_FILE,
) -> Path:
    """Write all parts, atomically.

    A checkpoint that was read from such a folder is written with the same tensors, byte for byte,
    except for a safety checker, which is never read.

    Args:
        folder: the folder to create.
        checkpoint: from ``read_checkpoint``, its weights changed or not.
        tokenizers: tokenizer folders of the text encoders (``find_tokenizers``), copied as files.
        dtype: dtype of the weights; None keeps each array's.
        most_bytes: largest size of a weights file.

    Returns:
        ``folder``.

    Raises:
        ValueError: if the folder exists.
    """
    with whole_folder(folder) as root:
        write_json(root, INDEX, model_index(checkpoint))
        write_json(root, SCHEDULER, checkpoint.scheduler)
        for part, (stem, state) in _states(checkpoint).items():
            config = {k: v for k, v in checkpoint.configs[_key(part)].items() if k != "dtype"}
            write_json(root, f"{part}/config.json", config)
            kept = state if dtype is None else {n: np.asarray(a, dtype) for n, a in state.items()}
            write_weights(root, part, kept, stem, most_bytes=most_bytes)
        for i, tokenizer in enumerate(tokenizers):
            _copy(Path(tokenizer), root / f"tokenizer{_suffix(i)}")
    return Path(folder)


def model_index(checkpoint: Checkpoint) -> dict[str, Any]:
    """The entries of model_index.json: the checkpoint's, or the usual ones of its kind of model."""
    texts = range(len(checkpoint.text_encoders))
    name = "StableDiffusionXLPipeline" if len(texts) == 2 else "StableDiffusionPipeline"
    told: dict[str, Any] = {"_class_name": name, "_diffusers_version": "0.32.0"}
    told |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    sampler = checkpoint.scheduler.get("_class_name", "DDIMScheduler")
    told["scheduler"] = ["diffusers", sampler]
    for i in texts:
        config = checkpoint.configs[f"text_encoder_{i}"]
        encoder = (config.get("architectures") or ["CLIPTextModel"])[0]
        told[f"text_encoder{_suffix(i)}"] = ["transformers", encoder]
        told[f"tokenizer{_suffix(i)}"] = ["transformers", "CLIPTokenizer"]
    if len(texts) == 1:
        told["requires_safety_checker"] = False
    told |= checkpoint.index
    absent = ("safety_checker", "feature_extractor", "image_encoder")
    return told | {part: [None, None] for part in absent if part in told or len(texts) == 1}


def _states(checkpoint: Checkpoint) -> dict[str, tuple[str, Mapping[str, np.ndarray]]]:
    """Folder -> (stem of its file, tensors)."""
    stem = "diffusion_pytorch_model"
    unet = sd_unet.to_sd_unet(checkpoint.unet.params, checkpoint.configs["unet"])
    vae = sd_autoencoder.to_diffusers_autoencoder(checkpoint.autoencoder.params)
    found: dict[str, tuple[str, Mapping[str, np.ndarray]]]
    found = {"unet": (stem, unet), "vae": (stem, vae)}
    for i, part in enumerate(checkpoint.text_encoders):
        state = text_encoders.to_transformers(part.params, "clip_text", None)
        found[f"text_encoder{_suffix(i)}"] = ("model", state)
    return found


def _key(part: str) -> str:
    """The name of a folder among ``Checkpoint.configs``."""
    keys = {"text_encoder": "text_encoder_0", "text_encoder_2": "text_encoder_1"}
    return keys.get(part, part)


def _suffix(i: int) -> str:
    return f"_{i + 1}" if i else ""


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt", ".model"):
            shutil.copyfile(file, target / file.name)
