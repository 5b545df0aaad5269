"""Train, sample from or evaluate a diffusion model.

    python main.py --config=configs/mnist.py --workdir=runs/mnist
    python main.py --mode=sample --workdir=runs/mnist --config.sampler.guidance_scale=3
    python main.py --mode=sample --config.checkpoint=DIR --config.prompt="a red house"
    python main.py --mode=evaluate --workdir=runs/mnist

Any field of the config is a flag.  Sampling takes configs/sample.py, whatever it draws from;
evaluating takes the run's own config.
Several processes, on one or many hosts, each run the same command with --coordinator=HOST:PORT
--processes=N --process=I, or with --distributed=auto where the cluster tells them.

``diffusion-jax`` is this command where the package is installed; ``python main.py`` is the same.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

import configs
from configs.old_names import renewed
from diffusion_jax import ending

FLAGS = flags.FLAGS
CONFIGS = Path(configs.__path__[0])
_CONFIG, _FOLDER = "--config=", "configs/"


def run() -> None:
    """The command, from ``sys.argv`` to its exit code."""
    sys.modules["__main__"].__doc__ = __doc__  # where absl reads what --help says first
    with ending.sentences():
        app.run(main, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """As absl does; a field that the config lacks also ends with one sentence and exit code 2."""
    flags.DEFINE_string("workdir", None, "Folder of the run; made if need be.")
    flags.DEFINE_enum("mode", "train", ["train", "sample", "evaluate"], "What to do.")
    flags.DEFINE_enum("distributed", "", ["", "auto"], "Ask the cluster for the processes.")
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for several processes.")
    flags.DEFINE_integer("processes", None, "How many processes there are.")
    flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
    argv, notes = renewed(_joined(argv))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    sampling = "--mode=sample" in argv and not any(word.startswith(_CONFIG) for word in argv)
    if sampling:
        argv.insert(1, f"{_CONFIG}{_FOLDER}sample.py")
    argv = [_there(word) for word in argv]
    sys.argv[:] = argv  # which ml_collections reads by itself
    try:
        config_flags.DEFINE_config_file("config", str(CONFIGS / "mnist.py"), "The experiment.")
        return FLAGS(argv)
    except (flags.Error, FileNotFoundError, TypeError, ValueError) as error:
        ending.end(f"{_said(error)}; --help lists the options", ending.MISTAKE)
    except (AttributeError, KeyError) as error:  # ml_collections: "'stepz'\\nDid you mean ..."
        words = re.findall(r"\w{2,}", str(error).split("Did you mean")[-1])  # [right, ..., wrong]
        whole = f"configs/{'sample' if sampling else 'base'}.py has them all"
        mend = f"did you mean {words[0]!r}?" if len(words) > 1 else whole
        ending.end(f"the config has no field {words[-1]!r}; {mend}", ending.MISTAKE)


def _there(word: str) -> str:
    """The word, but for a config of the installation that this folder has not: its whole path.

    ``configs/mnist.py`` is found wherever the command is started.
    """
    path, colon, rest = word.removeprefix(_CONFIG).partition(":")
    if not word.startswith(_CONFIG) or Path(path).is_file():
        return word
    installed = CONFIGS / path.removeprefix(_FOLDER)
    if not path.startswith(_FOLDER) or not installed.is_file():
        files = CONFIGS.glob("*.py")
        known = ", ".join(sorted(f.name for f in files if "def get_config" in f.read_text()))
        message = f"{_CONFIG}{path}: there is no such file; {_FOLDER} has {known} and folders"
        ending.end(message, ending.MISTAKE)
    return f"{_CONFIG}{installed}{colon}{rest}"


def _said(error: Exception) -> str:
    """An error of the flags as one line; of a config that fails, what and where."""
    lines = str(error).strip().splitlines()
    where = [line.strip() for line in lines if line.strip().startswith("File ")][-1:]
    return " ".join([*lines[:1], *where, *lines[-1:]]) if where else " ".join(str(error).split())


def _joined(argv: list[str]) -> list[str]:
    """``--config FILE`` as ``--config=FILE``."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == _CONFIG.removesuffix("="):
            words[-1] = _CONFIG + word
        else:
            words.append(word)
    return words


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
