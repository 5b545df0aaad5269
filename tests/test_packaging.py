"""pyproject.toml's ranges, requirements' pins and the interpreters that they are for agree."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ("3.11", "3.12", "3.13")


def pins(name: str, python: str) -> dict[str, str]:
    """Package -> the version that a requirements file pins for a Python."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r "), python)
        elif line:
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"python_version": python}):
                (only,) = one.specifier
                assert only.operator == "==", f"{name} pins {line}"
                found[canonicalize_name(one.name)] = only.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("ranges", "file"),
    [
        (PROJECT["dependencies"], "requirements.txt"),
        (EXTRAS["docs"], "requirements-test.txt"),
        (EXTRAS["parity"], "requirements-parity.txt"),
    ],
    ids=["dependencies", "docs", "parity"],
)
def test_what_was_tested_is_in_the_ranges(ranges, file, python):
    tested = pins(file, python)
    for line in ranges:
        one = Requirement(line)
        assert one.specifier.contains(tested[canonicalize_name(one.name)]), line


def test_every_python_that_is_tested_may_install():
    from packaging.specifiers import SpecifierSet

    assert all(SpecifierSet(PROJECT["requires-python"]).contains(f"{p}.0") for p in PYTHONS)
    assert pins("requirements.txt", "3.11")["jax"].startswith("0.10.")
    assert pins("requirements.txt", "3.12") == pins("requirements.txt", "3.13")
    assert pins("requirements.txt", "3.12")["jax"].startswith("0.12.")


def test_accelerators_take_the_pinned_jax():
    """Their extras name no release of their own, so that requirements.txt decides."""
    names = {name: Requirement(line) for name in ("gpu", "tpu") for line in EXTRAS[name]}
    assert {
        name: (one.name, set(one.extras), str(one.specifier)) for name, one in names.items()
    } == {
        "gpu": ("jax", {"cuda12"}, ""),
        "tpu": ("jax", {"tpu"}, ""),
    }
