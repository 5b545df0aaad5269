"""A Stable Diffusion checkpoint, of either layout, as networks with their parameters.

The diffusers layout is a folder with model_index.json and a folder for each part; the original one
is a single .safetensors file, without tokenizer and scheduler settings.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.convert import openclip, sd_autoencoder, sd_unet, text_encoders
from diffusion_jax.convert.config_fields import checked
from diffusion_jax.convert.config_tables import SD, SDXL
from diffusion_jax.convert.folders import inside, read_json, read_weights
from diffusion_jax.convert.parts import check_parts
from diffusion_jax.convert.read_single_file import read_single_file
from diffusion_jax.convert.tensors import finite

State = Mapping[str, np.ndarray]

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"


class Part(NamedTuple):
    """A network and its parameters, NumPy arrays."""

    module: Any
    params: dict[str, Any]


class Checkpoint(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
        unet: the denoiser, its config beside it in ``configs``.
        autoencoder: pixels <-> latents.
        text_encoders: one, or SDXL's two.
        scheduler: entries of scheduler_config.json.
        tokenizers: a folder for each text encoder; None where the checkpoint has none.
        configs: the entries of the config.json of "unet", "vae" and "text_encoder_0" ...
        index: the entries of model_index.json; {} of a single file.
    """

    unet: Part
    autoencoder: Part
    text_encoders: tuple[Part, ...]
    scheduler: dict[str, Any]
    tokenizers: tuple[Path, ...] | None
    configs: dict[str, dict[str, Any]]
    index: dict[str, Any]


def read_checkpoint(
    path: str | Path,
    prediction_type: str | None = None,
    variant: str | None = None,
    dtype: DTypeLike | None = None,
) -> Checkpoint:
    """Read a folder of the diffusers layout, or a file of the original one.

    Args:
        path: the folder or the file.
        prediction_type: "epsilon" or "v_prediction", in place of the checkpoint's; a single
            file does not contain it (see ``families.configs``).
        variant: variant of the weights files, such as "fp16".
        dtype: dtype of the parameters; None keeps the files' and makes no copy.

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: for a file that is damaged, hostile or a pickle, for a model other than Stable
            Diffusion, and for tensors that are missing, extra or misshapen, by name.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint at {path}: give a folder or a file.")
    if path.is_file():
        return _of_file(path, prediction_type, dtype)
    return _of_folder(path, prediction_type, variant, dtype)


def _of_folder(
    root: Path, prediction_type: str | None, variant: str | None, dtype: DTypeLike | None
) -> Checkpoint:
    index = read_json(root, INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        known = ", ".join(sorted(PIPELINES))
        raise ValueError(f"{INDEX}: _class_name = {name!r} cannot be read; known are {known}.")
    if PIPELINES[name] == 2 and not (root / "text_encoder").is_dir():
        raise ValueError(
            f"{root.name} has no text_encoder: SDXL's refiner reads one encoder alone, and cannot "
            "be converted; give the base model."
        )
    suffixes = ("", "_2")[: PIPELINES[name]]
    checked(index, (SD, SDXL)[PIPELINES[name] - 1], INDEX)
    config = {part: read_json(root, f"{part}/config.json") for part in ("unet", "vae")}
    for i, suffix in enumerate(suffixes):
        config[f"text_encoder_{i}"] = read_json(root, f"text_encoder{suffix}/config.json")
    check_parts(config, PIPELINES[name] == 2)
    scheduler = read_json(root, SCHEDULER)
    if index.get("scheduler"):  # whose class reads the file, whatever class has written it
        scheduler["_class_name"] = index["scheduler"][1]
    if prediction_type is not None:
        scheduler["prediction_type"] = prediction_type
    states: dict[str, State] = {
        "unet": read_weights(root, "unet", variant),
        "vae": read_weights(root, "vae", variant),
    }
    for i, suffix in enumerate(suffixes):
        part = f"text_encoder{suffix}"
        own = config[f"text_encoder_{i}"]
        states[f"text_encoder_{i}"] = _used(read_weights(root, part, variant), own, part)
    tokenizers = tuple(inside(root, f"tokenizer{suffix}") for suffix in suffixes)
    return _assembled(states, config, scheduler, tokenizers, index, dtype)


def _of_file(path: Path, prediction_type: str | None, dtype: DTypeLike | None) -> Checkpoint:
    file = read_single_file(path, prediction_type)
    config = {"unet": file.configs.unet, "vae": file.configs.vae}
    states: dict[str, State] = {"unet": file.unet, "vae": file.vae}
    for i, own in enumerate(file.configs.text_encoders):
        config[f"text_encoder_{i}"] = own
        layout, state = file.text_encoders[i] if i < len(file.text_encoders) else ("absent", {})
        state = openclip.to_transformers(state) if layout == "openclip" else state
        states[f"text_encoder_{i}"] = _first_layers(state, own)
    return _assembled(states, config, dict(file.configs.scheduler), None, {}, dtype)


def _used(state: State, config: Mapping[str, Any], part: str) -> State:
    """The tensors of the layers that a config counts, as transformers reads them; says so."""
    count = config.get("num_hidden_layers", 12)
    if extra := {n: a for n, a in state.items() if _layer(n) >= count}:
        warnings.warn(
            f"{part}/config.json: num_hidden_layers = {count}, and the weights have "
            f"{max(map(_layer, extra)) + 1} layers: the last ones are left out",
            stacklevel=2,
        )
    return {n: a for n, a in state.items() if n not in extra}


def _layer(name: str) -> int:
    """The number of the layer that a tensor belongs to, or -1."""
    found = re.search(r"\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _first_layers(state: State, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state without layers that the model does not use, which some files contain."""
    kept = {n: a for n, a in state.items() if _layer(n) < config["num_hidden_layers"]}
    if config.get("architectures") != ["CLIPTextModelWithProjection"]:
        kept.pop("text_projection.weight", None)
    return kept


def _assembled(
    states: Mapping[str, State],
    configs: dict[str, dict[str, Any]],
    scheduler: dict[str, Any],
    tokenizers: tuple[Path, ...] | None,
    index: dict[str, Any],
    dtype: DTypeLike | None,
) -> Checkpoint:
    made = {}
    for part, state in states.items():
        loader = _LOADERS[part.rstrip("_0123456789")]
        try:
            made[part] = Part(*loader(state, configs[part], dtype))
            finite(state)
        except ValueError as error:
            raise ValueError(f"{part}: {error}") from None
    texts = tuple(made[part] for part in states if part.startswith("text_encoder"))
    return Checkpoint(made["unet"], made["vae"], texts, scheduler, tokenizers, configs, index)


def find_tokenizers(given: Sequence[str | Path], checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The folder of each text encoder's tokenizer: the given ones, or the checkpoint's own.

    Raises:
        ValueError: if there are not as many as text encoders.
    """
    found = tuple(Path(folder) for folder in given) or checkpoint.tokenizers or ()
    if len(found) == 1 and len(checkpoint.text_encoders) == 2:
        found = found * 2
    if len(found) != len(checkpoint.text_encoders):
        raise ValueError(
            f"The checkpoint has {len(checkpoint.text_encoders)} text encoders and "
            f"{len(found)} tokenizers; name a tokenizer's folder for each, such as "
            "--config.tokenizers=\"('folder/tokenizer',)\""
        )
    return found


_LOADERS = {
    "unet": sd_unet.from_sd_unet,
    "vae": sd_autoencoder.from_diffusers_autoencoder,
    "text_encoder": text_encoders.from_transformers,
}

# Pipeline class there -> number of text encoders.
PIPELINES: dict[str, int] = {
    "StableDiffusionPipeline": 1,
    "StableDiffusionImg2ImgPipeline": 1,
    "LatentConsistencyModelPipeline": 1,
    "LatentConsistencyModelImg2ImgPipeline": 1,
    "StableDiffusionXLPipeline": 2,
    "StableDiffusionXLImg2ImgPipeline": 2,
}
