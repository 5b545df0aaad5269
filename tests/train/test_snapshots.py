import json

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh

from diffusion_jax.core import ema
from diffusion_jax.train import sharding, snapshots
from diffusion_jax.train.checkpoint import restore_params
from diffusion_jax.train.loop import Hook
from diffusion_jax.train.state import abstract_state

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """60 steps that store widths 0.06 and 0.15, and the same steps that track 0.1 and 0.08."""
    folder, other = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("other")
    seen = {}
    look = Hook(20, lambda step, state: seen.update({step: jax.device_get(state.ema)}) or {})
    state = tiny.run_with_snapshots(folder, 60, 2)
    tiny.run(other, 60, ema=ema.power((0.1, 0.08)), hooks=[look])
    return folder, state, seen


def close(a, b, tolerance):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(("sigma_rel", "step"), [(0.1, 40), (0.08, 40), (0.1, 20), (0.08, 20)])
def test_a_width_that_was_not_stored_is_the_one_tracked(run, sigma_rel, step):
    folder, _, seen = run
    made = snapshots.reconstruct(folder, sigma_rel, step)
    close(made, seen[step][repr(sigma_rel)], 1e-4)
    assert jax.tree.structure(made) == jax.tree.structure(seen[step][repr(sigma_rel)])
    assert {x.dtype for x in jax.tree.leaves(made)} == {np.dtype(np.float32)}
    with pytest.raises(AssertionError):  # the other width is not as near
        close(made, seen[step][{"0.1": "0.08", "0.08": "0.1"}[repr(sigma_rel)]], 1e-4)


def test_a_stored_width_comes_back_and_the_newest_is_the_default(run):
    folder, state, _ = run
    assert snapshots.steps(folder) == list(range(2, 61, 2))
    assert snapshots.widths(folder, 60) == [0.06, 0.15]
    for sigma_rel in (0.06, 0.15):
        close(snapshots.reconstruct(folder, sigma_rel), state.ema[repr(sigma_rel)], 1e-6)
    stored, combination = snapshots.plan(folder, 0.1, 40)
    assert stored[-1].step == 40 and len(stored) == 40
    assert combination.weights.sum() == pytest.approx(1, abs=1e-12)


def test_a_checkpoint_holds_every_average(run):
    folder, state, _ = run
    loaded = restore_params(folder, "ema")
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(state.ema))
    first = ema.power((0.06, 0.15)).params(loaded)
    jax.tree.map(np.testing.assert_array_equal, first, loaded["0.06"])


def test_a_resumed_run_leaves_the_same_snapshots(run, tmp_path):
    folder, _, _ = run
    tiny.run_with_snapshots(tmp_path, 30, 2)
    tiny.run_with_snapshots(tmp_path, 60, 2)
    assert snapshots.steps(tmp_path) == snapshots.steps(folder)
    for step in (2, 30, 32, 60):
        name = f"snapshots/{step:08d}.npz"
        with np.load(tmp_path / name) as ours, np.load(folder / name) as theirs:
            arrays = [key for key in ours.files if key != "structure.json"]
            assert len(arrays) == 6
            for key in arrays:
                np.testing.assert_array_equal(ours[key], theirs[key])


def test_counters_are_the_newest(tmp_path):
    tree = lambda n: {"0.1": {"count": np.int32(n), "w": np.full(2, n, np.float32), "none": [{}]}}
    for step in (10, 20):
        snapshots.save(tmp_path, step, tree(step))
    made = snapshots.reconstruct(tmp_path, 0.1)
    assert made["count"] == 20 and made["count"].dtype == np.int32 and made["none"] == [{}]
    np.testing.assert_allclose(made["w"], 20, rtol=1e-6)


def test_averages_lie_where_their_parameter_lies():
    batch = {"x": jax.ShapeDtypeStruct((16, 64), np.float32)}
    mesh = AbstractMesh((1, 2, 1, 1), sharding.AXES)
    state = abstract_state(tiny.RECIPE, tiny.optimiser(), ema.power(), batch)
    places = sharding.of_state(state, mesh)
    specs = lambda tree: jax.tree.map(lambda s: s.spec, tree)
    assert specs(places.params)["net"]["hidden"]["kernel"] == jax.P("fsdp")
    assert specs(places.ema) == {w: specs(places.params) for w in ("0.05", "0.1")}


def test_two_devices_keep_the_snapshots_of_one(run, tmp_path):
    folder, _, _ = run
    mesh = json.dumps({"fsdp": 2})
    done = tiny.script(tmp_path, "--steps=12", "--snapshots=2", "--mesh", mesh, devices=2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"devices": 2, "kernel": [8, 32]}
    assert snapshots.steps(tmp_path) == [2, 4, 6, 8, 10, 12]
    for sigma_rel in (0.06, 0.1):
        theirs = snapshots.reconstruct(folder, sigma_rel, 12)
        close(snapshots.reconstruct(tmp_path, sigma_rel, 12), theirs, 1e-4)


def test_a_damaged_snapshot_is_named(run, tmp_path):
    source = run[0] / "snapshots" / "00000060.npz"
    target = tmp_path / "snapshots" / source.name
    target.parent.mkdir()
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    with pytest.raises(ValueError, match=r"00000060\.npz is damaged \(Bad CRC-32"):
        snapshots.reconstruct(tmp_path, 0.06)
    target.write_bytes(b"not a snapshot")
    with pytest.raises(ValueError, match=r"00000060\.npz is damaged"):
        snapshots.reconstruct(tmp_path, 0.06)


def test_a_snapshot_appears_whole_or_not_at_all(tmp_path):
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="gone"):
        snapshots.save(tmp_path, 3, {"0.1": {"a": np.zeros(3, np.float32), "b": Broken()}})
    assert snapshots.steps(tmp_path) == [] and not list((tmp_path / "snapshots").iterdir())


def test_wrong_requests_are_sentences(run, tmp_path):
    folder, _, _ = run
    with pytest.raises(ValueError, match=r"has no snapshots; train with config.ema='power\(\)'"):
        snapshots.reconstruct(tmp_path, 0.1)
    with pytest.raises(ValueError, match=r"no snapshot of step 99; the nearest are \[60\]"):
        snapshots.reconstruct(folder, 0.1, 99)
    with pytest.raises(ValueError, match=r"sigma_rel = 0\.5 must be above 0"):
        snapshots.reconstruct(folder, 0.5)
