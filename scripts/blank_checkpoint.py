"""Write a Stable Diffusion folder of the published size whose weights are all 0.

    python scripts/blank_checkpoint.py --family=sd1 --out=blank/sd1

To plan memory and time (scripts/compile_for_tpu.py) where the weights cannot be had.  2 GB for sd1,
7 GB for sdxl, in half precision.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

from diffusion_jax import ending

FLAGS = flags.FLAGS
flags.DEFINE_enum("family", "sd1", ["sd1", "sd2", "sdxl"], "Which models' sizes.")
flags.DEFINE_string("out", None, "Folder to make.", required=True)
flags.DEFINE_enum("dtype", "float16", ["float16", "bfloat16", "float32"], "Of the weights.")


def main(argv: list[str]) -> None:
    """Write; a bad request is one sentence, code 2."""
    import jax.numpy as jnp  # here, so that --help is quick

    from diffusion_jax.convert.blank import write_blank

    del argv
    logging.set_verbosity(logging.WARNING)
    with ending.sentences():
        out = write_blank(FLAGS.out, FLAGS.family, jnp.dtype(FLAGS.dtype))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out} holds zeros of {FLAGS.family}, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    app.run(main)
