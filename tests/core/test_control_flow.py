"""Branches and loops that CPUs do without, and whose turn it is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.control_flow import MOST, scan, when
from diffusion_jax.core.turns import is_turn


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


@pytest.mark.parametrize("n", [1, 3, MOST, MOST + 1])
def test_a_scan_is_a_scan_whether_or_not_it_is_written_out(n):
    def body(carry, x):
        carry = {"sum": carry["sum"] + x["a"] * x["b"]}
        return carry, carry["sum"] ** 2

    xs = {"a": jnp.arange(1.0, n + 1), "b": jnp.linspace(0.5, 1.5, n)}
    init = {"sum": jnp.float32(0.25)}
    got, want = jax.jit(partial(scan, body))(init, xs), jax.lax.scan(body, init, xs)
    jax.tree.map(np.testing.assert_allclose, got, want)
    slope = jax.grad(lambda a: scan(body, init, {**xs, "a": a})[0]["sum"])(xs["a"])
    np.testing.assert_allclose(slope, xs["b"], rtol=1e-6)


def test_on_cpus_few_rounds_are_no_loop():
    step = lambda kernel, x: (kernel - 0.1 * x * jax.grad(_square)(kernel), None)
    run = jax.jit(lambda kernel, xs: scan(step, kernel, xs))
    text = lambda n: run.lower(jnp.ones((3, 3, 2, 2)), jnp.ones(n)).compile().as_text()
    assert " while(" not in text(MOST) and " while(" in text(MOST + 1)
