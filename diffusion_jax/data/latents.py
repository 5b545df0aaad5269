"""Sets of latents: the posteriors of a trained first stage, computed once for a set of images.

Each example has ``mean`` and, if it is stored, ``log_var``, both float16 [h, w, z] before scaling,
and the label or caption of its image.  The metadata hold the scale.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from diffusion_jax.data import catalog
from diffusion_jax.data.prepare import place


class Scaling(NamedTuple):
    """Latents are scale·(z - shift), one number or one for each channel; the checkpoint's step."""

    scale: Any
    shift: Any
    step: int


class Contents(NamedTuple):
    """What to write.

    Attributes:
        splits: split -> () -> examples, name -> array, str or int.
        shape: shape of a latent, (h, w, z).
        variance: whether examples have ``log_var``.
        captions: whether examples have ``caption``.
        class_names: names of ``label``; () without labels.
        source: description of images and encoder.
        scaling: scaling of the latents.
    """

    splits: Mapping[str, Callable[[], Iterable[dict[str, Any]]]]
    shape: tuple[int, ...]
    variance: bool
    captions: bool
    class_names: tuple[str, ...]
    source: str
    scaling: Scaling


@dataclasses.dataclass(kw_only=True)
class LatentsConfig(tfds.core.BuilderConfig):
    """The contents of one set."""

    contents: Contents


class Latents(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Latents of a first stage."""

    name = "latents"
    VERSION = tfds.core.Version(catalog.VERSION)

    def __init__(self, *, config: LatentsConfig, data_dir: str):
        self.contents = config.contents
        self.BUILDER_CONFIGS = [config]  # otherwise TFDS prints it as unknown
        super().__init__(config=config, data_dir=data_dir, file_format=catalog.FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        held = self.contents
        tensor = lambda: tfds.features.Tensor(
            shape=held.shape, dtype=np.float16, encoding=tfds.features.Encoding.BYTES
        )
        features: dict[str, Any] = {"mean": tensor()}
        features |= {"log_var": tensor()} if held.variance else {}
        features |= {"caption": tfds.features.Text()} if held.captions else {}
        if held.class_names:
            features["label"] = tfds.features.ClassLabel(names=list(held.class_names))
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__ or "",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # in the order of the images
            metadata=tfds.core.MetadataDict(source=held.source, **held.scaling._asdict()),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {name: self._generate_examples(made) for name, made in self.contents.splits.items()}

    def _generate_examples(self, made):
        yield from enumerate(made())


def write_latents(
    name: str,
    contents: Contents,
    data_dir: str | os.PathLike | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the set ``latents/NAME`` atomically; return its folder.

    Raises:
        ValueError: if there is one already, from another source.
    """
    config = LatentsConfig(name=name, contents=contents)
    make = lambda scratch: Latents(config=config, data_dir=scratch)
    return place(make, f"{catalog.LATENTS}{name}", data_dir, overwrite=overwrite)
