import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.profiling.flops import count


def counted(f, *shapes):
    return count(jax.make_jaxpr(f)(*(jnp.zeros(shape) for shape in shapes)))


def convolved(x, w, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def test_a_batched_product():
    flops = counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (5, 2, 3), (5, 3, 4))
    assert flops.total == flops.once == 2 * 5 * 2 * 3 * 4


@pytest.mark.parametrize(
    ("options", "taps"),
    [
        ({"padding": "VALID"}, 6 * 3 * 6 * 3),
        ({}, (8 * 3 - 2) ** 2),  # the window hangs out by one at both ends of each side
        ({"window_strides": (2, 2), "padding": ((1, 1), (1, 1))}, (4 * 3 - 1) ** 2),
        ({"lhs_dilation": (2, 2), "padding": ((1, 2), (1, 2))}, (8 * 3 - 1) ** 2),
    ],
)
def test_a_convolution_counts_products_with_the_image_alone(options, taps):
    flops = counted(lambda x, w: convolved(x, w, **options), (2, 8, 8, 6), (3, 3, 6, 10))
    assert flops.total == 2 * 2 * 6 * 10 * taps


def test_groups_divide_the_channels():
    grouped = lambda x, w: convolved(x, w, padding="VALID", feature_group_count=3)
    assert counted(grouped, (1, 3, 3, 6), (3, 3, 2, 9)).total == 2 * 9 * 2 * 9


def test_a_gradient_costs_twice_its_function():
    loss = lambda w, x: jnp.sum(convolved(x, w) ** 2)
    shapes = (3, 3, 6, 10), (2, 8, 8, 6)
    both = counted(jax.grad(loss, argnums=(0, 1)), *shapes).total
    assert both == 3 * counted(loss, *shapes).total


def test_a_scan_counts_as_often_as_it_runs():
    def f(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0] @ w

    flops = counted(f, (4, 4), (4, 4))
    assert (flops.total, flops.once) == (8 * 128, 2 * 128)


def test_a_loop_of_unknown_length_counts_once_and_is_said():
    f = lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c @ c, x)
    assert counted(f, (4, 4)) == (128, 128, 1)


def test_rematerialisation_counts_what_it_computes_again():
    f = lambda w, x: jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w) @ w)
    again = jax.checkpoint(f, policy=jax.checkpoint_policies.nothing_saveable)
    shapes = (4, 4), (4, 4)
    plain = counted(jax.grad(f), *shapes).total
    assert counted(jax.jit(jax.grad(again)), *shapes).total > plain
