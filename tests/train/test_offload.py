"""Averages and moments in the host's memory: the same run, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from diffusion_jax.train import offload, sharding
from diffusion_jax.train.abstract import abstract_step
from diffusion_jax.train.checkpoint import Checkpoints, restore_params
from diffusion_jax.train.loop import Hook
from diffusion_jax.train.plan import Plan
from diffusion_jax.train.state import TrainState, abstract_state, with_shardings

pytestmark = pytest.mark.whole

WIDE = {"x": jax.ShapeDtypeStruct((16, 64), jnp.float32)}  # kernels of 4,096 elements


def _wide(start):
    while True:
        yield {"x": np.random.default_rng(start).normal(size=(16, 64)).astype(np.float32)}
        start += 1


def _kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.size >= 1024}


@pytest.mark.parametrize(("what", "per_call"), [("ema", 1), ("optimizer", 1), ("optimizer", 5)])
def test_the_run_is_the_same_and_so_is_a_resumed_one(tmp_path, what, per_call):
    seen = []
    look = lambda step, state: seen.append(jax.jit(tiny.forward)(state.ema, jnp.ones((1, 64))))
    options = {"data": _wide, "hooks": [Hook(10, look)], "steps_per_call": per_call}
    plain = tiny.run(tmp_path / "plain", 20, **options)
    tiny.run(tmp_path / "moved", 10, offload=what, **options)
    moved = tiny.run(tmp_path / "moved", 20, offload=what, **options)
    jax.tree.map(np.testing.assert_array_equal, moved, plain)
    np.testing.assert_array_equal(seen[-1], seen[1])
    loaded = [restore_params(tmp_path / name, "ema") for name in ("plain", "moved")]
    jax.tree.map(np.testing.assert_array_equal, *loaded)


def test_what_lies_where(tmp_path):
    """A checkpoint comes back to the host, and the step takes and leaves it there."""
    mesh, plan = sharding.make_mesh(), Plan(10)
    parts = (tiny.RECIPE, tiny.optimiser(), tiny.EMA)
    tiny.run(tmp_path, 10, data=_wide)
    shapes = abstract_state(*parts, WIDE)
    places = sharding.of_state(shapes, mesh, offload="ema")
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(with_shardings(shapes, places))
    assert _kinds(state.ema) == {offload.HOST}
    jitted, _ = abstract_step(*parts, plan, WIDE, mesh, offload="ema")
    state, _ = jitted(state, {}, sharding.global_batch(next(_wide(10)), sharding.of_batch(mesh)))
    assert _kinds(state.ema) == {offload.HOST}
    assert _kinds(state.params) == _kinds(state.opt_state) == {offload.DEVICE}


def test_choices_that_cannot_be(monkeypatch):
    shapes, mesh = (
        abstract_state(tiny.RECIPE, tiny.optimiser(), tiny.EMA, WIDE),
        sharding.make_mesh(),
    )
    with pytest.raises(
        ValueError, match=r"config\.mesh\.offload = 'all'; known are none, ema, opt"
    ):
        sharding.of_state(shapes, mesh, offload="all")
    monkeypatch.setattr(offload, "HOST", "far_away")
    with pytest.raises(ValueError, match=r"needs devices that reach far_away memory; those of cpu"):
        sharding.of_state(shapes, mesh, offload="ema")
    sharding.of_state(shapes, mesh)  # which moves nothing


def test_leaves_of_1024_numbers_are_moved_and_keys_are_not():
    mesh = sharding.make_mesh()
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2000))
    leaves = {"least": leaf(32, 32), "less": leaf(1023), "key": key, "number": leaf()}
    state = TrainState(leaf(), leaves, leaves, leaves, (), leaf())
    of = lambda what: sharding.of_state(state, mesh, offload=what)
    kinds = lambda tree: {name: place.memory_kind for name, place in tree.items()}
    moved = {"least": "pinned_host", "less": "device", "key": "device", "number": "device"}
    still = dict.fromkeys(leaves, "device")
    for what, opt_state, average in (
        ("none", still, still),
        ("ema", still, moved),
        ("optimizer", moved, moved),
    ):
        places = of(what)
        assert kinds(places.params) == still
        assert kinds(places.opt_state) == opt_state and kinds(places.ema) == average
