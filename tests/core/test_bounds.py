"""What the range of data does to values and to gradients."""

import jax
import jax.numpy as jnp
from numpy.testing import assert_allclose

from diffusion_jax.core.bounds import clip_to


def test_what_is_shown_is_clipped_and_only_inward_gradients_pass():
    shown = clip_to()
    x0 = jnp.array([-1.5, -1.5, 0.3, 1.5, 1.5])
    assert_allclose(shown(x0), [-1.0, -1.0, 0.3, 1.0, 1.0], rtol=1e-6)
    slope = jnp.array([1.0, -1.0, 2.0, 1.0, -1.0])  # descent goes along -slope
    assert jax.vjp(shown, x0)[1](slope)[0].tolist() == [0.0, -1.0, 2.0, 1.0, 0.0]


def test_descent_brings_back_what_a_plain_clip_would_leave_outside():
    goal = jnp.array([-1.0, 0.5])

    def descend(shown, x):
        for _ in range(60):
            x = x - 0.2 * jax.grad(lambda x: jnp.sum((shown(x) - goal) ** 2))(x)
        return x

    x = jnp.array([-1.4, 1.4])
    assert_allclose(descend(clip_to(), x), [-1.4, 0.5], atol=1e-5)
    assert_allclose(descend(lambda x: jnp.clip(x, -1, 1), x), x)


def test_a_value_at_the_very_edge_keeps_its_gradient():
    """It is inside; only beyond does a gradient that leads away stop."""
    edges = jnp.array([-0.5, 2.0, -0.51, 2.01, -0.51, 2.01])
    slopes = jnp.array([3.0, -3.0, 3.0, -3.0, -2.0, 2.0])
    clipped, pull = jax.vjp(clip_to(-0.5, 2.0), edges)
    assert clipped.tolist() == [-0.5, 2.0, -0.5, 2.0, -0.5, 2.0]
    assert pull(slopes)[0].tolist() == [3.0, -3.0, 0.0, 0.0, -2.0, 2.0]
