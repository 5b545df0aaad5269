"""What is asked of TPU's compiler for the name of a slice; no compiler is needed here."""

import importlib.util
import os
from types import SimpleNamespace

import pytest
from jax.experimental import topologies

from diffusion_jax.profiling.chips import named
from diffusion_jax.profiling.topology import ALONE, slice_of


@pytest.fixture
def asked(monkeypatch):
    """The calls of the compiler, which gives two devices; the environment comes back."""
    calls = []

    def described(**options):
        calls.append(options)
        if options["topology_name"] == "v5p:9x9x9":
            raise RuntimeError("no such slice\nmore lines")
        return SimpleNamespace(devices=("a", "b"))

    monkeypatch.setattr(topologies, "get_topology_desc", described)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_MIN_LOG_LEVEL", "0")
    return calls


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v5e:4x4", {}),
        ("v4:2x2x1", {"chip_config_name": "megacore"}),
        ("v6e:1x1", {"chips_per_host_bounds": (1, 1, 1)}),
        ("v4:1x1x1", {"chip_config_name": "megacore", "chips_per_host_bounds": (1, 1, 1)}),
    ],
)
def test_a_slice_is_asked_for_by_its_name(asked, name, options):
    chip, devices = slice_of(name)
    assert chip is named(name.split(":")[0]) and devices == ["a", "b"]
    assert asked == [{"platform": "tpu", "topology_name": name, **options}]
    set_here = {variable: os.environ[variable] for variable in ALONE}
    assert set_here == {**ALONE, "TPU_MIN_LOG_LEVEL": "0"}  # what was set is left


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:", "a100:2x2", "v5e:2x", "v5e:2x2:1"])
def test_other_names_are_refused(asked, name):
    with pytest.raises(ValueError, match=rf"--topology={name} is unknown; .*v4, v5e, v5p, v6e,"):
        slice_of(name)
    assert not asked


def test_no_compiler_and_no_such_slice_are_sentences(asked, monkeypatch):
    with pytest.raises(
        ValueError, match=r"v5p:9x9x9 is no slice that libtpu knows: no such slice$"
    ):
        slice_of("v5p:9x9x9")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="libtpu is missing"):
        slice_of("v5e:4x4")
