"""Write a data set to disk, atomically, in the format that the pipeline reads."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from diffusion_jax.data import catalog
from diffusion_jax.data.builders import (
    by_name,
    fashion_mnist,
    image_folder,
    mnist5k,
    noto_emoji,
)

log = logging.getLogger(__name__)


class Options(NamedTuple):
    """Options of all sets; each uses those that ``PREPARE`` lists for it.

    Attributes:
        source_dir: folder with the files of fashion_mnist.
        font: NotoColorEmoji.ttf for noto_emoji.
        folder: images for image_folder.
        set_name: name of the set from ``folder``; None for the folder's name.
        image_size: (height, width) for image_folder; None keeps each image's size.
        test_fraction: share of ``folder`` that becomes the test split; None for 0.1.
        skip_unreadable: number of images of ``folder`` that may be skipped; None for 0.
    """

    source_dir: str | None = None
    font: str | None = None
    folder: str | None = None
    set_name: str | None = None
    image_size: tuple[int, int] | None = None
    test_fraction: float | None = None
    skip_unreadable: int | None = None


class Way(NamedTuple):
    """How to prepare one set.

    Attributes:
        builder: (name, scratch folder, data root, options) -> the TFDS builder that will write
            into the scratch folder.
        takes: the fields of ``Options`` that it reads.
    """

    builder: Callable[[str, str, Path, Options], Any]
    takes: tuple[str, ...]


def prepare(
    name: str,
    data_dir: str | os.PathLike | None = None,
    options: Options = Options(),  # noqa: B008 a value
    *,
    overwrite: bool = False,
) -> Path:
    """Prepare a set unless it is there already; return the folder it lies in.

    It is written to a scratch folder and moved when complete, so an interrupted run leaves nothing
    that could be mistaken for data, and two concurrent runs both succeed.

    Raises:
        ValueError: for an unknown name, an option that the set does not use, an unreadable image,
            or a prepared set from other files or options.
        FileNotFoundError: if source files are absent.
        ConnectionError: if they are on a server only and it does not answer.
    """
    family = "tfds" if name.startswith("tfds:") else name
    if family not in PREPARE:
        raise ValueError(
            f"data set {name!r} cannot be prepared; known are {', '.join(sorted(PREPARE))} "
            "(as in tfds:cifar10)."
        )
    way = PREPARE[family]
    for field, value in options._asdict().items():
        if value is not None and field not in way.takes:
            raise ValueError(f"{field} is {value!r}, but {name} has no use for it; leave it out.")
    root = catalog.data_root(data_dir)
    make = lambda scratch: way.builder(name, scratch, root, options)
    return place(make, name, data_dir, overwrite=overwrite)


def place(
    make: Callable[[str], Any],
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Build a set in a scratch folder and move it into place.

    Args:
        make: scratch folder -> the TFDS builder that will write into it.
        name: the set's name, for messages.
        data_dir, overwrite: as for ``prepare``.
    """
    root = catalog.data_root(data_dir)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing_", dir=root) as scratch:
        builder = make(scratch)
        final = root / Path(builder.data_dir).relative_to(scratch)
        if final.exists() and not overwrite:
            source = builder.info.metadata and builder.info.metadata.get("source")
            _check_same(final, name, getattr(builder, "source", source))
            return final
        for sentence in getattr(builder, "notes", ()):
            log.warning("note: %s", sentence)
        _write(builder, name, root)
        skipped = getattr(builder, "skipped", ())
        for number, sentence in enumerate(skipped, 1):
            log.warning("left out, %d of %d: %s", number, len(skipped), sentence)
        _move(Path(builder.data_dir), final, overwrite)
    return final


def _write(builder: Any, name: str, root: Path) -> None:
    tfds.display_progress_bar(enable=name.startswith("tfds:"))  # this package's builders show one
    try:
        # TFDS prints the path of the scratch folder, which is of no use
        with (
            by_name.pillow_encodes(),
            catalog.quiet(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            builder.download_and_prepare(
                download_dir=os.fspath(root / "downloads"),
                file_format=catalog.FORMAT,
            )
    except ImportError as error:
        raise ValueError(by_name.needs_package(name.removeprefix("tfds:"), error)) from error
    finally:
        tfds.display_progress_bar(enable=True)


def _check_same(final: Path, name: str, source: str | None) -> None:
    """Raise ValueError unless the set in ``final`` is readable and was prepared from ``source``."""
    catalog.check_format(final, name)
    if source is None:
        return
    metadata = json.loads((final / "metadata.json").read_text())
    if metadata.get("source") != source:
        raise ValueError(
            f"data set {name} lies in {final} already, made from other files or with other "
            "settings; replace it with --overwrite, or keep both by another name or --data_dir."
        )


def _move(made: Path, final: Path, overwrite: bool) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    if overwrite and final.exists():
        shutil.rmtree(shutil.move(final, made.parent / "replaced"))
    try:
        made.rename(final)
    except OSError:
        if not final.exists():
            raise
        log.info("%s was prepared by another process meanwhile.", final)


def _mnist5k(name: str, data_dir: str, root: Path, options: Options) -> Any:
    del name, root, options
    return mnist5k.Mnist5k(data_dir=data_dir, file_format=catalog.FORMAT)


def _fashion_mnist(name: str, data_dir: str, root: Path, options: Options) -> Any:
    del name
    given = options.source_dir or os.environ.get(fashion_mnist.FOLDER_VARIABLE)
    folder = Path(given or fashion_mnist.DEBIAN_FOLDER).expanduser()
    if given and not folder.is_dir():
        raise FileNotFoundError(f"source_dir {given!r} does not exist; give the folder of files.")
    if not given and not folder.is_dir():
        folder = root / "downloads" / "fashion_mnist"
    return fashion_mnist.FashionMnist(folder=folder, data_dir=data_dir)


def _noto_emoji(name: str, data_dir: str, root: Path, options: Options) -> Any:
    del name, root
    given = options.font or os.environ.get(noto_emoji.FONT_VARIABLE)
    font = Path(given or noto_emoji.DEBIAN_FONT).expanduser()
    if not font.is_file():
        raise FileNotFoundError(
            f"font {font} does not exist; on Debian run `apt-get install fonts-noto-color-emoji`, "
            "or give --font=PATH to the NotoColorEmoji.ttf of "
            "https://github.com/googlefonts/noto-emoji."
        )
    return noto_emoji.NotoEmoji(font=font, data_dir=data_dir)


def _image_folder(name: str, data_dir: str, root: Path, options: Options) -> Any:
    del name, root
    if not options.folder:
        raise ValueError("folder is empty; image_folder needs --folder=PATH.")
    folder = Path(options.folder).expanduser()
    config = image_folder.FolderConfig(
        name=options.set_name or folder.resolve().name,
        folder=folder,
        image_size=options.image_size,
        test_fraction=0.1 if options.test_fraction is None else options.test_fraction,
        skip_unreadable=options.skip_unreadable or 0,
    )
    return image_folder.ImageFolder(config=config, data_dir=data_dir)


def _catalogue(name: str, data_dir: str, root: Path, options: Options) -> Any:
    del root, options
    return by_name.builder(name.removeprefix("tfds:"), data_dir, catalog.FORMAT)


PREPARE: dict[str, Way] = {
    "fashion_mnist": Way(_fashion_mnist, ("source_dir",)),
    "image_folder": Way(
        _image_folder, ("folder", "set_name", "image_size", "test_fraction", "skip_unreadable")
    ),
    "mnist5k": Way(_mnist5k, ()),
    "noto_emoji": Way(_noto_emoji, ("font",)),
    "tfds": Way(_catalogue, ()),
}
