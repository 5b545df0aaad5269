"""Make a small folder of a run, to give away: config and averaged weights as safetensors.

python scripts/release.py --workdir=runs/emoji_text --out=weights/emoji_text
python main.py --mode=sample --workdir=weights/emoji_text
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

from diffusion_jax import ending

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
flags.DEFINE_string("out", None, "Folder to make.", required=True)
flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Of large arrays.")


def main(argv: list[str]) -> None:
    """Release; a bad request is one sentence, code 2."""
    from diffusion_jax.build.releases import release  # here, so that --help is quick

    del argv
    logging.set_verbosity(logging.WARNING)
    with ending.sentences():
        out = release(FLAGS.workdir, FLAGS.out, FLAGS.dtype)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        print(f"{out} holds the release, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    app.run(main)
