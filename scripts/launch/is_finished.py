"""Whether the run in a folder has made its last step: python is_finished.py WORKDIR.

Exit code 0 if so, else 75, "try again": a run that was told to stop ends with 0, and schedulers
must not take that for its end.
"""

import json
import sys
from pathlib import Path

TRY_AGAIN = 75


def finished(workdir: Path) -> bool:
    """Whether the checkpoint of the last step is there, as after every run."""
    config = workdir / "config.json"
    if not config.exists():
        return False
    steps = json.loads(config.read_text())["train"]["steps"]
    return (workdir / "checkpoints" / str(steps)).is_dir()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: WORKDIR is missing; name the run's folder: is_finished.py WORKDIR")
    if not finished(Path(sys.argv[1])):
        print(f"the run in {sys.argv[1]} is not at its last step", file=sys.stderr)
        sys.exit(TRY_AGAIN)
