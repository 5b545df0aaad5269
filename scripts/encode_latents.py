"""Encode a data set by a trained autoencoder, and measure the scale of its codes.

    python scripts/encode_latents.py --workdir=runs/first_stage --data=noto_emoji

The scale goes to WORKDIR/latents.json; the codes, with captions and labels, to the data set
latents/NAME.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

from diffusion_jax import ending

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of the autoencoder's run.", required=True)
flags.DEFINE_string("data", None, "Name of the set of images.", required=True)
flags.DEFINE_string("name", "", "Of the set of latents; the images' own if empty.")
flags.DEFINE_string("data_dir", None, "Where sets lie; $TFDS_DATA_DIR or ~/tensorflow_datasets.")
flags.DEFINE_bool("per_channel", False, "A scale and a shift for each channel.")
flags.DEFINE_enum("keep", "", ["", "mean", "moments"], "Mean alone, or with the log variance.")
flags.DEFINE_bool("overwrite", False, "Replace the set if it is there already.")


def main(argv: list[str]) -> None:
    """Encode; a bad request is one sentence, code 2."""
    from diffusion_jax.jobs.encoding import encode_latents  # here, so that --help is quick
    from diffusion_jax.jobs.placing import cache_compilations

    del argv
    logging.set_verbosity(logging.WARNING)
    cache_compilations()
    with ending.sentences():
        path = encode_latents(
            FLAGS.workdir,
            FLAGS.data,
            FLAGS.name,
            FLAGS.data_dir,
            per_channel=FLAGS.per_channel,
            keep=FLAGS.keep,
            overwrite=FLAGS.overwrite,
        )
        print(f"data set latents/{path.parent.name} lies in {path}")
        print((Path(FLAGS.workdir) / "latents.json").read_text(), end="")


if __name__ == "__main__":
    app.run(main)
