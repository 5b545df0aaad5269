"""Several real processes on one machine, joined over loopback."""

import json
import time

import numpy as np
import pytest
import tiny

from diffusion_jax.jobs.hosts import Hosts, connect
from diffusion_jax.train import workdir
from diffusion_jax.train.checkpoint import restore_params, steps

pytestmark = pytest.mark.whole

RULES = json.dumps({"data": 1, "fsdp": -1})


def _close(a, b):
    tiny.jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def _same_as(reference, workdir, step):
    for which in ("ema", "params"):
        _close(restore_params(workdir, which, step), restore_params(reference.workdir, which, step))


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [(2, 2, {"data": 2, "fsdp": 2}), (4, 1, {"fsdp": 4}), (2, 1, {"data": 1, "tensor": 2})],
)
def test_several_processes_train_the_run_of_one(processes, devices, mesh, tmp_path, reference):
    """Twenty steps together, then another ten by two of one device, then the rest by one alone."""
    args = [tmp_path, "--mesh", json.dumps(mesh)]
    for done in map(tiny.end, tiny.start_hosts(processes, *args, "--steps=20", devices=devices)):
        assert done.returncode == 0, done.stderr
    _same_as(reference, tmp_path, 20)
    if processes == 2:
        for done in map(tiny.end, tiny.start_hosts(2, tmp_path, "--steps=30")):
            assert done.returncode == 0, done.stderr
        _same_as(reference, tmp_path, 30)
    state = tiny.run(tmp_path, 40)
    _close(state.params, reference.state.params)
    _close(state.opt_state, reference.state.opt_state)


@pytest.mark.parametrize(("signal", "per_call"), [("SIGTERM", 1), ("SIGINT", 5)])
def test_a_notice_to_one_stops_all_at_one_step(signal, per_call, tmp_path):
    own = {1: [f"--signal={signal}", "--at=7"]}
    options = ["--steps=4000", "--every=2000", f"--per-call={per_call}"]
    started = tiny.start_hosts(2, tmp_path / "run", *options, own=own)
    since = time.monotonic()
    ended = [tiny.end(process, 120) for process in started]
    assert [done.returncode for done in ended] == [0, 0], ended[0].stderr
    assert time.monotonic() - since < 60
    step = steps(tmp_path / "run")[-1]
    assert 7 <= step < 4000  # the notice travels; all processes then agree on a step to come
    assert f"Stopped by SIGTERM at step {step}, which is saved" in ended[0].stderr
    assert "Stopped by" not in ended[1].stderr
    for done in map(tiny.end, tiny.start_hosts(2, tmp_path / "run", f"--steps={step + 10}")):
        assert done.returncode == 0, done.stderr
    through = tiny.run(tmp_path / "through", step + 10)
    found = restore_params(tmp_path / "run", "params")
    _close(found, tiny.jax.tree.map(np.asarray, through.params))


@pytest.mark.parametrize("dies", [0, 1])
def test_one_that_dies_ends_the_others_and_the_run_goes_on(dies, tmp_path, reference):
    own = {dies: ["--signal=SIGKILL", "--at=25"]}
    started = tiny.start_hosts(2, tmp_path, "--steps=40", own=own)
    killed = tiny.end(started[dies], 120)
    since = time.monotonic()
    left = tiny.end(started[1 - dies], 60)
    assert time.monotonic() - since < 30  # heartbeats of 10 s here
    assert killed.returncode == -9 and left.returncode not in (0, None)
    reasons = ("lost another process", "heartbeat", "coordination service", "closed by peer")
    assert any(reason in left.stderr for reason in reasons), left.stderr[-2000:]
    for done in map(tiny.end, tiny.start_hosts(2, tmp_path, "--steps=40")):
        assert done.returncode == 0, done.stderr
    _same_as(reference, tmp_path, 40)


def test_a_second_run_in_one_folder_is_refused_on_every_process(tmp_path):
    workdir.claim(tmp_path, tiny.CONFIG)
    with workdir.locked(tmp_path):
        for done in map(tiny.end, tiny.start_hosts(2, tmp_path, "--steps=40")):
            assert done.returncode != 0 and "is in use by another run" in done.stderr


@pytest.mark.parametrize(
    ("hosts", "environment", "says"),
    [
        (Hosts(processes=2), {}, "--processes=2 needs --coordinator"),
        (Hosts(coordinator="nowhere"), {}, "--coordinator=nowhere must be HOST:PORT"),
        (Hosts(coordinator="a:1", processes=2, process=2), {}, "--process from 0 to N - 1; they"),
        (Hosts(coordinator="a:1"), {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES = 'two' must"),
        (Hosts(), {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "0"}, "are None and 0"),
    ],
)
def test_addresses_that_cannot_be(hosts, environment, says):
    with pytest.raises(ValueError, match=says):
        connect(hosts, environment)


def test_one_process_needs_nothing():
    connect(Hosts(), {})
