"""How the guidance scale trades diversity for agreement with the text, measured and drawn.

python scripts/guidance_curve.py --workdir=runs/emoji_text --out=guidance.png

A judge trained on the run's training images and captions (evaluate/contrast.py) says how much
nearer a sample is to its own caption than to the others; the mean distance of two samples of one
caption says how diverse they are.  The figures go beside the picture, as .json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

from diffusion_jax import ending

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of a run or release that reads texts.", required=True)
flags.DEFINE_string("out", "guidance.png", "The picture.")
flags.DEFINE_list("scales", ["1.25", "2", "3", "5", "8"], "Guidance scales.")
flags.DEFINE_integer("captions", 40, "Training captions that are drawn.")
flags.DEFINE_integer("each", 4, "Samples of each, at least 2.")
flags.DEFINE_integer("steps", 25, "Sampling steps.")


def main(argv: list[str]) -> None:
    """Measure and draw; a bad request is one sentence, code 2."""
    from diffusion_jax import pictures  # here, so that --help is quick
    from diffusion_jax.build.runs import open_run
    from diffusion_jax.files import whole
    from diffusion_jax.jobs import captioning, run_config
    from diffusion_jax.jobs.placing import cache_compilations
    from diffusion_jax.jobs.run_samples import sampler_of_run

    del argv
    logging.set_verbosity(logging.WARNING)
    cache_compilations()
    with ending.sentences():
        if FLAGS.each < 2:
            raise ValueError(f"--each={FLAGS.each} must be at least 2: diversity is of pairs")
        scales = [float(scale) for scale in FLAGS.scales]
        batch = FLAGS.captions * FLAGS.each
        chosen = {"sampler.steps": FLAGS.steps, "sampler.batch_size": min(batch, 80)}
        run = open_run(run_config(FLAGS.workdir, chosen), FLAGS.workdir)
        texts = captioning.captions_of(run.config, run.config.data.split, FLAGS.captions)
        judged, sampler = captioning.judge_of(run.config), sampler_of_run(run)
        lines, rows = [], []
        for scale in scales:
            row = captioning.compromise(sampler, texts, judged, FLAGS.each, scale)
            rows.append(row.images[0, :10])
            lines.append((row.adherence, row.diversity))
            print(
                f"guidance scale {scale:5.2f}: adherence {row.adherence.value:.3f} ± "
                f"{row.adherence.spread:.3f}, diversity {row.diversity.value:.2f} ± "
                f"{row.diversity.spread:.2f}"
            )
    names = ("adherence", "diversity")
    curves = {name: [line[i] for line in lines] for i, name in enumerate(names)}
    kept = {name: [figure._asdict() for figure in curve] for name, curve in curves.items()}
    with whole(Path(FLAGS.out).with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"guidance_scale": scales, **kept}, indent=1) + "\n")
    pictures.save_curves(FLAGS.out, "guidance scale", scales, curves, rows)


if __name__ == "__main__":
    app.run(main)
