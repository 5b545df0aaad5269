"""Random access to the examples of any data set, and its metadata."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from diffusion_jax.data import catalog, picture_files, toy2d
from diffusion_jax.data.prepare import prepare
from diffusion_jax.data.sizes import image_sizes, stamp

log = logging.getLogger(__name__)


class Info(NamedTuple):
    """Metadata of a split of a data set.

    Attributes:
        name: name of the data set.
        split: a split, possibly a slice such as ``train[:1000]``.
        num_examples: number of examples in the split.
        shape: shape of an image, (h, w, c) with None where images differ; (2,) for toy2d.
        num_classes: number of labels, or None if unlabelled.
        class_names: names of the labels, () if unlabelled.
        captions: whether each image has one.
        kind: "image", "points", or "latents", whose examples are latents.
    """

    name: str
    split: str
    num_examples: int
    shape: tuple[int | None, ...]
    num_classes: int | None
    class_names: tuple[str, ...]
    captions: bool
    kind: str = "image"


class Source(NamedTuple):
    """A split, ready to read.

    Attributes:
        info: its metadata.
        read: indices int64 [n] -> n examples, each with ``image`` (uint8 [h, w, c]; float32 [2] for
            toy2d; float32 [h, w, z], the scaled mean, for latents, and the ``deviation`` if that
            is known) and, where the set has them, ``label`` (int) and ``caption`` (str).
        sizes: () -> (height, width) of every image, int32 [num_examples, 2], measured once and
            cached beside the data; None for sets without images.
    """

    info: Info
    read: Callable[[np.ndarray], list[dict[str, Any]]]
    sizes: Callable[[], np.ndarray] | None = None


def open_source(name: str, split: str, data_dir: str | os.PathLike | None = None) -> Source:
    """Open a split of a data set (names: see ``catalog``).  mnist5k is prepared if it is absent.

    Raises:
        DataMissing: if the set is not prepared, naming the command that does it.
        ValueError: if the name or the split is unknown, or the set has no images.
    """
    catalog.check_name(name)
    if name.startswith("toy2d:"):
        return _toy(name, split)
    if name == "mnist5k" and not catalog.prepared_path(name, data_dir).exists():
        log.info("preparing mnist5k in %s", catalog.data_root(data_dir))
        prepare(name, data_dir)
    builder = catalog.open_builder(name, data_dir)
    if name.startswith(catalog.LATENTS):
        return _latents(builder, name, split)
    image, label, caption = _features(builder.info.features, name)
    records = _records(builder, name, split, {image: tfds.decode.SkipDecoding()})
    labels = builder.info.features[label] if label else None
    info = Info(
        name=name,
        split=split,
        num_examples=len(records),
        shape=_shape(builder.info.features[image]),
        num_classes=labels.num_classes if labels else None,
        class_names=tuple(labels.names) if labels else (),
        captions=caption is not None,
    )

    def sizes() -> np.ndarray:
        told = f"{name} {split} {stamp(builder.data_path)}"
        return image_sizes(records, image, info.shape[:2], told, data_dir)

    return Source(info, _reader(records, image, label, caption), sizes)


def _records(builder: Any, name: str, split: str, decoders: Any = None) -> Any:
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except (KeyError, ValueError) as error:
        known = ", ".join(builder.info.splits)
        raise ValueError(
            f"split {split!r} of data set {name} cannot be read ({error}); its splits are {known}."
        ) from error


def info(name: str, split: str = "train", data_dir: str | os.PathLike | None = None) -> Info:
    """Metadata of a split of a data set; raises as ``open_source`` does."""
    return open_source(name, split, data_dir).info


def _features(features: Any, name: str) -> tuple[str, str | None, str | None]:
    """Keys of the image, of the label and of the caption."""
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    found = {
        wanted: sorted(
            (key for key, feature in features.items() if isinstance(feature, kind)),
            key=lambda key, wanted=wanted: key != wanted,
        )
        for wanted, kind in kinds.items()
    }
    image, label = found["image"], found["label"]
    if not image:
        raise ValueError(
            f"data set {name} has no image feature (it has {', '.join(features)}); choose another."
        )
    return image[0], label[0] if label else None, "caption" if "caption" in features else None


def _shape(feature: Any) -> tuple[int | None, ...]:
    """(h, w, c) as decoded: transparency is laid over white, an open number of channels is 3."""
    height, width, channels = feature.shape
    return (height, width, 1 if channels == 1 else 3)


def _reader(records: Any, image: str, label: str | None, caption: str | None) -> Callable:
    def example(record):
        out: dict[str, Any] = {"image": picture_files.read(record[image])}
        if label:
            out["label"] = int(record[label])
        if caption:
            out["caption"] = record[caption].decode("utf-8")
        return out

    def read(indices):
        # all at once: array_record spends most of a read on starting it
        return [example(record) for record in records.__getitems__([int(i) for i in indices])]

    return read


def latents_scale(name: str, data_dir: str | os.PathLike | None = None) -> tuple[Any, Any, int]:
    """(scale, shift, step of the checkpoint) that a set of latents was encoded with."""
    metadata = catalog.open_builder(name, data_dir).info.metadata
    return metadata["scale"], metadata["shift"], metadata["step"]


def _latents(builder: Any, name: str, split: str) -> Source:
    features, records = builder.info.features, _records(builder, name, split)
    scale, shift = (np.asarray(builder.info.metadata[k], np.float32) for k in ("scale", "shift"))
    labels = dict(features.items()).get("label")

    def example(record):
        out = {"image": scale * (record["mean"].astype(np.float32) - shift)}
        if "log_var" in record:
            out["deviation"] = scale * np.exp(0.5 * record["log_var"].astype(np.float32))
        if labels:
            out["label"] = int(record["label"])
        if "caption" in record:
            out["caption"] = record["caption"].decode("utf-8")
        return out

    info = Info(
        name=name,
        split=split,
        num_examples=len(records),
        shape=tuple(features["mean"].shape),
        num_classes=labels.num_classes if labels else None,
        class_names=tuple(labels.names) if labels else (),
        captions="caption" in features,
        kind="latents",
    )
    read = lambda indices: [example(r) for r in records.__getitems__([int(i) for i in indices])]
    return Source(info, read)


def _toy(name: str, split: str) -> Source:
    member = name.removeprefix("toy2d:")
    if member not in toy2d.TOYS:
        known = ", ".join(f"toy2d:{each}" for each in toy2d.TOYS)
        raise ValueError(f"data set {name!r} is unknown; known are {known}.")
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} of data set {name} is unknown; choose train or test.")
    classes = toy2d.TOYS[member].classes
    names = tuple(str(index) for index in range(classes))

    def read(indices):
        points, labels = toy2d.draw(member, split, indices)
        return [
            {"image": point, "label": int(label)}
            for point, label in zip(points, labels, strict=True)
        ]

    return Source(Info(name, split, toy2d.LENGTH, (2,), classes, names, False, "points"), read)
