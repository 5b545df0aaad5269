"""Any folder of images as a data set; its subfolders, where there are some, are the classes.

Texts beside the images, where there are some, are their captions (``folder_captions``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import picture_files
from diffusion_jax.data.builders.folder_captions import listing, read_captions
from diffusion_jax.data.builders.progress import with_progress
from diffusion_jax.data.images import cropped, resized, with_channels

ENDINGS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tga",
     ".tif", ".tiff", ".webp"}
)  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """What to make of a folder.

    Attributes:
        folder: where the images are, at any depth.
        image_size: (height, width) to resize and centre-crop to now, or None to keep each as it is.
        test_fraction: share of the images, chosen by a hash of their paths, that becomes ``test``.
        skip_unreadable: how many images may be left out because they cannot be read.
    """

    folder: Path
    image_size: tuple[int, int] | None = None
    test_fraction: float = 0.1
    skip_unreadable: int = 0


def list_images(folder: Path) -> list[Path]:
    """Paths of the images under ``folder``, relative to it, sorted; hidden files left out.

    Raises:
        FileNotFoundError: if it is not a folder, or holds no image.
        ValueError: if a name is not UTF-8.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {str(folder)!r} does not exist; give --folder=PATH.")
    found = [path.relative_to(folder) for path in folder.rglob("*") if _is_image(path, folder)]
    if not found:
        raise FileNotFoundError(
            f"folder {str(folder)!r} holds no images; names must end in one of "
            f"{', '.join(sorted(ENDINGS))}."
        )
    for path in found:
        try:
            path.as_posix().encode()
        except UnicodeEncodeError:
            raise ValueError(f"the name of image {str(path)!r} is not UTF-8; rename it") from None
    return sorted(found)


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in ENDINGS and not hidden and path.is_file()


def unused(folder: Path, used: set[Path]) -> tuple[str, ...]:
    """A sentence on the files of a folder that are not among the used, () if there are none."""
    found = (path for path in folder.rglob("*") if not path.is_dir())
    inside = [path.relative_to(folder) for path in found]
    rest = [
        path
        for path in sorted(inside)
        if path not in used and not any(part.startswith(".") for part in path.parts)
    ]
    what = f"files are neither pictures nor captions of any ({len(rest)}): {listing(rest)}"
    return (what,) if rest else ()


def classes_of(paths: list[Path]) -> list[str]:
    """Names of the first-level subfolders, sorted; [] if no image lies in one.

    Raises:
        ValueError: if some images lie in subfolders and some beside them.
    """
    nested = [path for path in paths if len(path.parts) > 1]
    if nested and len(nested) < len(paths):
        stray = next(path for path in paths if len(path.parts) == 1)
        raise ValueError(
            f"image {str(stray)!r} lies beside class subfolders such as {nested[0].parts[0]!r}; "
            "move all images into subfolders (classes), or none."
        )
    return sorted({path.parts[0] for path in nested})


def split_paths(paths: list[Path], test_fraction: float) -> dict[str, list[Path]]:
    """Share out paths to ``train`` and, if it gets any, ``test``; a fixed choice by hashed path.

    Raises:
        ValueError: if ``test_fraction`` is not in [0, 1).
    """
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; choose a share in [0, 1).")
    hashed = sorted(paths, key=lambda path: hashlib.sha256(path.as_posix().encode()).digest())
    count = int(len(paths) * test_fraction)
    splits = {"train": sorted(hashed[count:]), "test": sorted(hashed[:count])}
    return {split: members for split, members in splits.items() if members}


def fingerprint(config: FolderConfig) -> str:
    """Text that changes when the images (path, size, time), captions or the settings do."""
    seen, paths = hashlib.sha256(), list_images(config.folder)
    for path in paths:
        stat = (config.folder / path).stat()
        seen.update(f"{path.as_posix()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for path, caption in read_captions(config.folder, paths).texts.items():
        seen.update(f"{path.as_posix()} {caption}\n".encode())
    settings = f"{config.image_size} {config.test_fraction} {config.skip_unreadable}"
    return f"folder {config.folder.resolve()} {settings} {seen.hexdigest()}"


def read_image(path: Path, image_size: tuple[int, int] | None) -> Image.Image:
    """Read upright, over white, RGB, resized to cover and centre-cropped if a size is given.

    Raises:
        ValueError: if Pillow cannot read it to its end.
    """
    try:
        image = with_channels(picture_files.read(path), 3)
    except ValueError as error:
        raise ValueError(
            f"image {str(path)!r} cannot be read ({error}); mend or remove it, or allow some "
            "such images with --skip_unreadable=N."
        ) from None
    if image_size is not None:
        image = cropped(resized(image, image_size, "center"), image_size, 0.5)
    return Image.fromarray(image)


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of a folder, RGB; class labels are its subfolders' names, captions its texts."""

    name = "image_folder"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, config: FolderConfig, data_dir: str):
        self.settings = config
        self.paths = list_images(config.folder)
        self.splits = split_paths(self.paths, config.test_fraction)
        self.classes = classes_of(self.paths)
        captions = read_captions(config.folder, self.paths)
        self.captions = captions.texts
        self.notes = (*captions.notes, *unused(config.folder, {*self.paths, *captions.files}))
        self.skipped: list[str] = []
        self.source = fingerprint(config)
        super().__init__(config=config, data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.settings.image_size or (None, None)
        image = tfds.features.Image(shape=(*size, 3), encoding_format="png")
        label = {"label": tfds.features.ClassLabel(names=self.classes)} if self.classes else {}
        caption = {"caption": tfds.features.Text()} if self.captions else {}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__ or "",
            features=tfds.features.FeaturesDict({"image": image, **label, **caption}),
            metadata=tfds.core.MetadataDict(source=self.source),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        each = self.splits.items()
        return {split: self._generate_examples(split, members) for split, members in each}

    def _generate_examples(self, split, paths):
        for path in with_progress(paths, self.name, split):
            try:
                picture = read_image(self.settings.folder / path, self.settings.image_size)
            except ValueError as error:
                self.skipped.append(str(error))
                if len(self.skipped) > self.settings.skip_unreadable:
                    raise
                continue
            encoded = io.BytesIO()
            picture.save(encoded, "PNG")
            encoded.seek(0)
            label = {"label": path.parts[0]} if self.classes else {}
            caption = {"caption": self.captions[path]} if self.captions else {}
            yield path.as_posix(), {"image": encoded, **label, **caption}
