"""How a command ends: every kind of error is one sentence and its exit code, never a traceback."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import ending
from diffusion_jax.spec import build

ROOT = Path(__file__).parents[1]


def ended(capsys, workdir, act):
    """(exit code, what was said) of an act."""
    with pytest.raises(SystemExit) as end, ending.sentences(lambda: workdir):
        act()
    return end.value.code, capsys.readouterr().err


def foreign():
    np.zeros(3) @ np.zeros(4)  # a ValueError of NumPy


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        (lambda: build({}, "paint", "edits"), 2, "error: config.edits = 'paint': unknown name"),
        (lambda: Path("/nowhere/x").read_text(), 2, "No such file or directory: '/nowhere/x'"),
        (raising(FloatingPointError("it is\nnot finite")), 2, "error: it is not finite\n"),
        (raising(MemoryError()), 2, "error: there is not enough memory (MemoryError); take a"),
        (raising(RuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore")), 2, "(RESOURCE_EXHAUSTED: 9 GB)"),
        (raising(KeyboardInterrupt()), 130, ""),
        (foreign, 1, "error: this was not foreseen (ValueError: matmul: "),
        (raising(KeyError("x")), 1, "(KeyError: 'x'); please report it to the issue tracker"),
    ],
)
def test_every_error_is_a_sentence(tmp_path, capsys, act, code, said):
    found, told = ended(capsys, tmp_path / "run", act)
    assert found == code and said in told and told.count("\n") == (0 if code == 130 else 1)
    kept = list((tmp_path / "run").rglob("*.txt"))
    assert len(kept) == (code == 1)
    if kept:
        assert str(kept[0]) in told and "Traceback (most recent" in kept[0].read_text()


def test_a_report_is_kept_where_there_is_room(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(ending.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    for workdir in (tmp_path / "file", None):
        assert ended(capsys, workdir, raising(KeyError("x")))[0] == 1
    assert len(list((tmp_path / "temporary").glob("*.txt"))) == 2


def test_what_ends_well_or_by_itself_is_left_alone():
    with ending.sentences():
        pass
    with pytest.raises(SystemExit, match="75"), ending.sentences():
        sys.exit(75)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=nowhere.py"], "nowhere.py"),
        (["--config.n=two"], "--config.n=two"),
        (["--nonsense=3"], "nonsense"),
        (["--mode=paint"], "paint"),
        (["--config.stepz=3"], "the config has no field 'stepz'"),
    ],
)
def test_a_command_line_that_is_none(arguments, said):
    command = [sys.executable, "main.py", "--mode=sample", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and line.startswith("error: ") and said in line
    assert "Traceback" not in done.stderr


def test_warnings_of_this_project_are_notes(capsys, monkeypatch):
    others = []
    monkeypatch.setattr(warnings, "showwarning", lambda *given: others.append(given))
    before, ours = warnings.showwarning, str(ROOT / "diffusion_jax" / "convert" / "lora.py")
    with ending.sentences():
        for _ in range(2):
            warnings.showwarning("a word is left out", UserWarning, ours, 3)
        warnings.showwarning("of NumPy", UserWarning, np.__file__, 4)
        warnings.showwarning("soon", DeprecationWarning, ours, 5)
    assert capsys.readouterr().err == "note: a word is left out\n"
    assert [given[0] for given in others] == ["of NumPy", "soon"]
    assert warnings.showwarning is before
