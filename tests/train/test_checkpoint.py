import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.train.checkpoint import (
    Checkpoints,
    NotSaved,
    restore_params,
    restore_params_at,
    steps,
)
from diffusion_jax.train.checksum import checksums
from diffusion_jax.train.state import TrainState

pytestmark = pytest.mark.whole

CONFIG = {"model": {"width": 64}}
TX = optax.adamw(1e-3)


def _state(step, width=64):
    """Values that tell the step, in every kind of leaf that a state has."""
    key = jax.random.fold_in(jax.random.key(0), step)
    kernel = jax.random.normal(key, (width, width))
    half = jnp.full((3,), step, jnp.bfloat16)
    params = {"net": {f"layer_{i}": {"kernel": kernel + i} for i in range(8)}, "terms": [{}]}
    params["net"]["half"] = half
    moments = TX.init(params)
    average = jax.tree.map(lambda p: p.astype(jnp.float32) + 1, params)
    carry = {"history": jnp.arange(5) + step, "key": key}
    return TrainState(jnp.int32(step), params, moments, average, carry, jnp.ones((), bool))


def _abstract(state):
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )


def _bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def _assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and _bits(x) == _bits(y)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 10, 20 and 30."""
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(_state(step), CONFIG)
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_a_state_comes_back_bit_by_bit(saved):
    with Checkpoints(saved) as checkpoints:
        _assert_same(checkpoints.restore(_abstract(_state(0))), _state(30))


def test_there_is_nothing_to_restore_at_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(_abstract(_state(0))) is None


def test_the_newest_are_kept_and_some_for_good(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=20) as checkpoints:
        for step in (10, 20, 30, 40, 50, 60, 70):
            checkpoints.save(_state(step, width=2), CONFIG)
    assert steps(tmp_path) == [20, 40, 60, 70]


def test_what_a_killed_save_left_is_cleared_away(tmp_path):
    left = tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp-1010101"
    left.mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert steps(tmp_path) == []
        checkpoints.save(_state(30, width=2), CONFIG)
    assert steps(tmp_path) == [30] and not left.exists()


@pytest.mark.parametrize(("keep", "every"), [(0, 0), (1, -1)])
def test_what_is_kept_is_a_number(tmp_path, keep, every):
    with pytest.raises(ValueError, match=f"keep = {keep} must be at least 1, .* = {every} at"):
        Checkpoints(tmp_path, keep, every)


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(_state(10, width=2), CONFIG)
        checkpoints.save(_state(10, width=2), CONFIG)
    assert steps(tmp_path) == [10]


def test_what_is_donated_next_is_saved_as_it_was(tmp_path):
    """A save goes on in the background while the next steps reuse the memory."""
    shrink = jax.jit(lambda p: jax.tree.map(lambda a: a * 0.5, p), donate_argnums=0)
    state = _state(1, width=512)
    expected = np.array(state.params["net"]["layer_3"]["kernel"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, CONFIG)
        params = state.params
        for _ in range(5):
            params = shrink(params)
    found = restore_params(tmp_path, "params")["net"]["layer_3"]["kernel"]
    np.testing.assert_array_equal(found, expected)


class _Failing(Checkpoints):
    """The disk fails for some saves."""

    fails = 0

    def _opened(self):
        orbax = super()._opened()
        if self.fails:
            self.fails -= 1
            orbax.save_checkpointables_async = _no_room
        return orbax


def _no_room(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_save_that_fails_is_a_warning_and_the_next_is_tried(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    _Failing.fails = 2
    says = r"step 40 .* could not be written \(OSError: .*No space.*\); the newest undamaged one"
    with _Failing(tmp_path / "run") as checkpoints:
        with pytest.warns(UserWarning, match=says):
            checkpoints.save(_state(40), CONFIG)
        with pytest.warns(UserWarning, match="step 50 .* of step 30; .* tries again at the next"):
            checkpoints.save(_state(50), CONFIG)
        checkpoints.save(_state(60), CONFIG)
    assert steps(tmp_path / "run") == [20, 30, 60]


def test_three_saves_that_fail_in_a_row_end_the_run(tmp_path):
    _Failing.fails = 9
    with (
        _Failing(tmp_path) as checkpoints,
        pytest.warns(UserWarning),
        pytest.raises(NotSaved, match=r"step 30 .* there is none yet; make room"),
    ):
        for step in (10, 20, 30):
            checkpoints.save(_state(step, width=2), CONFIG)


@pytest.mark.parametrize("which", ["ema", "params"])
def test_parameters_load_alone_and_without_their_recipe(saved, which):
    loaded = restore_params(saved, which, step=20)
    expected = getattr(_state(20), which)
    _assert_same(loaded, jax.tree.map(np.asarray, expected))
    assert restore_params(saved, which)["net"]["half"][0] == (31 if which == "ema" else 30)


def _largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _cut(step):
    for path in step.rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(step):
    """One bit in the middle of the largest file, among the stored numbers."""
    path = _largest_file(step / "params")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _lose_metadata(step):
    (step / "_CHECKPOINT_METADATA").unlink()


def _lose_manifest(step):
    for path in step.rglob("manifest.ocdbt"):
        path.unlink()


def _lose_a_tree(step):
    shutil.rmtree(step / "ema")


DAMAGES = [_cut, _flip, _lose_metadata, _lose_manifest, _lose_a_tree]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_gives_way_to_the_one_before(copy, damage, capfd):
    damage(copy / "checkpoints" / "30")
    with Checkpoints(copy) as checkpoints:
        with pytest.warns(UserWarning, match=r"checkpoints/30 is damaged \(.+\); trying the one"):
            restored = checkpoints.restore(_abstract(_state(0)))
        _assert_same(restored, _state(20))
        assert steps(copy) == [10, 20]
        assert (copy / "damaged" / "30.0").is_dir()
        checkpoints.save(_state(30), CONFIG)
    _assert_same(restore_params(copy, "params"), jax.tree.map(np.asarray, _state(30).params))
    assert capfd.readouterr().err == ""


def test_a_sampler_falls_back_too_but_touches_nothing(copy):
    _flip(copy / "checkpoints" / "30")
    with pytest.warns(UserWarning, match="the checksum of params/net/.* is wrong"):
        loaded, step = restore_params_at(copy, "params")
    assert loaded["net"]["half"][0] == 20 and step == 20  # what was read, not what is newest
    assert steps(copy) == [10, 20, 30]
    assert restore_params(copy, "ema")["net"]["half"][0] == 31  # that tree is whole


def test_if_none_is_whole_the_run_does_not_start_anew(copy):
    for step in (10, 20, 30):
        _cut(copy / "checkpoints" / str(step))
    with (
        Checkpoints(copy) as checkpoints,
        pytest.warns(UserWarning, match="is damaged") as warned,
        pytest.raises(ValueError, match=r"none of the 3 checkpoints in .* can be read"),
    ):
        checkpoints.restore(_abstract(_state(0)))
    assert len(warned) == 3 and "no older one is left" in str(warned[-1].message)
    assert steps(copy) == [10, 20, 30]


def test_a_checkpoint_of_another_model_is_no_damage(saved):
    says = r"is of another model or optimiser: ema/net/layer_0/kernel is float32\[64, 64\] there"
    with Checkpoints(saved) as checkpoints, pytest.raises(ValueError, match=says):
        checkpoints.restore(_abstract(_state(0, width=32)))
    missing = _abstract(_state(0))
    del missing.params["net"]["layer_5"]
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(ValueError, match=r"layer_5.* absent here"),
    ):
        checkpoints.restore(missing)


def test_questions_that_have_no_answer(saved, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint of step 25; its steps are \[10, 20, 30\]"):
        restore_params(saved, "ema", 25)
    with pytest.raises(ValueError, match="has no checkpoint; train first"):
        restore_params(tmp_path / "nothing")
    with pytest.raises(ValueError, match="known are ema, params"):
        restore_params(saved, "average")
    with pytest.raises(ValueError, match=r"config\.train\.keep = 0"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int8", "uint32", "float64", "bool"]
)
def test_every_flipped_bit_changes_a_checksum(dtype):
    values = np.random.default_rng(0).integers(0, 2, (3, 5)).astype(jnp.dtype(dtype))
    before = checksums({"a": values})
    raw = bytearray(values.tobytes())
    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= 1
        assert checksums({"a": np.frombuffer(damaged, values.dtype).reshape(3, 5)}) != before


def test_a_checksum_is_its_formula():
    words = np.random.default_rng(0).integers(0, 2**32, (4, 6), dtype=np.uint32)
    expected = sum(int(w) * (2 * i + 1) for i, w in enumerate(words.ravel())) % 2**32
    assert checksums([words, jnp.asarray(words)]) == [expected, expected]
