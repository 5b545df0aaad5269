import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data.pixels import to_uint8, to_unit

BYTES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_every_byte_survives_the_round_trip(array):
    unit = to_unit(array(BYTES))
    assert type(unit) is type(array(BYTES)) and unit.dtype == np.float32
    assert to_uint8(unit).dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(to_uint8(unit)), BYTES)


def test_ends_and_middle():
    np.testing.assert_array_equal(to_unit(np.array([0, 255], np.uint8)), [-1, 1])
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, -1, 0, 1, 3])), [0, 0, 128, 255, 255])


def test_numpy_and_jax_agree():
    x = np.linspace(-1.2, 1.2, 1001, dtype=np.float32)
    np.testing.assert_array_equal(to_uint8(x), np.asarray(to_uint8(jnp.asarray(x))))
