"""The latents of a data set: their scale, kept with the autoencoder, and a set of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from diffusion_jax.build import first_stage
from diffusion_jax.build.weights import is_release
from diffusion_jax.data import DataSpec, Info, info, make_dataset
from diffusion_jax.data.catalog import open_builder
from diffusion_jax.data.latents import Contents, Scaling, write_latents
from diffusion_jax.files import whole
from diffusion_jax.models.autoencoders.autoencoder import AutoencoderKL, AutoencoderVQ
from diffusion_jax.train.workdir import read_config

_BATCH = 32


class EncodedSplit(NamedTuple):
    """The raw latents of a split, in a file until they are in their set.

    Attributes:
        arrays: name -> float16 [n, h, w, z].
        conditions: name -> captions or labels, n of them.
    """

    arrays: dict[str, np.ndarray]
    conditions: dict[str, list[Any]]

    def examples(self) -> Iterator[dict[str, Any]]:
        """One after the other, as the builder takes them."""
        for i in range(len(next(iter(self.arrays.values())))):
            latents = {name: array[i] for name, array in self.arrays.items()}
            yield {**latents, **{name: values[i] for name, values in self.conditions.items()}}


def encode_latents(
    workdir: str | os.PathLike,
    data: str,
    name: str = "",
    data_dir: str | os.PathLike | None = None,
    *,
    per_channel: bool = False,
    keep: str = "",
    overwrite: bool = False,
) -> Path:
    """Encode all splits of a set; write ``latents.json`` to workdir, and the set ``latents/NAME``.

    The scale is 1/deviation of the training split's latents (with the posterior's, if kept), the
    shift is their mean; of all channels or each.  A release keeps those that it came with.

    Args:
        workdir: the autoencoder's run.
        data: name of the set of images.
        name: of the set of latents; "" for the images' own.
        data_dir: of prepared sets.
        per_channel: a scale and a shift for each channel.
        keep: of ``KEEPS``; "" for what the kind of autoencoder has.
        overwrite: replace a set of that name.

    Returns the folder of the set.

    Raises:
        ValueError: if there is no run of an autoencoder, no such data, or the name is taken.
    """
    config = read_config(workdir)
    module, params, step = first_stage.open_autoencoder(workdir)
    keep = _kept(keep, type(module))
    run = jax.jit(lambda x: KEEPS[keep](module.apply({"params": params}, x, method="encode")))
    size = tuple(config["data"]["image_size"])
    spec = DataSpec(data, "train", _BATCH, size, config["data"]["channels"], data_dir=data_dir)
    with tempfile.TemporaryDirectory(prefix="latents_") as scratch:
        kept = {
            split: _encoded(run, spec._replace(split=split), Path(scratch))
            for split in _splits(data, data_dir)
        }
        released = is_release(workdir)
        scale, shift, figures = measure(kept["train"].arrays, per_channel)
        if released:  # models of its latents were trained with the scale that it came with
            scale, shift, step = first_stage.measured(workdir)
        source = f"{data} at {size}, step {step}, {keep}, scale {scale}"
        contents = _contents(kept, info(data, "train", data_dir), source, (scale, shift, step))
        name = name or data.replace("/", "-").replace(":", "-")
        path = write_latents(name, contents, data_dir, overwrite=overwrite)
    if released:
        return path
    held = {"scale": scale, "shift": shift, "step": step, "data": data, **figures}
    with whole(Path(workdir) / first_stage.MEASURED) as temporary:
        temporary.write_text(json.dumps(held, indent=2) + "\n")
    return path


def measure(arrays: dict[str, np.ndarray], per_channel: bool) -> tuple[Any, Any, dict[str, Any]]:
    """(scale, shift, {"mean", "std" of each channel}) of latents "mean" and perhaps "log_var"."""
    total, square, n = 0.0, 0.0, 0
    for start in range(0, len(arrays["mean"]), _BATCH):
        rows = slice(start, start + _BATCH)
        mean = arrays["mean"][rows].astype(np.float64)
        own = np.exp(arrays["log_var"][rows].astype(np.float64)) if "log_var" in arrays else 0.0
        total = total + mean.sum((0, 1, 2))
        square = square + (mean**2 + own).sum((0, 1, 2))
        n += mean[..., 0].size
    mean, power = np.asarray(total) / n, np.asarray(square) / n
    std = np.sqrt(power - mean**2)
    figures = {"mean": mean.tolist(), "std": std.tolist()}
    if per_channel:
        return (1 / std).tolist(), mean.tolist(), figures
    return float(1 / np.sqrt(power.mean() - mean.mean() ** 2)), float(mean.mean()), figures


def _kept(keep: str, kind: type) -> str:
    """The name in ``KEEPS`` for a kind of autoencoder."""
    known = KEPT_OF[kind]
    if keep and keep not in known:
        raise ValueError(
            f"keep = {keep!r}; of latents of {kind.__name__} one keeps {', '.join(known)}"
        )
    return keep or known[0]


def _contents(
    kept: Mapping[str, EncodedSplit], known: Info, source: str, scaling: tuple[Any, Any, int]
) -> Contents:
    arrays = kept["train"].arrays
    return Contents(
        {split: each.examples for split, each in kept.items()},
        arrays["mean"].shape[1:],
        "log_var" in arrays,
        known.captions,
        known.class_names,
        source,
        Scaling(*scaling),
    )


def _splits(data: str, data_dir: str | os.PathLike | None) -> list[str]:
    splits = list(open_builder(data, data_dir).info.splits)
    if "train" not in splits:
        raise ValueError(
            f"data set {data} has the splits {', '.join(splits)}, and the scale is measured on "
            "'train'; prepare it with one"
        )
    return splits


def _encoded(run: Callable[..., Any], spec: DataSpec, scratch: Path) -> EncodedSplit:
    """The latents of a split, in its order."""
    known = info(spec.name, spec.split, spec.data_dir)
    spec = spec._replace(
        shuffle=False, repeat=False, drop_remainder=False, captions=known.captions, cache_bytes=0
    )
    dataset, n, arrays, conditions = make_dataset(spec), known.num_examples, {}, {}
    for i in tqdm(range(len(dataset)), desc=f"encoding {spec.split}", unit="batch"):
        batch: dict[str, np.ndarray] = dataset[i] or {}
        rows = np.arange(len(batch["image"]))
        padded = batch["image"][np.arange(_BATCH) % len(rows)]
        for name, latents in jax.device_get(run(padded)).items():
            if name not in arrays:
                file = scratch / f"{spec.split}-{name}"
                shape = (n, *latents.shape[1:])
                arrays[name] = np.memmap(file, np.float16, "w+", shape=shape)
            arrays[name][i * _BATCH + rows] = latents[rows].astype(np.float16)
        for name in {"caption", "label"} & batch.keys():
            conditions.setdefault(name, []).extend(batch[name].tolist())
    return EncodedSplit(arrays, conditions)


KEEPS: dict[str, Callable[[Any], dict[str, jax.Array]]] = {
    "mean": lambda posterior: {"mean": posterior.mode()},
    "moments": lambda posterior: {"mean": posterior.mean, "log_var": posterior.log_var},
}
# What may be kept of the latents of each autoencoder, the usual first.
KEPT_OF: dict[type, tuple[str, ...]] = {
    AutoencoderKL: ("moments", "mean"),
    AutoencoderVQ: ("mean",),
}
