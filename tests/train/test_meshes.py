"""The real network on virtual devices: the same training on every mesh, nothing copied twice."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
MESHES = {
    "two copies": ({"data": 2}, "all"),
    "copies and parts": ({"data": 2, "fsdp": 2}, "all"),
    "eight copies": ({"data": 8}, "all"),
    "eight parts": ({"fsdp": 8}, "all"),
    "split channels": ({"tensor": 8}, "all"),
    "all three": ({"data": 2, "fsdp": 2, "tensor": 2}, "all"),
    "split tokens": ({"data": 2, "sequence": 2}, "all"),
    "split moments": ({"fsdp": 8}, "optimizer"),
}


@pytest.fixture(scope="module")
def rows():
    arguments = [f"{json.dumps(sizes)}@{split}" for sizes, split in MESHES.values()]
    own = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, HERE / "meshes.py", *arguments],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return dict(zip(["one", *MESHES], lines, strict=True))


pytestmark = pytest.mark.slow  # nine compilations of a training step for up to eight devices


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_trains_as_one_device_does(rows, name):
    one, row = rows["one"], rows[name]
    assert row["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert row["apart"] < 1e-5


def test_memory_of_a_device_falls_with_its_part(rows):
    whole, params = rows["one"]["arguments"], rows["one"]["params"]
    assert whole == pytest.approx(4 * params, rel=0.01)  # parameters, two moments, average
    assert rows["eight copies"]["arguments"] == pytest.approx(whole, rel=0.01)
    assert rows["eight parts"]["arguments"] < 1.15 * whole / 8
    assert rows["copies and parts"]["arguments"] < 1.05 * whole / 2
    assert rows["split moments"]["arguments"] < 1.15 * (params + 3 * params / 8)


def test_copies_send_each_gradient_once(rows):
    for name in ("two copies", "eight copies"):
        sent = rows[name]["collectives"]
        assert set(sent) == {"all-reduce"}
        assert sent["all-reduce"][1] < 1.1 * rows["one"]["params"]


def test_parts_are_gathered_one_by_one(rows):
    """No gather is larger than the largest parameter: the whole is never on one device."""
    for name in ("eight parts", "copies and parts", "all three"):
        assert 0 < rows[name]["gathered"] <= rows["one"]["largest"]


def test_split_tokens_move_no_pixels(rows):
    """Convolutions are not split over space along with the tokens."""
    sent = rows["split tokens"]["collectives"]
    assert set(sent) == {"all-reduce", "all-gather"}
    assert rows["split tokens"]["gathered"] <= 16 * 1024


def test_activations_stay_where_their_examples_are(rows):
    """Nothing but the table of labels is dealt out anew."""
    for name in ("eight parts", "copies and parts", "split moments"):
        count, size, _ = rows[name]["collectives"].get("all-to-all", [0, 0, 0])
        assert count <= 2 and size <= 16 * 1024
