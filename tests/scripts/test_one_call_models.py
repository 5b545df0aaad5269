"""What a student's one call is timed beside: images of the data's shape, of about its size."""

import jax
import numpy as np
import pytest

from scripts.few_steps.one_call_models import decoder, generator

pytestmark = pytest.mark.whole


@pytest.mark.parametrize("build", [decoder, generator])
@pytest.mark.parametrize("shape", [(28, 28, 1), (16, 32, 3)])
def test_as_many_parameters_as_asked_for_and_images_of_the_shape(build, shape):
    made = build(shape, 500_000)
    size = sum(leaf.size for leaf in jax.tree.leaves(made.params))
    assert 0.75 < size / 500_000 < 1.25
    images = np.asarray(made.draw(made.params, jax.random.key(0), 3))
    assert images.shape == (3, *shape) and np.isfinite(images).all() and images.std() > 1e-4
    np.testing.assert_array_equal(images, made.draw(made.params, jax.random.key(0), 3))
