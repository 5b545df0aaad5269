"""Train, sample from or evaluate a diffusion model.

    python main.py --config=configs/mnist.py --workdir=runs/mnist
    python main.py --mode=sample --workdir=runs/mnist --config.sampler.guidance_scale=3

Without --config, sample and evaluate read the config that the run in --workdir was trained with.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

MODES = ("all", "train", "sample", "evaluate")
_CONFIG = config_flags.DEFINE_config_file("config", "configs/mnist.py", "The experiment.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if need be.")
_MODE = flags.DEFINE_enum("mode", "all", MODES, "What to do; all: train, sample, evaluate.")


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    from diffusion_jax import jobs  # after the flags are known to be right: it loads JAX

    if not _WORKDIR.value:
        raise app.UsageError("--workdir is missing; give a folder for the run, such as runs/mnist")
    config = _CONFIG.value
    for mode in ("train", "sample", "evaluate") if _MODE.value == "all" else (_MODE.value,):
        jobs.JOBS[mode](config, _WORKDIR.value)
