"""Train, sample from or evaluate a diffusion model.

    python main.py --config=configs/mnist.py --workdir=runs/mnist
    python main.py --mode=sample --workdir=runs/mnist --config.sampler.guidance_scale=3
    python main.py --mode=sample --config.checkpoint=DIR --config.prompt="a red house"
    python main.py --mode=evaluate --workdir=runs/mnist

Any field of the config is a flag.  Sampling takes configs/sample.py, whatever it draws from;
evaluating takes the run's own config.
Several processes, on one or many hosts, each run the same command with --coordinator=HOST:PORT
--processes=N --process=I, or with --distributed=auto where the cluster tells them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from configs.old_names import renewed
from diffusion_jax import ending

FLAGS = flags.FLAGS
SAMPLE = Path(__file__).parent / "configs" / "sample.py"


def parse_flags(argv: list[str]) -> list[str]:
    """As absl does; a field that the config lacks also ends with one sentence and exit code 2."""
    flags.DEFINE_string("workdir", None, "Folder of the run; made if need be.")
    flags.DEFINE_enum("mode", "train", ["train", "sample", "evaluate"], "What to do.")
    flags.DEFINE_enum("distributed", "", ["", "auto"], "Ask the cluster for the processes.")
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for several processes.")
    flags.DEFINE_integer("processes", None, "How many processes there are.")
    flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
    argv, notes = renewed(argv)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    files = [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    for file in files:
        if not Path(file.partition(":")[0]).is_file():
            ending.end(f"there is no config {file}; name a file: --config=configs/mnist.py", 2)
    sampling = "--mode=sample" in argv and not files
    if sampling:
        argv.insert(1, f"--config={SAMPLE}")
    sys.argv[:] = argv  # which ml_collections reads by itself
    try:
        config_flags.DEFINE_config_file("config", "configs/mnist.py", "The experiment.")
        return FLAGS(argv)
    except (flags.Error, FileNotFoundError, TypeError, ValueError) as error:
        ending.end(f"{' '.join(str(error).split())}; --help lists the options", ending.MISTAKE)
    except (AttributeError, KeyError) as error:  # ml_collections: "'stepz'\\nDid you mean ..."
        words = re.findall(r"\w{2,}", str(error).split("Did you mean")[-1])  # [right, ..., wrong]
        whole = f"configs/{'sample' if sampling else 'base'}.py has them all"
        mend = f"did you mean {words[0]!r}?" if len(words) > 1 else whole
        ending.end(f"the config has no field {words[-1]!r}; {mend}", ending.MISTAKE)


def main(argv: list[str]) -> None:
    """Run the job that --mode names; a mistake ends it with one sentence and exit code 2."""
    with ending.sentences(_workdir):
        _run(argv)


def _run(argv: list[str]) -> None:
    from diffusion_jax import jobs  # here, so that --help and typos need not wait for JAX

    logging.set_verbosity(logging.WARNING)
    if argv[1:]:
        raise ValueError(f"argument {argv[1]!r} is not understood; options start with --")
    source = FLAGS.workdir or FLAGS.config.get("checkpoint") or FLAGS.config.get("again")
    if FLAGS.mode == "sample" and not source:
        raise ValueError(
            "--workdir is missing; name a run, --workdir=runs/mnist, or a checkpoint, "
            "--config.checkpoint=DIR"
        )
    if not _workdir():
        raise ValueError("--workdir is missing; name a folder: --workdir=runs/mnist")
    hosts = (FLAGS.distributed, FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    jobs.connect(jobs.Hosts(*hosts))
    jobs.JOBS[FLAGS.mode](_chosen_config(jobs), _workdir())


def _workdir() -> str | None:
    return FLAGS.workdir or FLAGS.config.get("workdir")


def _chosen_config(jobs):
    given = FLAGS["config"].present
    if FLAGS.mode != "evaluate" or given:
        return FLAGS.config
    overrides = config_flags.get_override_values(FLAGS["config"])
    return jobs.run_config(FLAGS.workdir, overrides)


if __name__ == "__main__":
    with ending.sentences():
        app.run(main, flags_parser=parse_flags)
