"""Prepare one data set on disk: ``python scripts/prepare_data.py NAME [--data_dir=PATH] ...``.

    python scripts/prepare_data.py fashion_mnist
    python scripts/prepare_data.py noto_emoji --font=NotoColorEmoji.ttf
    python scripts/prepare_data.py image_folder/pets --folder=photos --image_size=64,64
    python scripts/prepare_data.py tfds:cifar10

A set that is there already is left as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

from diffusion_jax import ending
from diffusion_jax.data import catalog, sources
from diffusion_jax.data.prepare import PREPARE, Options, prepare

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Where sets lie; $TFDS_DATA_DIR or ~/tensorflow_datasets.")
flags.DEFINE_bool("overwrite", False, "Replace the set if it is there already.")
flags.DEFINE_string("source_dir", None, "fashion_mnist: folder of its four files.")
flags.DEFINE_string("font", None, "noto_emoji: path of NotoColorEmoji.ttf.")
flags.DEFINE_string("folder", None, "image_folder: images; subfolders, if any, are the classes.")
flags.DEFINE_string("set_name", None, "image_folder: name of the set; default the folder's name.")
flags.DEFINE_list("image_size", None, "image_folder: height,width to resize and centre-crop to.")
flags.DEFINE_float("test_fraction", None, "image_folder: share of images for testing; 0.1.")
flags.DEFINE_integer("skip_unreadable", None, "image_folder: unreadable images to leave out; 0.")


def _image_size() -> tuple[int, int] | None:
    given = FLAGS.image_size
    if given is None:
        return None
    if len(given) != 2 or not all(part.isdecimal() and int(part) > 0 for part in given):
        raise ValueError(f"image_size is {','.join(given)!r}; give height,width, as in 64,64.")
    return int(given[0]), int(given[1])


def _report(name: str) -> None:
    """Print what the set holds."""
    builder = catalog.open_builder(name, FLAGS.data_dir)
    for split in builder.info.splits:
        known = sources.info(name, split, FLAGS.data_dir)
        size = "x".join("?" if side is None else str(side) for side in known.shape)
        label = f", {known.num_classes} classes" if known.num_classes else ""
        caption = ", captions" if known.captions else ""
        print(f"  {split}: {known.num_examples} images {size}{label}{caption}")


def main(argv: list[str]) -> None:
    """Prepare the set that the command line names; a bad request is one sentence, code 2."""
    logging.set_verbosity(logging.WARNING)  # TFDS has much to say
    if len(argv) != 2:
        print(
            f"Give one name of {', '.join(sorted(PREPARE))} (as in tfds:cifar10).", file=sys.stderr
        )
        sys.exit(2)
    # "image_folder/pets" is what a config calls the set that this makes.
    kind, slash, set_name = argv[1].partition("/")
    kind, set_name = (kind, set_name) if kind == "image_folder" and slash else (argv[1], "")
    options = Options(
        source_dir=FLAGS.source_dir,
        font=FLAGS.font,
        folder=FLAGS.folder,
        set_name=set_name or FLAGS.set_name,
        test_fraction=FLAGS.test_fraction,
        skip_unreadable=FLAGS.skip_unreadable,
    )
    with ending.sentences():
        options = options._replace(image_size=_image_size())
        path = prepare(kind, FLAGS.data_dir, options, overwrite=FLAGS.overwrite)
        name = f"image_folder/{path.parent.name}" if kind == "image_folder" else kind
        print(f"{name} lies in {path}")
        _report(name)


if __name__ == "__main__":
    app.run(main)
