import jax
import numpy as np
import pytest
import tiny

from diffusion_jax.train import sharding
from diffusion_jax.train.abstract import abstract_step
from diffusion_jax.train.plan import Plan
from diffusion_jax.train.state import init_state


@pytest.mark.parametrize("k", [1, 3])
def test_it_is_the_step_of_the_loop(k):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    batch = {"x": np.ones((8, 64), np.float32)}
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)
    plan = Plan(steps=40, steps_per_call=k)
    step, arguments = abstract_step(
        tiny.RECIPE, tiny.optimiser(), tiny.EMA, plan, shapes, mesh, seed=3
    )
    compiled = step.lower(*arguments).compile()
    state = init_state(tiny.RECIPE, tiny.optimiser(), tiny.EMA, jax.random.key(3), batch)
    stacked = {"x": np.stack([batch["x"]] * k) if k > 1 else batch["x"]}
    after, metrics = compiled(state, {}, stacked)
    assert int(after.step) == k
    assert metrics["loss"].shape == ((k,) if k > 1 else ())


def test_a_batch_that_the_mesh_cannot_share_is_refused():
    mesh = jax.sharding.AbstractMesh((2, 4, 1, 1), sharding.AXES)
    batch = {"x": jax.ShapeDtypeStruct((12, 64), np.float32)}
    with pytest.raises(ValueError, match="a batch of 12 does not divide over the 8 devices"):
        abstract_step(tiny.RECIPE, tiny.optimiser(), tiny.EMA, Plan(steps=1), batch, mesh)
