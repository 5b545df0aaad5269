"""Whose turn it is, and what is done outside of it."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.turns import is_turn, when


def test_the_last_of_every_few_steps_is_a_turn():
    assert [bool(is_turn(step, 3)) for step in range(6)] == [False, False, True] * 2


def _square(kernel):
    x, numbers = jnp.ones((1, 4, 4, 2)), ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return jnp.sum(y**2)


def test_work_is_done_in_turn_and_zero_else():
    kernel = jnp.full((3, 3, 2, 2), 0.5)
    work = lambda kernel: dict(
        zip(("value", "slope"), jax.value_and_grad(_square)(kernel), strict=True)
    )
    done = jax.jit(lambda turn, kernel: when(turn, lambda: work(kernel)))
    full, empty = done(jnp.bool_(True), kernel), done(jnp.bool_(False), kernel)
    jax.tree.map(np.testing.assert_allclose, full, work(kernel))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(empty))
    assert jax.tree.map(lambda a: a.dtype, full) == jax.tree.map(lambda a: a.dtype, empty)


def test_accelerators_have_a_branch_and_cpus_none():
    done = jax.jit(lambda turn, kernel: when(turn, lambda: jax.grad(_square)(kernel)))
    traced = done.trace(jnp.bool_(True), jnp.ones((3, 3, 2, 2)))
    assert " conditional(" not in traced.lower().compile().as_text()
    cases = [
        traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.case")
        for platform in ("cpu", "tpu")
    ]
    assert cases[1] == cases[0] + 1


def test_what_is_not_finite_outside_of_a_turn_does_not_leak():
    done = jax.jit(lambda turn, x: when(turn, lambda: jnp.log(x)))
    assert done(jnp.bool_(False), jnp.float32(-1)) == 0
