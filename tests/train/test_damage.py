"""Each file of the newest checkpoint damaged in turn: never a silently wrong number.

Either the newest comes back bit by bit, where the file does not matter, or the one before it does,
with a sentence; and every file of the older one, and the damaged one itself, is left as it was.
"""

import os
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.train.checkpoint import DAMAGED, Checkpoints, restore_params, steps
from diffusion_jax.train.state import TrainState

pytestmark = pytest.mark.whole

CONFIG = {"model": {"width": 8}}
SAYS = r"checkpoints/20 is damaged \(.+\); trying the one before"


def _state(step):
    """Small, of every kind of leaf; all numbers depend on the step."""
    params = {"kernel": jnp.full((4, 6), step, jnp.float32), "half": jnp.ones(3, jnp.bfloat16)}
    carry = {"history": jnp.arange(5) + step, "key": jax.random.key(step)}
    average = jax.tree.map(lambda p: p.astype(jnp.float32) / 3, params)
    return TrainState(jnp.int32(step), params, {"mu": average}, average, carry, jnp.array(True))


def _bits(tree):
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(plain(leaf)).tobytes() for leaf in jax.tree.leaves(tree)]


STATES = {step: _state(step) for step in (10, 20)}
ABSTRACT = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), STATES[20]
)
DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "missing": lambda content: None,
    "flipped": lambda content: _flipped(content, len(content) // 2),
}


def _flipped(content, position):
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir) as checkpoints:
        for state in STATES.values():
            checkpoints.save(state, CONFIG)
    return workdir


def _contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _linked(source, target, name, damage):
    """The run's files by hard links, but for one, which is damaged."""
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path == source / "checkpoints" / "20" / name:
            if (content := damage(path.read_bytes())) is not None:
                copy.write_bytes(content)
        elif path.is_file():
            os.link(path, copy)
        else:
            copy.mkdir(exist_ok=True)
    return target


def _restored(workdir):
    """The state, and what was said of damage."""
    with warnings.catch_warnings(record=True) as said, Checkpoints(workdir) as checkpoints:
        warnings.simplefilter("always")
        return checkpoints.restore(ABSTRACT), [str(w.message) for w in said]


def _resumes(workdir, good):
    """Resume a run of which one file is damaged; whether the newest checkpoint served."""
    before = _contents(workdir / "checkpoints" / "20")
    state, said = _restored(workdir)
    step = int(state.step)
    assert _bits(state) == _bits(STATES[step])
    assert _contents(workdir / "checkpoints" / "10") == good
    if step == 20:
        assert said == [] and steps(workdir) == [10, 20]
        assert _contents(workdir / "checkpoints" / "20") == before
        return True
    assert len(said) == 1 and re.search(SAYS, said[0]), said
    assert steps(workdir) == [10]
    assert _contents(workdir / DAMAGED / "20.0") == before
    return False


def _samples(workdir):
    """A sampler's parameters are those of one step or the other too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = _bits(restore_params(workdir, "params"))
    assert loaded in [_bits(state.params) for state in STATES.values()]


# Without these nothing of a tree can be read; every other file may be one that Orbax never opens.
NEEDED = re.compile(r"_CHECKPOINT_METADATA$|/_METADATA$|^\w+/d/|^\w+/manifest")


@pytest.mark.slow  # 104 restores together, on a busy machine
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_in_turn(saved, tmp_path, damage, capfd):
    good, names = (_contents(saved / "checkpoints" / step) for step in ("10", "20"))
    assert len(names) == 26
    for i, name in enumerate(sorted(names)):
        workdir = _linked(saved, tmp_path / str(i), name, DAMAGES[damage])
        if name.startswith("params"):
            _samples(workdir)
        newest = _resumes(workdir, good)
        assert not (newest and NEEDED.search(name)), name
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "text", ["params/kernel", "float32[4", '"leaves"', '"checksum"', '"width"', "custom_metadata"]
)
def test_a_flipped_byte_of_the_metadata_is_no_other_model(saved, tmp_path, text):
    """A name or a shape that is wrong there alone must not be taken for another network's."""
    damage = lambda content: _flipped(content, content.index(text.encode()) + 4)
    workdir = _linked(saved, tmp_path / "run", "_CHECKPOINT_METADATA", damage)
    _resumes(workdir, _contents(saved / "checkpoints" / "10"))
