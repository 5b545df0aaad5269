"""Names of an earlier release: each still works, and one sentence says today's."""

import ast
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import config_flags

from configs import sample
from configs.old_names import FIELDS, PATHS, renewed
from diffusion_jax.build.edits import edits_of

ROOT = pathlib.Path(__file__).parents[2]
STUDENTS = sorted({path.stem for path in (ROOT / "configs" / "distill").glob("*.py")})
STUDENTS = [name for name in STUDENTS if name not in ("__init__", "defaults")]
DISTILL = {f"configs/distill_{name}.py": f"configs/distill/{name}.py" for name in STUDENTS}


@pytest.mark.parametrize("old", [*PATHS, *DISTILL])
@pytest.mark.parametrize("folder", ["", "/somewhere/"])
def test_an_old_path_is_the_new_one(old, folder):
    new = {**PATHS, **DISTILL}[old]
    words, notes = renewed(
        ["main.py", f"--config={folder}{old}", "--workdir=configs/distill_cd.py"]
    )
    assert words == ["main.py", f"--config={folder}{new}", "--workdir=configs/distill_cd.py"]
    assert notes == [f"{old} is now {new}"]
    assert (ROOT / new).is_file() and not (ROOT / old).exists()


@pytest.mark.parametrize("old", FIELDS)
@pytest.mark.parametrize("path", [None, "configs/sample.py", "configs/stable_diffusion.py"])
def test_an_old_field_of_sampling_is_the_new_one(old, path):
    new, given = FIELDS[old], [] if path is None else [f"--config={path}"]
    words, notes = renewed(["main.py", "--mode=sample", *given, f"--config.{old}=(1, '=')"])
    assert words[-1] == f"--config.{new}=(1, '=')" and len(words) == 3 + len(given)
    of_path = [f"{path} is now {PATHS[path]}"] if path in PATHS else []
    assert notes == [*of_path, f"--config.{old} is now --config.{new}"]
    assert new in sample.get_config() and new not in sample.get_config().sampler


@pytest.mark.parametrize("mode", ["train", "sample", "evaluate"])
def test_a_config_of_training_has_these_fields_still(mode):
    given = ["main.py", f"--mode={mode}", "--config=configs/mnist.py", "--config.sampler.n=8"]
    assert renewed(given) == (given, [])
    if mode != "sample":
        assert renewed([*given[:2], *given[3:]]) == ([*given[:2], *given[3:]], [])


@pytest.mark.parametrize(
    ("given", "edits"),
    [
        ({"image": "a b's.png"}, ("""image_to_image("a b's.png", 0.8)""",)),
        ({"strength": "0.3", "image": "a.png"}, ("image_to_image('a.png', 0.3)",)),
        (
            {"control": "('canny',)", "control_image": "('edges.png',)"},
            ("control('canny', 'edges.png', 1.0)",),
        ),
        (
            {"control": "('a/canny:0.5', 'pose')", "control_image": "('e.png', 'p.png')"},
            ("control('a/canny', 'e.png', 0.5)", "control('pose', 'p.png', 1.0)"),
        ),
        (
            {"control": "canny", "image": "a.png", "control_image": "e.png"},
            ("image_to_image('a.png', 0.8)", "control('canny', 'e.png', 1.0)"),
        ),
    ],
)
def test_pictures_to_start_from_and_to_steer_by_are_edits(given, edits):
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    words, notes = renewed(["main.py", *flags, "--mode=sample", "--config.prompt=a red house"])
    assert words[:-1] == ["main.py", "--mode=sample", "--config.prompt=a red house"]
    name, _, value = words[-1].partition("=")
    assert name == "--config.edits" and ast.literal_eval(value) == edits
    assert notes == [f"{', '.join(f'--config.{name}' for name in given)} is now {words[-1]}"]
    sources = [source for edit in edits_of(edits) for source in edit.sources]
    files = [given.get("image", ""), *given.get("control_image", "").strip("(),").split(",")]
    assert sources == [file.strip(" '") for file in files if file]


def test_todays_names_are_left_alone():
    given = ["main.py", "--mode=sample", "--config.checkpoint=DIR", "--config.n=4"]
    given += ["--config.sampler.steps=9", "--config.edits=('variation(0.2)',)"]
    assert renewed(given) == (given, [])


def test_the_flags_that_come_of_it_are_read():
    """By what main.py reads them with."""
    from absl import flags

    given = ["", "--mode=sample", "--config=configs/stable_diffusion.py", "--config.image=a.png"]
    words, _ = renewed([*given, "--config.sampler.labels=(3, 7)"])
    values = flags.FlagValues()
    argv = ["", *(word for word in words[1:] if word != "--mode=sample")]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    assert values.config.labels == (3, 7)
    assert values.config.edits == ("image_to_image('a.png', 0.8)",)


@pytest.mark.whole
def test_a_run_is_drawn_from_by_the_old_names(tmp_path):
    run = shutil.copytree(ROOT / "tests" / "fixtures" / "run_0", tmp_path / "run")
    old = ["--config.sampler.n=5", "--config.sampler.seed=7", "--config.sampler.steps=3"]
    command = [sys.executable, ROOT / "main.py", "--mode=sample", f"--workdir={run}", *old]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: --config.sampler.n is now --config.n",
        "note: --config.sampler.seed is now --config.seed",
    ]
    drawn = np.load(run / "samples" / "sample_0000020_seed7.npz")
    assert drawn["images"].shape == (5, 2)
