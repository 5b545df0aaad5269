"""kill -9 at random moments."""

import json
import random
import time

import jax
import numpy as np
import pytest
import tiny

from diffusion_jax.train.checkpoint import steps
from diffusion_jax.train.log import METRICS

KILLS, STEPS = 30, 2000


@pytest.mark.slow  # 31 starts of Python and JAX, 3 to 5 s each
def test_a_run_killed_thirty_times_ends_as_if_it_never_was(tmp_path):
    """Checkpoints every 5 steps keep the disk busy, so that kills hit saves too."""
    draw = random.Random(0)
    options = [f"--steps={STEPS}", "--every=5"]
    inside_a_save = 0
    for kill in range(KILLS):
        before = steps(tmp_path / "run")
        process = tiny.start(tmp_path / "run", *options)
        # Wait until it moves (a new checkpoint), then for a moment that nobody chose.
        deadline = time.monotonic() + 60
        while steps(tmp_path / "run") == before and process.running():
            assert time.monotonic() < deadline, "it does not move"
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.6))
        process.kill()
        killed = tiny.end(process)
        assert killed.returncode == -9, f"kill {kill}: {killed.stderr[-2000:]}"
        checkpoints = tmp_path / "run" / "checkpoints"
        inside_a_save += any(not path.name.isdigit() for path in checkpoints.iterdir())
    assert inside_a_save >= 3  # what a save left half done
    done = steps(tmp_path / "run")[-1]
    assert done < STEPS
    end = done - done % 5 + 10
    ended = tiny.script(tmp_path / "run", f"--steps={end}", "--every=5")
    assert ended.returncode == 0, ended.stderr
    through = tiny.script(tmp_path / "through", f"--steps={end}", "--every=1000000")
    assert through.returncode == 0, through.stderr
    states = [tiny.run(tmp_path / name, end) for name in ("run", "through")]
    assert int(states[0].step) == end
    jax.tree.map(np.testing.assert_array_equal, *states)
    told = [json.loads(t) for t in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["step"] for line in told] == list(range(5, end + 1, 5))
