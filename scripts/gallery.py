"""Draw the pictures of docs/editing.md by the emoji model of weights/emoji: one row an edit.

python scripts/gallery.py --out=docs/editing.png
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw

from configs import sample as settings_file
from diffusion_jax import jobs

FLAGS = flags.FLAGS
flags.DEFINE_string("out", "docs/editing.png", "The picture.")
flags.DEFINE_string("source", str(Path(__file__).parents[1] / "weights/emoji"), "What draws.")
flags.DEFINE_integer("steps", 30, "Sampling steps.")

SIDE, COLUMNS, ZOOM = 64, 6, 2


class Row(NamedTuple):
    """Images of one row: what they are, and how they are drawn."""

    name: str
    prompt: str
    edits: tuple[str, ...] = ()
    n: int = COLUMNS
    size: tuple[int, int] = (SIDE, SIDE)
    seed: int = 3


def rows_of(parent: str, mask: str) -> list[Row]:
    """The rows, of a parent picture and a mask of its lower half."""
    paint = f"inpaint({parent!r}, {mask!r}, feather=4)"
    return [
        Row("text to image: 'grinning face'", "grinning face"),
        Row("variation(0.3): near neighbours", "grinning face", ("variation(0.3, seed=1)",)),
        Row(
            "image_to_image('parent.png', 0.7): 'cat face'",
            "cat face",
            (f"image_to_image({parent!r}, 0.7)",),
        ),
        Row("inpaint('parent.png', 'lower_half.png')", "grinning face", (paint,)),
        Row("both, with another prompt: 'pouting face'", "pouting face",
            (paint, f"image_to_image({parent!r}, 0.9)")),
        Row("tiles(wrap='x') at 64x384: 'cat face'", "cat face", ("tiles(wrap='x')",),
            1, (SIDE, COLUMNS * SIDE)),
    ]  # fmt: skip


def draw(row: Row, folder: Path) -> np.ndarray:
    """Uint8 [h, w, 3]: the images of a row side by side."""
    settings: Any = settings_file.get_config()
    settings.update(
        checkpoint=FLAGS.source, prompt=row.prompt, n=row.n, seed=row.seed,
        image_size=row.size, edits=row.edits, batch_size=row.n,
    )  # fmt: skip
    settings.sampler.steps = FLAGS.steps
    return np.concatenate(list(jobs.sample(settings, folder).images), 1)


def labelled(strip: np.ndarray, name: str) -> np.ndarray:
    """The strip, larger, under a line of text."""
    large = np.repeat(np.repeat(strip, ZOOM, 0), ZOOM, 1)
    line = Image.new("RGB", (large.shape[1], 18), "white")
    ImageDraw.Draw(line).text((4, 3), name, fill="black")
    return np.concatenate([np.asarray(line), large])


def main(argv: Sequence[str]) -> None:
    """Draw all rows and write the picture."""
    del argv
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = draw(Row("", "grinning face", n=1), folder)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[SIDE // 2 :] = 255
        parent, white = str(folder / "parent.png"), str(folder / "mask.png")
        Image.fromarray(first).save(parent)
        Image.fromarray(mask).save(white)
        sheet = [labelled(draw(row, folder), row.name) for row in rows_of(parent, white)]
    Image.fromarray(np.concatenate(sheet)).save(FLAGS.out)


if __name__ == "__main__":
    app.run(main)
