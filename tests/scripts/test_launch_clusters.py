"""SLURM's and GKE's launch files, on a stand-in cluster: they go on until the last step is made."""

import signal
import subprocess
import sys

import pytest
import yaml
from launching import FOREVER, SCRIPTS, call, run_at, stand_in, waited


def test_a_run_is_finished_at_its_last_checkpoint(tmp_path):
    check = lambda folder: call(sys.executable, SCRIPTS / "is_finished.py", folder)
    assert check(run_at(tmp_path / "done", 40, 40)).returncode == 0
    for folder in (run_at(tmp_path / "half", 40, 20), tmp_path / "none"):
        done = check(folder)
        assert done.returncode == 75
        assert done.stderr == f"the run in {folder} is not at its last step\n"


def slurm(tmp_path, code, workdir, restarts=0):
    """The batch script where srun ends with a code; and what it asked SLURM for."""
    stand_in(tmp_path / "bin", "srun", f'echo "srun $*" >> {tmp_path}/calls; exit {code}')
    stand_in(tmp_path / "bin", "scontrol", f'echo "scontrol $*" >> {tmp_path}/calls')
    done = call(
        *("bash", SCRIPTS / "slurm.sbatch", "--config=c.py", f"--workdir={workdir}"),
        path=tmp_path / "bin",
        PYTHON=sys.executable,
        SLURM_SUBMIT_DIR=str(SCRIPTS.parents[1]),
        SLURM_JOB_ID="17",
        SLURM_RESTART_COUNT=str(restarts),
        MOST_RESTARTS="3",
    )
    return done, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("code", "reached", "again", "ends"),
    [
        (0, 40, False, 0),
        (0, 20, True, 75),
        (75, 20, True, 75),
        (134, 20, True, 134),
        (2, 0, False, 2),
    ],
)
def test_slurm_queues_a_run_again_until_it_is_finished(code, reached, again, ends, tmp_path):
    run = run_at(tmp_path / "run", 40, reached)
    done, calls = slurm(tmp_path, code, run)
    main = f"{sys.executable} main.py --distributed=auto --config=c.py --workdir={run}"
    assert calls[0] == f"srun --kill-on-bad-exit=1 {main}"
    assert calls[1:] == (["scontrol requeue 17"] if again else [])
    assert done.returncode == ends


def test_slurm_gives_up_after_so_many_restarts(tmp_path):
    done, calls = slurm(tmp_path, 75, run_at(tmp_path / "run", 40, 20), restarts=3)
    assert done.returncode == 75 and len(calls) == 1
    assert done.stderr == "error: MOST_RESTARTS=3 is reached; submit again to go on\n"
    done = call("bash", SCRIPTS / "slurm.sbatch", "--config=c.py")
    assert done.returncode == 2 and done.stderr.startswith("error: --workdir is missing; name a")


def test_slurm_directives():
    lines = (SCRIPTS / "slurm.sbatch").read_text().splitlines()
    found = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append"} <= set(found)
    sizes = dict(word.removeprefix("--").split("=") for word in found if "=" in word)
    assert sizes["ntasks-per-node"] == sizes["gpus-per-node"]  # as JAX takes one for each process
    assert "%j" in sizes["output"]
    # SLURM reads them up to the first command.
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(i < first for i, line in enumerate(lines) if line.startswith("#SBATCH"))


@pytest.mark.parametrize(("reached", "ends"), [(40, 0), (20, 75)])
def test_a_container_passes_sigterm_on_and_says_whether_to_start_again(reached, ends, tmp_path):
    run = run_at(tmp_path / "run", 40, reached)
    told = f'trap "sleep 0.3; echo saved; exit 0" TERM; touch {tmp_path}/up; {FOREVER}'
    command = ["bash", str(SCRIPTS / "worker.sh"), str(run), "bash", "-c", told]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    waited((tmp_path / "up").exists)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (ends, "saved\n")


@pytest.mark.whole
def test_no_sigterm_is_lost_however_early_it_comes(tmp_path):
    def start(i):
        up = tmp_path / str(i)
        told = f'trap "exit 7" TERM; touch {up}; {FOREVER}'
        command = ["bash", str(SCRIPTS / "worker.sh"), str(tmp_path), "bash", "-c", told]
        return up, subprocess.Popen(command)

    for up, process in [start(i) for i in range(40)]:
        waited(up.exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 7


def test_a_container_ends_as_its_command_does(tmp_path):
    worker = ["bash", SCRIPTS / "worker.sh"]
    assert call(*worker, run_at(tmp_path / "run", 40, 40), "true").returncode == 0
    assert call(*worker, tmp_path, "bash", "-c", "exit 2").returncode == 2
    done = call(*worker, tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: WORKDIR or COMMAND is missing")


def test_the_jobset_fits_together():
    jobset = yaml.safe_load((SCRIPTS / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    assert spec["failurePolicy"]["maxRestarts"] > 0 and spec["network"]["enableDNSHostnames"]
    (group,) = spec["replicatedJobs"]
    job = group["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert "cloud.google.com/gke-tpu-accelerator" in pod["nodeSelector"]
    (worker,) = pod["containers"]
    chips = worker["resources"]["limits"]["google.com/tpu"]
    assert chips == worker["resources"]["requests"]["google.com/tpu"]
    env = {entry["name"]: entry for entry in worker["env"]}
    hosts = int(env["JAX_NUM_PROCESSES"]["value"])
    assert hosts == job["parallelism"] == job["completions"] == x * y // chips
    name, port = env["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    first = f"{jobset['metadata']['name']}-{group['name']}-0-0.{spec['network']['subdomain']}"
    assert name == first and worker["ports"] == [{"containerPort": int(port)}]
    index = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    # SIGTERM: the command passes it on, and there is time to save.
    script, workdir, *command = worker["command"]
    assert (SCRIPTS.parents[1] / script).exists() and f"--workdir={workdir}" in command
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    (mount,) = worker["volumeMounts"]
    assert workdir.startswith(mount["mountPath"])
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2] and rule["onExitCodes"]["containerName"] == "worker"
