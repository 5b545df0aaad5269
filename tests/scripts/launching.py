"""What the tests of the launch files share: the files, and stand-ins for a cluster's programs."""

import json
import os
import subprocess
import time
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts" / "launch"
FOREVER = "while true; do sleep 0.1; done"


def call(*words, path=None, **environment):
    """The finished process; programs in the folder ``path`` stand in for the real ones."""
    search = os.pathsep.join([str(path), os.environ["PATH"]] if path else [os.environ["PATH"]])
    environment = {**os.environ, "PATH": search, **environment}
    command = [str(word) for word in words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def stand_in(folder, name, script):
    """A program of this name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


def waited(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def run_at(folder, steps, done):
    """A run's folder, as far as the launchers look at it."""
    (folder / "checkpoints" / str(done)).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"train": {"steps": steps}}))
    return folder
