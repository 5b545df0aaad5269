"""Runs on which something goes wrong: numbers, disks, clocks, other runs."""

import json
import os
import shutil
import subprocess
import time
import warnings

import jax
import numpy as np
import pytest
import tiny

from diffusion_jax.train import workdir
from diffusion_jax.train.checkpoint import restore_params, steps
from diffusion_jax.train.log import METRICS, NonFinite

pytestmark = pytest.mark.whole


def _poisoned(*at):
    def data(start):
        for step, batch in enumerate(tiny.batches(start), start):
            yield {"x": np.where(step in at, np.nan, batch["x"]).astype(np.float32)}

    return data


def _lines(folder):
    return [json.loads(text) for text in (folder / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_steps_that_are_not_finite_are_passed_over_and_said(tmp_path, capsys, steps_per_call):
    state = tiny.run(
        tmp_path, 20, _poisoned(3, 11), skip_nonfinite=2, steps_per_call=steps_per_call
    )
    assert int(state.step) == 20 and bool(state.finite)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert float(state.carry) == 18  # steps that counted
    assert "loss is nan at step 12, which is passed over (2 of at most 2" in capsys.readouterr().err
    assert [line.get("skipped_steps") for line in _lines(tmp_path)] == [1, 1, 2, 2]
    assert all(np.isfinite(line["loss"]) for line in _lines(tmp_path))


def test_one_too_many_stops_the_run_with_the_last_good_state_saved(tmp_path):
    with pytest.raises(NonFinite, match="loss is nan at step 12; the parameters of step 11"):
        tiny.run(tmp_path, 20, _poisoned(3, 11), skip_nonfinite=1)
    params = restore_params(tmp_path, "params")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_run_that_passed_over_steps_resumes_bit_by_bit(tmp_path):
    through = tiny.run(tmp_path / "through", 20, _poisoned(3, 15), skip_nonfinite=2)
    tiny.run(tmp_path / "halves", 10, _poisoned(3, 15), skip_nonfinite=2)
    again = tiny.run(tmp_path / "halves", 20, _poisoned(3, 15), skip_nonfinite=2)
    jax.tree.map(np.testing.assert_array_equal, through, again)


def test_a_second_run_in_the_folder_is_refused_and_the_first_unharmed(tmp_path, reference):
    seen = []

    def meanwhile(start):
        for step, batch in enumerate(tiny.batches(start), start):
            if step == 5:
                before = workdir.read_config(tmp_path)
                more = {**tiny.CONFIG, "train": {"steps": 99}}  # which a resume may change
                with pytest.raises(ValueError, match=r"is in use by another run \(process \d+ on"):
                    tiny.run(tmp_path, 99, config=more)
                assert workdir.read_config(tmp_path) == before
                seen.append(step)
            yield batch

    state = tiny.run(tmp_path, 40, meanwhile)
    assert seen
    jax.tree.map(np.testing.assert_array_equal, state, reference.state)


def test_a_lock_goes_with_its_process(tmp_path):
    tiny.script(tmp_path, "--steps=40", "--signal=SIGKILL", "--at=12")
    assert (tmp_path / workdir.LOCK).exists()
    assert int(tiny.run(tmp_path, 20).step) == 20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_what_is_saved_stays_whole(small_disk, tmp_path):
    """A filler takes the room after the first checkpoint; later, it is gone again."""
    filler = small_disk / "filler"

    def filled(start):
        for step, batch in enumerate(tiny.batches(start), start):
            if step == 13 and not filler.exists():
                while 10 not in steps(small_disk / "run"):
                    time.sleep(0.01)
                with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
                    while True:
                        file.write(bytes(4096))
            yield batch

    says = r"run cannot be written \(No space left on device\); make room on its disk"
    with pytest.raises(ValueError, match=says), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checkpoint on its way fails too
        tiny.run(small_disk / "run", 40, filled)
    assert 10 in steps(small_disk / "run")
    restore_params(small_disk / "run", "params", 10)
    filler.unlink()
    state = tiny.run(small_disk / "run", 40)
    whole = tiny.run(tmp_path / "whole", 40)
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(ValueError, match=r"cannot be written \(.+\); give a --workdir"):
            tiny.run(folder)


def test_a_read_only_run_can_be_sampled_from(tmp_path, reference):
    shutil.copytree(reference.workdir, tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(tmp_path.rglob("*"))
    restore_params(tmp_path / "run", "ema")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_clock_that_jumps_changes_nothing(tmp_path, reference, monkeypatch):
    real, year = time.time, 3e7
    offset = [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])

    def jumping(start):
        for step, batch in enumerate(tiny.batches(start), start):
            if step in (5, 8):
                offset[0] += year if step == 5 else -2 * year
            yield batch

    tiny.run(tmp_path, 20, jumping)
    offset[0] = -5 * year
    for step in (10, 20):  # the newest by its number, not by its date
        os.utime(tmp_path / "checkpoints" / str(step), (year * 50 / step, year * 50 / step))
    state = tiny.run(tmp_path, 40)
    jax.tree.map(np.testing.assert_array_equal, state, reference.state)
    assert [line["step"] for line in _lines(tmp_path)] == list(range(5, 41, 5))
    assert all(line["steps_per_second"] > 0 for line in _lines(tmp_path)[1:])


def test_metrics_tell_what_the_machine_does(reference):
    last = _lines(reference.workdir)[-1]
    assert last["compilations"] >= 1 and last["compile_seconds"] > 0
    assert last["examples_per_second"] == pytest.approx(16 * last["steps_per_second"])
    # Of two products of 16x8x64: forward, and backward to both operands but the input.
    exact = 2 * 16 * 8 * 64 * (2 + 3)
    assert last["flops_per_second"] == pytest.approx(exact * last["steps_per_second"])


def test_a_trace_is_taken_of_the_steps_asked_for(tmp_path):
    tiny.run(tmp_path / "run", 10, trace="3:4")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    for wrong in ("3", "4:3", "a:b"):
        with pytest.raises(ValueError, match="must be FIRST:LAST"):
            tiny.run(tmp_path / "other", 10, trace=wrong)
