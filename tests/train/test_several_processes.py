"""What one of several processes does, told by itself: the others are made up.

Runs of real processes are in test_hosts.
"""

import logging
import os
import signal
import sys

import numpy as np
import pytest

from diffusion_jax.train import checksum, log, preemption, snapshots, workdir
from diffusion_jax.train.loading import quiet
from diffusion_jax.train.loop import _leave, _progress


@pytest.fixture
def second(monkeypatch):
    """This is the second of two processes; ``said`` is what the first one gathers."""
    said = []
    gather = lambda mine: np.stack([said[0](mine), np.asarray(mine)])
    for module in (checksum, workdir):
        monkeypatch.setattr(module.multihost_utils, "process_allgather", gather)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.process_index", lambda: 1)
    return said


def test_checksums_are_the_sum_of_all_processes_parts(second):
    second.append(lambda mine: np.uint32(2**32 - 5) + 0 * mine)
    words = np.arange(6, dtype=np.uint32)
    assert checksum.checksums([words]) == [2**32 - 5]  # the first counts a host's array
    second[0] = lambda mine: np.array([2**32 - 1, 7], np.uint32)
    assert checksum.checksums([words, words]) == [2**32 - 1, 7]


def test_a_lock_that_another_process_could_not_take_is_refused_here_too(second, tmp_path):
    second.append(lambda mine: np.asarray(True))
    with pytest.raises(ValueError, match="in use by another run"), workdir.locked(tmp_path):
        pass
    second[0] = lambda mine: np.asarray(False)
    with workdir.locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())  # the first process holds it
    assert workdir._anywhere(True) and not workdir._anywhere(False)


def test_the_first_process_alone_writes(second, tmp_path, capsys):
    workdir.claim(tmp_path / "run", {"seed": 1})
    with log.open_log(tmp_path, 0) as lines:
        lines.line(1, {"loss": 1.0})
        lines.show(1, {"loss": 1.0})
    snapshots.save(tmp_path, 3, {"0.1": {"w": np.zeros(2)}})
    assert not list(tmp_path.iterdir())
    with pytest.raises(preemption.Stopped):
        _leave("SIGTERM", 3, tmp_path)
    assert capsys.readouterr().err == ""
    with _progress(5, 2) as bar:
        assert bar.disable and bar.total == 5


def test_all_stop_at_a_step_that_they_agree_on(second, monkeypatch):
    reached = lambda step: step >= 4
    monkeypatch.setattr(
        preemption.multihost_utils, "reached_preemption_sync_point", reached
    )  # fmt: skip
    with preemption.stop_signals() as stop:
        assert [stop(step) for step in (3, 4, 5)] == [None, "SIGTERM", "SIGTERM"]


def test_an_array_that_lies_on_several_processes_is_gathered_to_be_written(monkeypatch):
    class Elsewhere:
        is_fully_addressable = False

    asked = []
    gather = lambda leaf, tiled: asked.append((leaf, tiled)) or np.arange(3)
    monkeypatch.setattr(snapshots.multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(snapshots.jax, "Array", Elsewhere)
    leaf = Elsewhere()
    np.testing.assert_array_equal(snapshots._on_host(leaf), np.arange(3))
    assert asked == [(leaf, True)]
    np.testing.assert_array_equal(snapshots._on_host(np.ones(2)), np.ones(2))


def test_the_first_interrupt_is_a_notice_to_all():
    got = []
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with preemption._as_a_notice():
            os.kill(os.getpid(), signal.SIGINT)
            assert got == [signal.SIGTERM]
            assert signal.getsignal(signal.SIGINT) is ours[signal.SIGINT]  # the second means it
        with preemption._as_a_notice():
            assert signal.getsignal(signal.SIGINT) is not ours[signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is ours[signal.SIGINT]
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def test_what_was_silenced_speaks_again():
    loggers, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    before = [logger.level for logger in loggers]
    with pytest.raises(OSError), quiet():
        assert not any(logger.isEnabledFor(logging.CRITICAL) for logger in loggers)
        assert sys.unraisablehook is not hook
        raise OSError
    assert [logger.level for logger in loggers] == before and sys.unraisablehook is hook
