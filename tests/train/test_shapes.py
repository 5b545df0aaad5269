"""Batches of several shapes: one program for each, kept, and the state's memory given away."""

import jax
import numpy as np
import tiny

from diffusion_jax.train import sharding
from diffusion_jax.train.plan import Plan
from diffusion_jax.train.program import Program, compilations
from diffusion_jax.train.state import abstract_state, init_state, with_shardings


def _batch(mesh, length, names=("x", "unread")):
    made = {"x": np.random.default_rng(length).normal(size=(4, length, 8)).astype(np.float32)}
    made["unread"] = np.zeros(4, np.int32)
    host = {name: made[name] for name in names}
    return sharding.global_batch(host, sharding.of_batch(mesh))


def test_each_shape_compiles_once():
    mesh, parts = sharding.make_mesh(), (tiny.RECIPE, tiny.optimiser(), tiny.EMA)
    short, long = _batch(mesh, 11), _batch(mesh, 33)
    places = sharding.of_state(abstract_state(*parts, short), mesh)
    program = Program.of(*parts, Plan(9), places, mesh, 0, tiny.RATE, 1)
    state = init_state(*parts, jax.random.key(0), short, places)
    counts, flops, losses = [], [], []
    other = _batch(mesh, 33, ("unread", "x"))  # the same in another order
    for batch in (short, long, short, long, other):
        before, given = compilations()[0], state
        state, metrics = jax.block_until_ready(program(state, {}, batch))
        counts.append(compilations()[0] - before)
        flops.append(program.flops)
        losses.append(float(metrics["loss"]))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
    assert counts == [1, 1, 0, 0, 0]
    assert int(state.step) == 5 and np.isfinite(losses).all()
    first, second = flops[0], 2 * flops[1] - flops[0]  # flops is the mean of the calls so far
    assert 2.5 < second / first < 3.05
    np.testing.assert_allclose(flops[-1], (2 * first + 3 * second) / 5, rtol=1e-12)


def test_shapes_to_restore_have_their_place():
    mesh = sharding.make_mesh()
    leaf, where = jax.ShapeDtypeStruct((4, 2), np.float32), sharding.of_batch(mesh)
    placed = with_shardings({"a": leaf}, {"a": where})["a"]
    assert (placed.shape, placed.dtype, placed.sharding) == ((4, 2), np.float32, where)
