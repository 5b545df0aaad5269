"""The command line before any job: where configs are found, and what is said of wrong words."""

import importlib
import tomllib
from pathlib import Path

import pytest

from diffusion_jax import command

ROOT = Path(__file__).resolve().parents[1]


def test_the_console_command_is_main():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["diffusion-jax"].partition(":")
    assert getattr(importlib.import_module(module), name) is command.run
    assert "import run" in (ROOT / "main.py").read_text()


def test_configs_of_the_installation_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("mnist.py", "distill/cd.py"):
        assert command._there(f"--config=configs/{path}") == f"--config={ROOT / 'configs' / path}"
    assert (
        command._there("--config=configs/mnist.py:a:b") == f"--config={ROOT}/configs/mnist.py:a:b"
    )
    assert command._there("--config.seed=3") == "--config.seed=3"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mnist.py").touch()  # one's own goes before
    assert command._there("--config=configs/mnist.py") == "--config=configs/mnist.py"


@pytest.mark.parametrize("path", ["configs/nothing.py", "mnist.py", "", "configs/../setup.py"])
def test_a_config_that_is_nowhere_ends_with_the_names_of_those_that_are(
    path, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command._there(f"--config={path}")
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert f"--config={path}: there is no such file" in said
    assert "mnist.py" in said and "old_names" not in said


def test_a_space_is_as_good_as_an_equals_sign():
    given = ["main.py", "--config", "a.py", "--workdir=b", "--config.seed=2"]
    assert command._joined(given) == ["main.py", "--config=a.py", "--workdir=b", "--config.seed=2"]
