"""A sampler on its own: exported, and run where this package cannot be imported."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import mnist, toy2d
from diffusion_jax import jobs
from diffusion_jax.build.runs import open_run
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.jobs.drawing import draw_requests
from diffusion_jax.jobs.requests import requests_of
from diffusion_jax.jobs.run_samples import sampler_of_run
from scripts import export_sampler
from scripts.export_sampler import export_run, sampler_config

pytestmark = pytest.mark.whole

SCRIPTS = Path(__file__).parents[2] / "scripts"

# Nothing of ours, nor what our networks are made of, can be imported before the script runs.
RUN = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_path(sys.argv[0])
"""
ALONE = f"import sys; sys.modules.update(diffusion_jax=None, configs=None, flax=None); {RUN}"


@pytest.fixture(autouse=True, scope="module")
def unchecked():
    """A symbolic batch size is no int to the run-time checks of shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def tiny(config):
    config.train.update(steps=2, batch_size=8, log_every=1, sample_every=0, checkpoint_every=2)
    config.optimizer.warmup = 1
    config.sampler.update(steps=3, n=8, batch_size=8)
    return config


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    config = tiny(mnist.get_config())
    config.data.image_size = (8, 8)
    config.model.unet.update(channels=8, channel_mults=(1,))
    jobs.train(config, folder)
    return folder


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    jobs.train(tiny(toy2d.get_config("ring")), folder)
    return folder


def expected(workdir, labels, scale, seed=3, **overrides):
    """What the job's own sampler draws."""
    config = sampler_config(workdir, overrides)
    sampler = sampler_of_run(open_run(config, workdir))
    sampler.settings.update(labels=tuple(labels), n=len(labels), seed=seed)
    sampler.settings.sampler.guidance_scale = float(scale)
    return draw_requests(sampler, requests_of(sampler.settings, sampler.generator), len(labels))


def drawn_alone(artifact, requests, folder, python=sys.executable, prelude=ALONE):
    """What the artifact draws, of (labels, scale) each, in a process without this package."""
    script = str(SCRIPTS / "run_exported.py")
    outs = [folder / f"drawn{i}.npy" for i in range(len(requests))]
    calls = [
        [script, str(artifact), str(out), "3", str(scale), *map(str, labels)]
        for out, (labels, scale) in zip(outs, requests, strict=True)
    ]
    command = [python, "-I", "-c", prelude, json.dumps(calls)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [np.load(out) for out in outs]


def assert_same(got, want):
    """Equal but for rounding: a byte may fall to the other side of a half."""
    assert got.shape == want.shape and got.dtype == want.dtype
    if got.dtype == np.uint8:
        different = got != want
        assert np.abs(got.astype(int) - want).max(initial=0) <= 1 and different.mean() < 0.01
    else:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def artifact(images, tmp_path_factory):
    """Written by the command line, as a person would."""
    out = tmp_path_factory.mktemp("out") / "sampler.jaxexport"
    command = [sys.executable, SCRIPTS / "export_sampler.py", f"--workdir={images}", f"--out={out}"]
    done = subprocess.run([*command, "--config.sampler.steps=4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sampler of step 2" in done.stdout
    return out


def test_one_artifact_draws_batches_of_any_size_as_the_job_does(images, artifact, tmp_path):
    requests = [([7], 2.5), ([1, 2, 3], 2.5), ([9, 0, 9, 4, 5], 2.5)]
    for got, (labels, scale) in zip(
        drawn_alone(artifact, requests, tmp_path), requests, strict=True
    ):
        assert_same(got, expected(images, labels, scale, **{"sampler.steps": 4}))


def test_the_scale_and_the_seed_are_arguments(images, artifact):
    run = jax.jit(jax.export.deserialize(bytearray(artifact.read_bytes())).call)
    of = lambda seed, scale: np.asarray(
        run(jax.random.PRNGKey(seed), np.arange(3, dtype=np.int32), np.float32(scale))
    )
    want = expected(images, range(3), 4.0, seed=5, **{"sampler.steps": 4})
    assert_same(of(5, 4.0), want)
    assert not np.array_equal(of(5, 4.0), of(6, 4.0))
    assert not np.array_equal(of(5, 4.0), of(5, 1.0))


def test_the_description_says_how_to_call_it(artifact):
    about = json.loads(Path(f"{artifact}.json").read_text())
    assert [(a["name"], a["shape"], a["dtype"]) for a in about["arguments"]] == [
        ("key", [2], "uint32"),
        ("labels", ["b"], "int32"),
        ("guidance_scale", [], "float32"),
    ]
    assert about["result"] == {"shape": ["b", 8, 8, 1], "dtype": "uint8"}
    assert about["target_shape"] == [8, 8, 1] and about["step"] == 2 and about["num_classes"] == 10
    assert about["sampler"]["steps"] == 4 and about["sampler"]["solver"] == "ddim()"
    assert about["platforms"] == ["cpu", "cuda", "tpu"] and about["params"] == "inside"
    assert about["versions"]["jax"] == jax.__version__
    assert about["obeys_guidance_scale"] and about["guidance_scale"] == 2.0
    assert sorted(path.name for path in artifact.parent.iterdir()) == [
        "sampler.jaxexport",
        "sampler.jaxexport.json",
    ]


def test_parameters_beside_are_an_argument(images, tmp_path):
    out = tmp_path / "sampler"
    config = sampler_config(images, {"sampler.solver": "ddpm()", "sampler.guidance": "apg()"})
    run = export_run(config, images, out, "beside")
    want = expected(
        images, [4, 5], 3.0, **{"sampler.solver": "ddpm()", "sampler.guidance": "apg()"}
    )
    (got,) = drawn_alone(out, [([4, 5], 3.0)], tmp_path)
    assert_same(got, want)
    tensors = load_file(f"{out}.safetensors")
    assert all("/" in name for name in tensors)
    sizes = sum(np.size(leaf) for leaf in jax.tree.leaves(run.params))
    assert sum(value.size for value in tensors.values()) == sizes
    about = json.loads(Path(f"{out}.json").read_text())
    assert [a["name"] for a in about["arguments"]] == ["params", "key", "labels", "guidance_scale"]


def test_points_without_classes_count_their_labels(points, tmp_path):
    out = tmp_path / "sampler"
    export_run(sampler_config(points, {}), points, out)
    (got,) = drawn_alone(out, [([0] * 6, 1.0)], tmp_path)
    assert_same(got, expected(points, [0] * 6, 1.0))
    about = json.loads(Path(f"{out}.json").read_text())
    assert about["result"] == {"shape": ["b", 2], "dtype": "float32"}
    assert about["num_classes"] == 0 and not about["obeys_guidance_scale"]


@pytest.mark.parametrize("guidance", ["perturbed_attention()", "autoguidance()"])
def test_guidance_that_reaches_into_the_network_or_another_run(images, guidance, tmp_path):
    reference = str(images) if guidance == "autoguidance()" else ""
    overrides = {"sampler.guidance": guidance, "sampler.reference": reference, "sampler.steps": 2}
    export_run(sampler_config(images, overrides), images, tmp_path / "sampler")
    run = jax.export.deserialize(bytearray((tmp_path / "sampler").read_bytes())).call
    key, labels = jax.random.PRNGKey(3), np.arange(2, dtype=np.int32)
    assert_same(
        np.asarray(run(key, labels, np.float32(2))), expected(images, labels, 2, **overrides)
    )


# Slow: a minute together, and each is much like one of its family, which is not left out.
FAMILIES = ("adaptive", "dpmpp_sde", "edict", "edm", "pndm", "restart", "sa_solver", "unipc")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in sorted({*SOLVERS} - {*FAMILIES})]


@pytest.mark.parametrize("solver", [*FAMILIES, *OTHERS])
def test_every_solver_is_exported_or_says_why_not(points, solver, tmp_path):
    config = sampler_config(points, {"sampler.solver": f"{solver}()", "sampler.steps": 4})
    if solver == "adaptive":  # its error norm takes a square root of the size in Python
        with pytest.raises(ValueError, match=r"'adaptive\(\)' .* needs to know the batch size"):
            export_run(config, points, tmp_path / "sampler")
        assert not list(tmp_path.iterdir())
    else:
        export_run(config, points, tmp_path / "sampler")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--workdir=nowhere"], "nowhere holds no run: config.json is missing; train there first"),
        (["--out=no/such/file"], "--out=no/such/file lies in a folder that does not exist; make"),
        (["--out=."], "--out=. is a folder; name a file in it"),
        (["--params=outside"], "--params=outside is unknown; choose inside or beside"),
        (["--config.sampler.stepz=3"], "no field 'sampler.stepz'; did you mean 'sampler.steps'?"),
        (["--config.sampler.steps=many"], "config.sampler.steps = 'many' does not fit"),
        (["--config.model.target=x0()"], "config.model.target says what the parameters"),
        (["--param=inside"], "argument '--param=inside' is not understood; see --help"),
    ],
)
def test_a_mistake_is_one_sentence(points, words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export_sampler.py", f"--workdir={points}", *words])
    monkeypatch.setattr(export_sampler, "use_one_cpu", lambda: None)  # JAX has started already
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        export_sampler.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: ") and sentence in line
    assert not list(tmp_path.iterdir())


def test_all_files_appear_or_none(points, tmp_path, monkeypatch):
    config = sampler_config(points, {})

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(export_sampler, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        export_run(config, points, tmp_path / "sampler", "beside")
    monkeypatch.setattr(export_sampler, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"--params=inside is for at most .* take --params=beside"):
        export_run(config, points, tmp_path / "sampler", "inside")
    assert not list(tmp_path.iterdir())


# Slow: installs JAX into a fresh environment, from the network; nothing else proves that the
# artifact needs no more than that.
@pytest.mark.slow
def test_it_runs_where_only_jax_is_installed(images, artifact, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    wanted = [f"jax=={jax.__version__}", f"jaxlib=={jax.__version__}", "flatbuffers"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True
    )
    names = {package["name"] for package in json.loads(listed.stdout)}
    assert {"jax", "numpy"} <= names and not {"flax", "diffusion_jax", "optax"} & names
    (got,) = drawn_alone(artifact, [([1, 2, 3], 2.0)], tmp_path, str(python), RUN)
    assert_same(got, expected(images, [1, 2, 3], 2.0, **{"sampler.steps": 4}))
