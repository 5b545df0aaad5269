"""A Cloud TPU pod's launcher: what it would run, and what that does; and shellcheck on them all."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import FOREVER, SCRIPTS, call, stand_in, waited

POD = SCRIPTS / "tpu_pod.sh"
WHERE = ["--zone=us-west4-a", "--project=mine"]


def dry(subcommand, *words, where=WHERE):
    """The commands that a dry run prints, each as its words."""
    done = call(POD, subcommand, "--name=pod", *where, "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def remote(subcommand, *words):
    """What a dry run would run on the workers."""
    (command,) = (words for words in dry(subcommand, *words) if "ssh" in words)
    assert command[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert command[6:8] == WHERE
    worker, shell = command[8:]
    assert shell.startswith("--command=")
    return worker, shell.removeprefix("--command=")


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-64", "v2-alpha-tpuv6e"),
    ],
)
def test_create_asks_for_the_pod_and_waits(accelerator, runtime):
    ask, wait = dry("create", f"--accelerator={accelerator}", "--spot")
    assert ask == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod"),
        *WHERE,
        *(f"--accelerator-type={accelerator}", f"--runtime-version={runtime}", "--spot"),
    ]
    assert wait == [
        *("gcloud", "compute", "tpus", "queued-resources", "describe", "pod"),
        *WHERE,
        "--format=value(state.state)",
    ]


def test_options_are_passed_on_or_left_away():
    ask, _ = dry("create", "--accelerator=v9-8", "--runtime=new", where=["--zone=z"])
    kind = ["--accelerator-type=v9-8", "--runtime-version=new"]
    assert ask[6:] == ["--node-id=pod", "--zone=z", *kind]


def test_setup_copies_and_installs_on_every_worker():
    pack, copy, _ = dry("setup")
    assert pack[0] == "git" and pack[3] == "archive" and pack[-1] == "HEAD"
    archive = pack[4].removeprefix("--output=")
    assert copy == [
        *("gcloud", "compute", "tpus", "tpu-vm", "scp", archive, "pod:diffusion_jax.tar.gz"),
        *WHERE,
        "--worker=all",
    ]
    worker, shell = remote("setup")
    assert worker == "--worker=all"
    # The release of JAX is that which requirements.txt pins.
    assert shlex.split(shell)[-3:] == ["-r", "requirements.txt", "jax[tpu]"]


@pytest.mark.whole
def test_run_and_stop_do_on_a_worker_what_they_say(tmp_path):
    """The very commands, with a stand-in for Python that ends as a run does when it is told to."""
    arguments = ["--config=configs/x.py:a", "--workdir=/mnt/my runs/a", "--config.s.labels=(1, 2)"]
    worker, start = remote("run", "--", *arguments)
    assert worker == "--worker=all"
    home = tmp_path / "diffusion_jax"
    (home / ".venv").mkdir(parents=True)
    arrive = 'printf "%s\\n" "$@"; trap "echo saved; exit 0" TERM; echo ready'
    stand_in(home / ".venv" / "bin", "python", f"{arrive}; {FOREVER}")
    bash = lambda command: subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    log = home / "run.log"
    assert bash(start).returncode == 0
    try:
        waited(lambda: "ready" in log.read_text())
        assert log.read_text().splitlines() == [
            "main.py",
            "--distributed=auto",
            *arguments,
            "ready",
        ]
        again = bash(start)
        assert again.returncode == 1 and again.stderr == "a run is going on; stop it first\n"
    finally:
        worker, stop = remote("stop")
        done = bash(stop)
    assert worker == "--worker=all"
    assert done.returncode == 0 and done.stdout == "saved\n"
    assert bash(stop).returncode == 0  # there is nothing to stop, and nothing to complain of
    assert bash(start).returncode == 0  # and goes on
    waited(lambda: log.read_text().count("ready") == 2)
    bash(stop)


def test_logs_and_delete():
    assert remote("logs") == ("--worker=0", "tail --lines=50 diffusion_jax/run.log")
    assert remote("logs", "--worker=all", "--lines=9", "--follow") == (
        "--worker=all",
        "tail --lines=9 --follow diffusion_jax/run.log",
    )
    (command,) = dry("delete")
    start = ["gcloud", "compute", "tpus", "queued-resources", "delete", "pod"]
    assert command == [*start, *WHERE, "--force", "--quiet"]


@pytest.mark.parametrize(("last", "code"), [("ACTIVE", 0), ("SUSPENDED", 2), ("FAILED", 2)])
def test_create_waits_until_the_pod_is_there_or_will_not_be(last, code, tmp_path):
    states = tmp_path / "states"
    states.write_text(f"WAITING_FOR_RESOURCES\nPROVISIONING\n{last}\n")
    script = f"""
        echo "$@" >> {tmp_path}/calls
        [[ $4 == create ]] && exit
        head -n 1 {states}
        sed -i 1d {states}
    """
    stand_in(tmp_path / "bin", "gcloud", script)
    words = [POD, "create", "--name=pod", "--zone=z", "--accelerator=v6e-8"]
    done = call(*words, path=tmp_path / "bin", POLL_SECONDS="0")
    assert done.returncode == code
    calls = [line.split()[3] for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls[0] == "create" and set(calls[1:]) == {"describe"}
    assert done.stdout.splitlines()[-1] == f"pod is {last}"
    if code:
        assert done.stderr == (
            f"error: --name=pod is {last} and will not become active; delete it, then create it "
            "again\n"
        )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "subcommand '' is unknown; choose one of create, setup, run, logs, stop, delete"),
        (["launch"], "subcommand 'launch' is unknown; choose one of create, setup"),
        (["setup", "--zone=z"], "--name is missing; name the pod, as in --name=my-pod"),
        (["setup", "--name=", "--zone=z"], "argument '--name=' is not understood"),
        (["setup", "--name=p"], "--zone is missing; name the pod's zone"),
        (["setup", "--name=p", "--zone=z", "--fast"], "argument '--fast' is not understood"),
        (["create", "--name=p", "--zone=z"], "--accelerator is missing; name one, as in v5lite"),
        (["create", "--name=p", "--zone=z", "--accelerator=h100"], "has no known runtime; add"),
        (["run", "--name=p", "--zone=z", "--", "--config=c"], "--workdir is missing; name a fol"),
        (["stop", "--name=p", "--zone=z", "--", "x"], "'x' after -- is for run alone; leave it"),
        (["logs", "--name=p", "--zone=z", "--worker=x"], "--worker=x is no worker; give a number"),
        (["logs", "--name=p", "--zone=z", "--lines=x"], "--lines=x is no number of lines; give"),
    ],
)
def test_a_mistake_is_one_sentence(words, sentence):
    dry_run = [*words[:1], "--dry-run", *words[1:]] if words else words
    done = call(POD, *dry_run)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and sentence in line


def test_help_is_the_head_of_the_file():
    done = call(POD, "--help")
    assert done.returncode == 0 and "tpu_pod.sh create --name=NAME" in done.stdout
    assert "set -euo" not in done.stdout


def test_shellcheck_finds_nothing():
    files = [*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch")]
    assert len(files) >= 3 and all(os.access(file, os.X_OK) for file in files)
    checker = shutil.which("shellcheck") or Path(sys.executable).with_name("shellcheck")
    done = call(checker, *files)
    assert done.returncode == 0, done.stdout
