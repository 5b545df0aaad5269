"""Train, sample from or evaluate a diffusion model.

    python main.py --config=configs/mnist.py --workdir=runs/mnist
    python main.py --mode=sample --workdir=runs/mnist --config.sampler.guidance_scale=3
    python main.py --mode=evaluate --workdir=runs/mnist

Any field of the config is a flag.  Without --config, sample and evaluate take the run's own.
"""

from __future__ import annotations

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", "configs/mnist.py", "The experiment.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if need be.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "sample", "evaluate"], "What to do.")


def main(argv: list[str]) -> None:
    """Run the job that --mode names; a mistake ends it with one sentence and exit code 2."""
    from diffusion_jax import jobs  # here, so that --help and typos need not wait for JAX

    logging.set_verbosity(logging.WARNING)

    try:
        if argv[1:]:
            raise ValueError(f"argument {argv[1]!r} is not understood; options start with --")
        if not _WORKDIR.value:
            raise ValueError("--workdir is missing; name a folder: --workdir=runs/mnist")
        jobs.JOBS[_MODE.value](_chosen_config(jobs), _WORKDIR.value)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _chosen_config(jobs):
    given = flags.FLAGS["config"].present
    if _MODE.value == "train" or given:
        return _CONFIG.value
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    return jobs.run_config(_WORKDIR.value, overrides)


if __name__ == "__main__":
    app.run(main)
